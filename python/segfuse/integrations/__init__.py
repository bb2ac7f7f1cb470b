"""Doors into other frameworks. Importing this package imports none of them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NNUNET_TRAINERS", "nnunet_trainer_folder"]

NNUNET_TRAINERS = {  # for -tr: what its loss is
    "nnUNetTrainerSegfuse": "Dice + cross-entropy, the values of nnUNetTrainer",
    "nnUNetTrainerSegfuseFocal": "Dice + focal",
    "nnUNetTrainerSegfuseTversky": "Tversky + cross-entropy",
    "nnUNetTrainerSegfuseLovasz": "Lovasz + cross-entropy",
    "nnUNetTrainerSegfuseBoundary": "Dice + cross-entropy + 0.01 boundary",
    "nnUNetTrainerSegfuseHausdorff": "Dice + cross-entropy + 0.01 Hausdorff by distance transforms",
}


def nnunet_trainer_folder() -> Path:
    """For nnU-Net's variable ``nnUNet_extTrainer``."""
    return Path(__file__).parent / "nnunet_trainers"
