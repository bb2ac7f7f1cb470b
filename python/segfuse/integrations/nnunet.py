"""Trainers for nnU-Net v2: ``nnUNetv2_train ... -tr nnUNetTrainerSegfuse``.

nnU-Net finds them by name once ``nnUNet_extTrainer`` names the folder that ``segfuse nnunet`` prints.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..compat import nnunet as compat
from ..losses import (
    BoundaryLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    HausdorffDTLoss,
    LovaszLoss,
    TverskyLoss,
)
from ..losses._base import Loss

try:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as error:
    raise ImportError(
        f"segfuse.integrations.nnunet needs nnU-Net v2, which does not import here ({error}). Try: pip install nnunetv2"
    ) from error

__all__ = [
    "nnUNetTrainerSegfuse",
    "nnUNetTrainerSegfuseBoundary",
    "nnUNetTrainerSegfuseFocal",
    "nnUNetTrainerSegfuseHausdorff",
    "nnUNetTrainerSegfuseLovasz",
    "nnUNetTrainerSegfuseTversky",
]

SMOOTH = 1e-5  # nnU-Net's own


class OnTargets(nn.Module):
    """A loss on nnU-Net's targets: class numbers, or regions with what to ignore in the last channel."""

    def __init__(self, loss: Loss, ignores_last: bool) -> None:
        super().__init__()
        self.loss, self.ignores_last = loss, ignores_last

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        if not self.ignores_last:
            return self.loss(net_output, target)
        return self.loss(net_output, target[:, :-1], mask=target[:, -1:] == 0)


class nnUNetTrainerSegfuse(nnUNetTrainer):
    """Dice plus cross-entropy in one pass, with the values of ``nnUNetTrainer``.

    Labels and regions, an ignore label, deep supervision with nnU-Net's weights, and Dice over the batches of all
    processes, as there. The other trainers override :meth:`build_criterion`; so can yours.
    """

    def _build_loss(self) -> nn.Module:
        weights = getattr(super()._build_loss(), "weight_factors", None)  # those of the outputs
        criterion = self.build_criterion()
        return criterion if weights is None else compat.DeepSupervisionWrapper(criterion, weights)

    def build_criterion(self) -> nn.Module:
        """The loss of one output ``(N, C, *spatial)`` and its target ``(N, 1 or regions, *spatial)``."""
        dice: dict[str, Any] = {
            "batch_dice": self.configuration_manager.batch_dice,
            "do_bg": self.label_manager.has_regions,
            "smooth": SMOOTH,
            "ddp": self.is_ddp,
        }
        ignored = self.label_manager.ignore_label
        kind = compat.MemoryEfficientSoftDiceLoss
        if self.label_manager.has_regions:
            return compat.DC_and_BCE_loss({}, dice, use_ignore_label=ignored is not None, dice_class=kind)
        return compat.DC_and_CE_loss(dice, {}, ignore_label=ignored, dice_class=kind)

    # ---------------------------------------------------------------- for losses of this library

    def on_targets(self, loss: Loss) -> nn.Module:
        """The loss as a criterion. Sums over the batch are those of this process."""
        regions = self.label_manager.has_regions
        return OnTargets(loss, regions and self.label_manager.ignore_label is not None)

    @property
    def pixel_options(self) -> dict[str, Any]:
        """How to read logits and targets, for any loss."""
        ignored, regions = self.label_manager.ignore_label, self.label_manager.has_regions
        options: dict[str, Any] = {"mode": "multilabel" if regions else "multiclass"}
        return options if regions or ignored is None else {**options, "ignore_index": ignored}

    @property
    def foreground_options(self) -> dict[str, Any]:
        """The same for a loss of regions: without the background, as nnU-Net's Dice."""
        return {**self.pixel_options, "include_background": self.label_manager.has_regions}

    @property
    def region_options(self) -> dict[str, Any]:
        """The same with the settings of nnU-Net's Dice."""
        return {**self.foreground_options, "batch": self.configuration_manager.batch_dice, "smooth": SMOOTH}

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of voxels in units of their shortest edge; the coarser outputs are measured with the same proportions."""
        edges = [float(edge) for edge in self.configuration_manager.spacing]
        edges = edges[-len(self.configuration_manager.patch_size) :]
        return tuple(edge / min(edges) for edge in edges)

    def dice_and_entropy(self) -> Loss:
        """nnU-Net's loss as a term for sums; both of its terms take what ``region_options`` says."""
        return DiceLoss(**self.region_options) + CrossEntropyLoss(**self.pixel_options)


class nnUNetTrainerSegfuseFocal(nnUNetTrainerSegfuse):
    """Dice plus focal."""

    def build_criterion(self) -> nn.Module:
        return self.on_targets(DiceLoss(**self.region_options) + FocalLoss(**self.pixel_options))


class nnUNetTrainerSegfuseTversky(nnUNetTrainerSegfuse):
    """Tversky, which prices a miss above a false alarm, plus cross-entropy."""

    alpha, beta = 0.3, 0.7  # price of a false positive, of a false negative

    def build_criterion(self) -> nn.Module:
        tversky = TverskyLoss(alpha=self.alpha, beta=self.beta, **self.region_options)
        return self.on_targets(tversky + CrossEntropyLoss(**self.pixel_options))


class nnUNetTrainerSegfuseLovasz(nnUNetTrainerSegfuse):
    """Lovasz plus cross-entropy."""

    def build_criterion(self) -> nn.Module:
        return self.on_targets(LovaszLoss(**self.foreground_options) + CrossEntropyLoss(**self.pixel_options))


class nnUNetTrainerSegfuseBoundary(nnUNetTrainerSegfuse):
    """Dice plus cross-entropy plus boundary.

    Source of the weight: Kervadec et al. 2019 (arXiv 1812.07032) begin with 0.01 and raise it; this one stays.
    """

    boundary_weight = 0.01

    def build_criterion(self) -> nn.Module:
        boundary = BoundaryLoss(spacing=self.spacing, **self.foreground_options)
        return self.on_targets(self.dice_and_entropy() + self.boundary_weight * boundary)


class nnUNetTrainerSegfuseHausdorff(nnUNetTrainerSegfuse):
    """Dice plus cross-entropy plus Hausdorff by distance transforms."""

    hausdorff_weight = 0.01  # distances are squared: a value of 100 is an error 10 voxels away

    def build_criterion(self) -> nn.Module:
        hausdorff = HausdorffDTLoss(spacing=self.spacing, **self.foreground_options)
        return self.on_targets(self.dice_and_entropy() + self.hausdorff_weight * hausdorff)
