"""Losses of segfuse in a MONAI bundle: the configuration names them, and MONAI's parser builds them.

Needs ``pip install segfuse monai``. Run: ``python examples/monai_bundle.py``
"""

import torch
from monai.bundle import ConfigParser

CONFIG = {  # as in configs/train.json of a bundle
    "network": {
        "_target_": "BasicUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 3,
        "features": [8, 8, 16, 16, 16, 8],
    },
    "loss": {"_target_": "segfuse.DiceCELoss", "include_background": False, "ignore_index": 255},
    "loss_with_boundary": {  # a sum is one pass too
        "_target_": "segfuse.CompoundLoss",
        "terms": {"main": "@loss", "boundary": [0.01, {"_target_": "segfuse.BoundaryLoss", "ignore_index": 255}]},
    },
    "loss_of_monai": {  # MONAI's own signature and values
        "_target_": "segfuse.compat.monai.DiceCELoss",
        "softmax": True,
        "to_onehot_y": True,
    },
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
}


def main() -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 1, 32, 32)
    target = (image > -0.5).long() + (image > 0.5)  # (N, 1, *spatial), as MONAI has it

    parser = ConfigParser(CONFIG)
    network, optimizer = parser.get_parsed_content("network"), parser.get_parsed_content("optimizer")
    for name in ("loss", "loss_with_boundary", "loss_of_monai"):
        loss = parser.get_parsed_content(name)
        values = []
        for _ in range(10):
            value = loss(network(image), target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        print(f"{name}: {values[0]:.3f} -> {values[-1]:.3f}")


if __name__ == "__main__":
    main()
