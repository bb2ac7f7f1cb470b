"""Hugging Face's Trainer with a loss of segfuse: ``compute_loss`` at the size of the labels, 255 ignored.

The SegFormer here is a tiny one with random weights; nothing is downloaded.
Needs ``pip install segfuse transformers accelerate``. Run: ``python examples/hugging_face.py``
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import segfuse


class SegmentationTrainer(Trainer):
    loss = segfuse.DiceCELoss(ignore_index=255)
    loss_is_scaled_for_ga = False  # it is a mean over the batch

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = F.interpolate(outputs.logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        value = self.loss(logits, labels)
        return (value, outputs) if return_outputs else value


def example(index: int) -> dict[str, torch.Tensor]:
    """A picture with a bright rectangle in noise, and a rim that nobody labelled."""
    g = torch.Generator().manual_seed(index)
    image, labels = 0.3 * torch.randn(3, 64, 64, generator=g), torch.zeros(64, 64, dtype=torch.long)
    top, left = torch.randint(4, 28, (2,), generator=g).tolist()
    image[:, top : top + 32, left : left + 32] += 1
    labels[top : top + 32, left : left + 32] = 1
    labels[:2] = 255
    return {"pixel_values": image, "labels": labels}


def main() -> None:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=2,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16,
        semantic_loss_ignore_index=255,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=24,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            logging_steps=4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SegmentationTrainer(
            model=SegformerForSemanticSegmentation(config),
            args=arguments,
            train_dataset=[example(i) for i in range(16)],
        )
        trainer.train()
    values = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss: {values[0]:.3f} -> {values[-1]:.3f}")


if __name__ == "__main__":
    main()
