"""What segfuse is measured against: for every loss the obvious plain torch code, and the same loss of public libraries.

`LOSSES` is the only table. A row names a segfuse loss, its plain torch code (which `torch.compile` gets too) and the
terms of a compound; `LIBRARIES` has one function per library that returns its losses under the same names. A new loss
is a line in each.

Rules, meant to be generous to the peers:

- Labels are held as users hold them: segfuse, plain torch and compiled code get uint8 (binary) or int64 (multiclass)
  labels. Peers that want float labels (binary) or a channel axis (MONAI) get them ready-made, outside the timed region.
  One-hot encoding that a library does inside its own loss counts: its users pay for it in every step.
- Parameters are set so that value and gradient equal segfuse's. Where a library reduces in another way (SMP sums over
  the batch, kornia skips absent classes) segfuse is set to that library's way: `Peer.options`, and that segfuse call is
  timed for the comparison. A mean that differs by the number of classes is scaled in the comparison only.
- A library without a class for a compound is given as the sum of its classes, as its users write it.
- kornia's region losses take 2-D images only; volumes are passed as views of shape (N, C, D, H * W).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]


# Plain torch, as one writes it: logits (N, C, *spatial); labels (N, 1, *spatial) for C = 1, else (N, *spatial). -------


def probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of every class, predicted and true."""
    if logits.shape[1] == 1:
        return logits.sigmoid(), labels.to(logits.dtype)
    return logits.softmax(1), F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)


def confusion(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and false negatives of every sample and class."""
    p, y = probabilities(logits, labels)
    axes = tuple(range(2, logits.ndim))
    tp = (p * y).sum(axes)
    return tp, p.sum(axes) - tp, y.sum(axes) - tp


def dice_terms(logits: Tensor, labels: Tensor) -> Tensor:
    tp, fp, fn = confusion(logits, labels)
    return 1 - (2 * tp + 1) / (2 * tp + fp + fn + 1)


def tversky_terms(logits: Tensor, labels: Tensor) -> Tensor:
    tp, fp, fn = confusion(logits, labels)
    return 1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    return dice_terms(logits, labels).mean()


def log_cosh_dice(logits: Tensor, labels: Tensor) -> Tensor:
    return dice_terms(logits, labels).cosh().log().mean()


def jaccard(logits: Tensor, labels: Tensor) -> Tensor:
    tp, fp, fn = confusion(logits, labels)
    return (1 - (tp + 1) / (tp + fp + fn + 1)).mean()


def tversky(logits: Tensor, labels: Tensor) -> Tensor:
    return tversky_terms(logits, labels).mean()


def focal_tversky(logits: Tensor, labels: Tensor) -> Tensor:
    return (tversky_terms(logits, labels) ** 0.75).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        y = labels.to(logits.dtype)
        ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return ((0.25 * y + 0.75 * (1 - y)) * (1 - torch.exp(-ce)) ** 2 * ce).mean()
    ce = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def lovasz_weights(positive: Tensor) -> Tensor:
    """Differences of the Jaccard loss along the pixels in order of descending error."""
    true = positive.sum()
    jaccard = 1 - (true - positive.cumsum(0)) / (true + (1 - positive).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def lovasz(logits: Tensor, labels: Tensor, per_image: bool | None = None) -> Tensor:
    """The hinge for each image, the softmax for the batch, as in the paper; classes that are not there do not count."""
    classes = logits.shape[1]
    if per_image if per_image is not None else classes == 1:
        images = [lovasz(x[None], y[None], False) for x, y in zip(logits, labels, strict=True)]
        return torch.stack(images).mean()
    if classes == 1:
        y = labels.to(logits.dtype).flatten()
        errors, order = (1 - logits.flatten() * (2 * y - 1)).sort(descending=True)
        return errors.relu() @ lovasz_weights(y[order])
    p, losses = logits.softmax(1).transpose(0, 1).flatten(1), []
    for c in range(classes):
        y = (labels.flatten() == c).to(logits.dtype)
        if y.any():
            errors, order = (y - p[c]).abs().sort(descending=True)
            losses.append(errors @ lovasz_weights(y[order]))
    return torch.stack(losses).mean()


def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    return dice(logits, labels) + cross_entropy(logits, labels)


def combo(logits: Tensor, labels: Tensor) -> Tensor:
    return 0.25 * cross_entropy(logits, labels) + 0.5 * dice(logits, labels)  # alpha = beta = 0.5


def dice_focal(logits: Tensor, labels: Tensor) -> Tensor:
    return dice(logits, labels) + focal(logits, labels)


def four(logits: Tensor, labels: Tensor) -> Tensor:
    return focal(logits, labels) + dice(logits, labels) + tversky(logits, labels) + cross_entropy(logits, labels)


def fields(logits: Tensor, labels: Tensor, distance: Callable[[Any], Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, y, and the distance fields of y and of p > 0.5, of every class but the background of several."""
    if logits.shape[1] == 1:
        p, y = logits.sigmoid(), labels.to(logits.dtype)
    else:
        p = logits.softmax(1)[:, 1:]
        y = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    masks = (y.numpy() > 0.5, p.detach().numpy() > 0.5)
    of_y, of_p = (torch.from_numpy(np.stack([[distance(m) for m in n] for n in mask])).to(p.dtype) for mask in masks)
    return p, y, of_y, of_p


def two_sided(mask: Any) -> Any:
    from scipy.ndimage import distance_transform_edt as edt

    return edt(mask) + edt(~mask) if mask.any() and not mask.all() else np.zeros(mask.shape)


def signed(mask: Any) -> Any:
    from scipy.ndimage import distance_transform_edt as edt

    return edt(~mask) - np.maximum(edt(mask) - 1, 0) if mask.any() and not mask.all() else np.zeros(mask.shape)


def hausdorff_dt(logits: Tensor, labels: Tensor) -> Tensor:
    p, y, of_y, of_p = fields(logits, labels, two_sided)
    return ((p - y) ** 2 * (of_y**2 + of_p**2)).mean()


def boundary(logits: Tensor, labels: Tensor) -> Tensor:
    p, _, phi, _ = fields(logits, labels, signed)
    return (phi * p).mean()


def blurred(x: Tensor, radius: int, padding: bool) -> Tensor:
    """Every class of every sample is an image; a Gaussian window, as one convolution along each axis."""
    axes, shape = x.ndim - 2, x.shape
    g = torch.exp(-(torch.arange(-radius, radius + 1, dtype=x.dtype) ** 2) / (2 * 1.5**2))
    g = g / g.sum()
    x = x.flatten(0, 1).unsqueeze(1)
    for axis in range(axes):
        window, around = [1] * axes, [0] * axes
        window[axis], around[axis] = 2 * radius + 1, radius * padding
        x = (F.conv1d, F.conv2d, F.conv3d)[axes - 1](x, g.reshape(1, 1, *window), padding=around)
    return x.reshape(*shape[:2], *x.shape[2:])


def ssim(logits: Tensor, labels: Tensor) -> Tensor:
    """Windows of 11 inside the image."""
    p, y = probabilities(logits, labels)
    mp, my, pp, yy, py = (blurred(x, 5, False) for x in (p, y, p * p, y * y, p * y))
    vp, vy, cov = pp - mp * mp, yy - my * my, py - mp * my
    similarity = (2 * mp * my + 1e-4) * (2 * cov + 9e-4) / ((mp * mp + my * my + 1e-4) * (vp + vy + 9e-4))
    return 1 - similarity.mean()


def cmssl(logits: Tensor, labels: Tensor) -> Tensor:
    """Windows of 3 with zeros around the image."""
    p, y = probabilities(logits, labels)

    def relative(a: Tensor) -> Tensor:
        mean = blurred(a, 1, True)
        var = (blurred(a * a, 1, True) - mean * mean).clamp(min=0)  # rounding
        return (a - mean + 0.01) / ((var + 1e-12).sqrt() + 0.01)

    e = (relative(y) - relative(p)).abs()
    f = e > 0.1 * e.max()
    if logits.shape[1] == 1:
        ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    else:
        ce = -y * logits.log_softmax(1)
    return (e * f * ce).sum() / f.sum()


def compiled(function: LossFunction) -> LossFunction:
    """`torch.compile` of plain code for one fixed shape, compiled anew."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


# The table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """One row: `segfuse(module, **options)` builds the loss, with a peer's way of reducing if `options` say so."""

    title: str
    segfuse: Callable[..., LossFunction]
    plain: LossFunction
    terms: tuple[str, ...] = ()  # of a compound: the rows it is the sum of
    one_pass: bool = False  # the gradient can be written while the forward pass reads
    shapes: Sequence[tuple[int, ...]] = ()  # instead of SHAPES
    compiles: bool = True  # the plain code is torch alone
    in_double: bool = False  # value and gradient are compared in float64; all are timed in float32


def _four(sf: Any, **options: Any) -> LossFunction:
    parts = {"focal": sf.FocalLoss(), "dice": sf.DiceLoss(**options)}
    return sf.CompoundLoss({**parts, "tversky": sf.TverskyLoss(**options), "ce": sf.CrossEntropyLoss()})


LARGE = [(16, 1, 512, 512), (2, 1, 128, 128, 128), (8, 19, 512, 512), (2, 14, 96, 96, 96), (1, 117, 96, 96, 96)]
SMALL = (4, 1, 64, 64)
SHAPES: list[tuple[int, ...]] = [*LARGE, SMALL]
DISTANCE = [(4, 1, 256, 256), (1, 1, 96, 96, 96), (1, 5, 64, 64, 64)]  # of losses that measure distances
WINDOWS = [(4, 1, 512, 512), (2, 1, 128, 128, 128)]  # of losses on windows
SORTED = [(16, 1, 512, 512), (8, 19, 512, 512)]  # of losses that sort

LOSSES: dict[str, Loss] = {
    "focal": Loss("Focal", lambda sf, **o: sf.FocalLoss(**o), focal, one_pass=True),
    "ce": Loss("Cross-entropy", lambda sf, **o: sf.CrossEntropyLoss(**o), cross_entropy, one_pass=True),
    "dice": Loss("Dice", lambda sf, **o: sf.DiceLoss(**o), dice),
    "jaccard": Loss("Jaccard", lambda sf, **o: sf.JaccardLoss(**o), jaccard),
    "tversky": Loss("Tversky", lambda sf, **o: sf.TverskyLoss(**o), tversky),
    "focal_tversky": Loss("Focal Tversky", lambda sf, **o: sf.FocalTverskyLoss(**o), focal_tversky),
    "log_cosh_dice": Loss("Log-cosh Dice", lambda sf, **o: sf.LogCoshDiceLoss(**o), log_cosh_dice),
    "lovasz": Loss("Lovasz", lambda sf, **o: sf.LovaszLoss(**o), lovasz, shapes=SORTED),
    "dice_ce": Loss("Dice + CE", lambda sf, **o: sf.DiceCELoss(**o), dice_ce, ("dice", "ce")),
    "combo": Loss("Combo", lambda sf, **o: sf.ComboLoss(**o), combo, ("dice", "ce")),
    "dice_focal": Loss("Dice + focal", lambda sf, **o: sf.DiceFocalLoss(**o), dice_focal, ("dice", "focal")),
    "ssim": Loss("SSIM", lambda sf, **o: sf.SSIMLoss(**o), ssim, shapes=WINDOWS),
    # The variance of plain code is a difference of squares: in float32 it may leave a flat window a standard deviation
    # of 2e-4, 2 % of C4, depending on how the weights of the window round.
    "cmssl": Loss("CMSSL", lambda sf, **o: sf.CMSSLLoss(**o), cmssl, shapes=WINDOWS, in_double=True),
    "four": Loss("Focal + Dice + Tversky + CE", _four, four, ("focal", "dice", "tversky", "ce")),
    "hausdorff_dt": Loss(
        "Hausdorff distance", lambda sf, **o: sf.HausdorffDTLoss(**o), hausdorff_dt, shapes=DISTANCE, compiles=False
    ),
    "boundary": Loss("Boundary", lambda sf, **o: sf.BoundaryLoss(**o), boundary, shapes=DISTANCE, compiles=False),
}


EVERY_SHAPE = list(dict.fromkeys([*SHAPES, *DISTANCE, *WINDOWS, *SORTED]))


def shapes_of(loss: str) -> Sequence[tuple[int, ...]]:
    return LOSSES[loss].shapes or SHAPES


# What the classes need that cannot be built without arguments, for the run over every public class.
ARGUMENTS: dict[str, Callable[[Any], LossFunction]] = {
    "CompoundLoss": _four,
    "RegionLoss": lambda sf: sf.RegionLoss(lambda s: 1 - (2 * s.tp + 1) / (s.pred + s.true + 1)),
}


# The libraries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    call: LossFunction
    options: Mapping[str, Any] = field(default_factory=dict)  # what makes segfuse's loss the same function
    scale: float = 1.0  # segfuse's value over the peer's


def part(package: str, name: str) -> Any:
    """Import `package.name`, if need be without running `package/__init__.py`.

    Importing SMP needs timm, and a torchvision wheel that was built for another torch cannot load its compiled
    operators. The losses need neither.
    """
    try:
        return importlib.import_module(f"{package}.{name}")
    except (ImportError, RuntimeError):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise
        for key in [key for key in sys.modules if key == package or key.startswith(package + ".")]:
            del sys.modules[key]
        stub = types.ModuleType(package)
        stub.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = stub
        return importlib.import_module(f"{package}.{name}")


def weighted(*terms: tuple[float, LossFunction]) -> LossFunction:
    return lambda logits, labels: sum((weight * term(logits, labels) for weight, term in terms), start=torch.zeros(()))


def images(build: Callable[[int], LossFunction], classes: int) -> LossFunction:
    """A loss on pairs of images, from its number of spatial axes; users bring probabilities and one-hot labels."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        call = build(logits.ndim - 2)
        if classes == 1:
            return call(logits.sigmoid(), labels)
        labels = labels.squeeze(1) if labels.ndim == logits.ndim else labels
        return call(logits.softmax(1), F.one_hot(labels, classes).movedim(-1, 1).to(logits.dtype))

    return loss


def monai(classes: int) -> dict[str, Peer]:
    m = part("monai", "losses")
    activation = {"sigmoid": True} if classes == 1 else {"softmax": True, "to_onehot_y": True}
    smooth = {**activation, "smooth_nr": 1.0, "smooth_dr": 1.0}
    dice, dice_ce = m.DiceLoss(**smooth), m.DiceCELoss(**smooth)
    tversky = m.TverskyLoss(alpha=0.3, beta=0.7, **smooth)
    if classes == 1:
        focal = m.FocalLoss(alpha=0.25, gamma=2.0)
        dice_focal = m.DiceFocalLoss(alpha=0.25, gamma=2.0, **smooth)
    else:  # DiceFocalLoss has a sigmoid focal term even with softmax=True, so the sum is what computes the same
        focal = m.FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True)
        dice_focal = weighted((1.0, dice), (classes, focal))
    distance = {**activation, "include_background": classes == 1}
    return {
        "hausdorff_dt": Peer(m.HausdorffDTLoss(**distance)),
        "boundary": Peer(m.BoundaryLoss(**distance)),
        "focal": Peer(focal, scale=classes),
        "dice": Peer(dice),
        "jaccard": Peer(m.DiceLoss(jaccard=True, **activation, smooth_nr=2.0, smooth_dr=2.0)),
        "tversky": Peer(tversky),
        "dice_ce": Peer(dice_ce),
        "combo": Peer(m.DiceCELoss(lambda_dice=0.5, lambda_ce=0.25, **smooth)),
        "dice_focal": Peer(dice_focal),
        "four": Peer(weighted((1.0, dice_ce), (classes, focal), (1.0, tversky))),
        "ssim": Peer(images(lambda axes: m.ssim_loss.SSIMLoss(spatial_dims=axes), classes)),
    }


def smp(classes: int) -> dict[str, Peer]:
    s = part("segmentation_models_pytorch", "losses")
    mode = "binary" if classes == 1 else "multiclass"
    batch = {"batch": True, "empty": "zero"}
    dice = s.DiceLoss(mode, smooth=0.5)
    tversky = s.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7)
    power = s.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7, gamma=0.75)
    if classes == 1:
        ce = s.SoftBCEWithLogitsLoss(ignore_index=None)
        focal, sigmoid = s.FocalLoss(mode, alpha=0.25, gamma=2.0), {}
    else:
        ce = s.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=None)
        focal, sigmoid = s.FocalLoss(mode, gamma=2.0), {"activation": "sigmoid", "alpha": None}
    losses = {
        "focal": Peer(focal, sigmoid),
        "ce": Peer(ce),
        "dice": Peer(dice, batch),
        "jaccard": Peer(s.JaccardLoss(mode, smooth=1.0), batch),
        "tversky": Peer(tversky, batch),
        "focal_tversky": Peer(power, {**batch, "power": "after_mean"}),
        "lovasz": Peer(s.LovaszLoss(mode), {"per_image": False}),
        "dice_ce": Peer(weighted((1.0, dice), (1.0, ce)), batch),
        "combo": Peer(weighted((0.5, dice), (0.25, ce)), batch),
    }
    if classes == 1:  # the multiclass FocalLoss is one-vs-rest, not softmax
        losses["dice_focal"] = Peer(weighted((1.0, dice), (1.0, focal)), batch)
        losses["four"] = Peer(weighted((1.0, focal), (1.0, dice), (1.0, tversky), (1.0, ce)), batch)
    return losses


def kornia(classes: int) -> dict[str, Peer]:
    k = part("kornia", "losses")
    similarity = images(lambda axes: (k.SSIMLoss if axes == 2 else k.SSIM3DLoss)(11, padding="valid"), classes)
    if classes == 1:  # dice_loss and tversky_loss take a softmax over the one channel: constant
        return {
            "focal": Peer(k.BinaryFocalLossWithLogits(alpha=0.25, gamma=2.0, reduction="mean")),
            "lovasz": Peer(lambda logits, labels: k.lovasz_hinge_loss(logits.flatten(3), labels[:, 0].flatten(2))),
            "ssim": Peer(similarity, scale=2),
        }

    def image(loss: LossFunction) -> LossFunction:
        return lambda logits, labels: loss(logits.flatten(3), labels.flatten(2))

    focal = k.FocalLoss(alpha=None, gamma=2.0, reduction="mean")
    dice = image(k.DiceLoss(average="macro"))
    tversky = image(k.TverskyLoss(alpha=0.3, beta=0.7))
    present = {"smooth": (0.0, 1e-8), "empty": "skip"}
    return {
        "focal": Peer(focal, scale=classes),
        "dice": Peer(dice, present),
        "tversky": Peer(tversky, present),
        "lovasz": Peer(image(k.lovasz_softmax_loss), {"per_image": True, "classes": "all"}),
        "dice_ce": Peer(weighted((1.0, dice), (1.0, F.cross_entropy)), present),
        "combo": Peer(weighted((0.5, dice), (0.25, F.cross_entropy)), present),
        "dice_focal": Peer(weighted((1.0, dice), (classes, focal)), present),
        "four": Peer(weighted((classes, focal), (1.0, dice), (1.0, tversky), (1.0, F.cross_entropy)), present),
        "ssim": Peer(similarity, scale=2),
    }


def torchvision(classes: int) -> dict[str, Peer]:
    sigmoid_focal_loss = part("torchvision", "ops.focal_loss").sigmoid_focal_loss
    if classes > 1:
        return {}
    return {"focal": Peer(lambda logits, labels: sigmoid_focal_loss(logits, labels, 0.25, 2.0, "mean"))}


def pytorch_msssim(classes: int) -> dict[str, Peer]:
    m = part("pytorch_msssim", "ssim")

    def build(axes: int) -> LossFunction:
        similarity = m.SSIM(data_range=1.0, channel=classes, spatial_dims=axes)
        return lambda p, y: 1 - similarity(p, y)

    return {"ssim": Peer(images(build, classes))}


LIBRARIES: dict[str, Callable[[int], dict[str, Peer]]] = {
    "monai": monai,
    "smp": smp,
    "kornia": kornia,
    "torchvision": torchvision,
    "pytorch_msssim": pytorch_msssim,
}
PACKAGES = {
    "monai": "monai",
    "smp": "segmentation-models-pytorch",
    "kornia": "kornia",
    "torchvision": "torchvision",
    "pytorch_msssim": "pytorch-msssim",
}  # as named on installation


def held(library: str, labels: Tensor, classes: int) -> Tensor:
    """The labels as the users of `library` hold them."""
    if classes == 1:
        return labels.float()
    return labels.unsqueeze(1) if library == "monai" else labels
