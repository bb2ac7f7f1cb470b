"""A LightningModule with a sum of losses: one pass over the logits, each term logged.

Needs ``pip install segfuse lightning``. Run: ``python examples/lightning_module.py``
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import segfuse


class Segmenter(lightning.LightningModule):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, classes, 3, padding=1)
        )
        self.loss = segfuse.DiceCELoss(include_background=False) + 0.01 * segfuse.BoundaryLoss()
        self.values: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        image, target = batch
        value, terms = self.loss(self.network(image), target, return_terms=True)  # the terms cost nothing
        self.log_dict({"loss": value, **terms})
        self.values.append(value.item())
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    image = torch.randn(40, 1, 32, 32)
    target = ((image > -0.5).long() + (image > 0.5)).squeeze(1)
    module = Segmenter()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(image, target), batch_size=4))
    logged = {name: f"{float(value):.3f}" for name, value in trainer.logged_metrics.items()}
    print(f"logged last: {logged}")
    print(f"loss: {module.values[0]:.3f} -> {module.values[-1]:.3f}")


if __name__ == "__main__":
    main()
