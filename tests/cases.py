"""The shared table of cases: what every backend must get right, and the tensors of each case."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LABELS = tuple(
    getattr(torch, name)
    for name in "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64".split()  # noqa: SIM905
)
LAYOUTS = ("contiguous", "channels_last", "transposed", "permuted", "stepped", "offset", "expanded")


@dataclass(frozen=True)
class Case:
    """One input of a pass.

    ``target``: ``index`` (N, *) class numbers, ``index1`` (N, 1, *), ``hard`` 0/1 or ``soft`` shaped like the logits,
    ``flat`` (N, *) 0/1. ``ignored``: ``none``, ``some``, ``all`` or one whole ``sample``. ``weight``, ``mask``: absent,
    or ``flat`` (N, *), ``single`` (N, 1, *) or ``full`` (N, C, *). ``logits``: ``normal``, ``large``, ``infinite`` or
    ``poisoned`` (NaN and infinities under ignored pixels). ``layout`` is that of the logits, ``layout_of_others`` that
    of target, weight and mask.
    """

    shape: tuple[int, ...]  # (N, C, *spatial)
    mode: str = "multiclass"
    target: str = "index"
    ignored: str = "some"
    weight: str | None = None
    mask: str | None = None
    logits: str = "normal"
    layout: str = "contiguous"
    layout_of_others: str = "contiguous"
    from_logits: bool = True
    one_vs_rest: bool = False


def _binary(*shape: int, **more: Any) -> Case:
    return Case(shape, **{"mode": "binary", "target": "hard", **more})


def _multilabel(*shape: int, **more: Any) -> Case:
    return Case(shape, **{"mode": "multilabel", "target": "hard", **more})


CASES: dict[str, Case] = {
    # shapes
    "odd_2d": Case((2, 3, 16, 17)),  # no axis divides a tile
    "one_pixel": Case((1, 2, 1, 1), ignored="none"),
    "empty_batch": Case((0, 3, 8, 8)),
    "no_pixels": Case((2, 3, 0, 4)),
    "no_spatial_axis": Case((33, 4)),
    "1d": Case((3, 3, 301)),
    "3d": Case((1, 3, 5, 9, 11)),
    "4d": Case((1, 2, 3, 4, 5, 7)),
    "2_classes": Case((2, 2, 13, 11)),
    "19_classes": Case((2, 19, 9, 15)),
    "33_classes": Case((1, 33, 23, 25)),  # longer tiles than 32 classes
    "117_classes": Case((1, 117, 7, 13)),
    "many_tiles": Case((2, 3, 61, 67)),
    # labels
    "index1": Case((2, 4, 9, 7), target="index1"),
    "none_ignored": Case((2, 3, 16, 17), ignored="none"),
    "all_ignored": Case((2, 3, 8, 8), ignored="all"),  # every sum and every gradient is zero
    "sample_ignored": Case((2, 3, 9, 8), ignored="sample"),
    "one_hot": Case((2, 4, 9, 13), target="hard"),
    "soft": Case((2, 4, 9, 13), target="soft"),
    "soft_none_ignored": Case((2, 19, 9, 13), target="soft", ignored="none"),
    # binary and multilabel
    "binary": _binary(2, 1, 16, 17),
    "binary_many_tiles": _binary(2, 1, 61, 67),
    "binary_none_ignored": _binary(2, 1, 16, 17, ignored="none"),
    "binary_all_ignored": _binary(2, 1, 8, 8, ignored="all"),
    "binary_one_pixel": _binary(1, 1, 1, ignored="none"),
    "binary_empty_batch": _binary(0, 1, 8, 8),
    "binary_flat": _binary(2, 1, 9, 7, target="flat"),
    "binary_soft": _binary(2, 1, 16, 17, target="soft"),
    "binary_3d": _binary(2, 1, 5, 7, 9),
    "multilabel": _multilabel(2, 3, 16, 17),
    "multilabel_soft": _multilabel(2, 5, 11, 7, target="soft"),
    # strides
    "strided": Case((2, 3, 8, 9), layout="transposed"),
    "channels_last": Case((2, 5, 8, 9), layout="channels_last"),
    "channels_last_3d": Case((1, 5, 4, 8, 9), layout="channels_last"),
    "permuted": Case((2, 3, 8, 9), layout="permuted", layout_of_others="permuted", weight="flat", mask="flat"),
    "stepped": Case((2, 3, 8, 9), layout="stepped", layout_of_others="stepped", weight="full", mask="flat"),
    "offset": Case((2, 3, 8, 9), layout="offset", layout_of_others="offset", weight="flat", mask="flat"),
    "expanded": Case((2, 3, 8, 9), layout="expanded"),
    "strided_others": Case((2, 3, 8, 9), layout_of_others="transposed", weight="single", mask="single"),
    "strided_one_hot": Case((2, 3, 8, 9), target="hard", layout="permuted", layout_of_others="channels_last"),
    "strided_binary": _binary(
        2, 1, 8, 9, layout="transposed", layout_of_others="stepped", weight="flat", mask="single"
    ),
    "strided_multilabel": _multilabel(
        2, 4, 8, 9, layout="channels_last", layout_of_others="permuted", weight="full", mask="full"
    ),
    # weights and masks
    "weight_flat": Case((2, 3, 16, 17), weight="flat"),
    "weight_single": Case((2, 3, 16, 17), weight="single"),
    "weight_full": Case((2, 3, 16, 17), weight="full"),
    "weight_full_none_ignored": Case((2, 3, 16, 17), weight="full", ignored="none"),
    "weight_soft": Case((2, 3, 16, 17), target="soft", weight="full"),
    "mask_flat": Case((2, 3, 16, 17), mask="flat"),
    "mask_single": Case((2, 3, 16, 17), mask="single", weight="flat"),
    "mask_soft": Case((2, 3, 16, 17), target="soft", mask="flat"),
    "weight_binary": _binary(2, 1, 16, 17, weight="flat", mask="flat"),
    "weight_multilabel": _multilabel(2, 3, 16, 17, weight="full", mask="full"),
    "weight_multilabel_flat": _multilabel(2, 3, 16, 17, weight="flat", mask="single"),
    # logits
    "large": Case((2, 3, 16, 17), logits="large"),
    "large_soft": Case((2, 3, 16, 17), logits="large", target="soft"),
    "large_binary": _binary(2, 1, 16, 17, logits="large"),
    "large_binary_soft": _binary(2, 1, 16, 17, logits="large", target="soft"),
    "infinite": Case((2, 4, 16, 17), logits="infinite"),
    "infinite_binary": _binary(2, 1, 16, 17, logits="infinite"),
    "poisoned": Case((2, 3, 16, 17), logits="poisoned"),
    "poisoned_mask": Case((2, 3, 16, 17), logits="poisoned", mask="flat", weight="full"),
    "poisoned_one_hot": Case((2, 3, 16, 17), logits="poisoned", target="hard"),
    "poisoned_binary": _binary(2, 1, 16, 17, logits="poisoned"),
    "poisoned_multilabel": _multilabel(2, 3, 16, 17, logits="poisoned", weight="full"),
    "infinite_weight": Case((2, 4, 16, 17), logits="infinite", weight="full"),  # some weights are 0
    "infinite_binary_weight": _binary(2, 1, 16, 17, logits="infinite", target="soft", weight="flat"),
    # probabilities, and one sigmoid per class
    "probabilities_one_hot": Case((2, 3, 16, 17), from_logits=False, target="hard"),  # one class drops the pixel
    "probabilities_soft": Case((2, 3, 16, 17), from_logits=False, target="soft", mask="single"),
    "probabilities": Case((2, 3, 16, 17), from_logits=False),
    "probabilities_binary": _binary(2, 1, 16, 17, from_logits=False),
    "probabilities_binary_soft": _binary(2, 1, 16, 17, from_logits=False, target="soft"),
    "probabilities_multilabel": _multilabel(2, 3, 16, 17, from_logits=False, weight="full"),
    "one_vs_rest": Case((2, 3, 16, 17), one_vs_rest=True),
    "one_vs_rest_index1": Case((2, 3, 16, 17), one_vs_rest=True, target="index1", weight="full", mask="single"),
    "one_vs_rest_one_hot": Case((2, 3, 16, 17), one_vs_rest=True, target="soft"),
}


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides; ``expanded`` repeats the first sample."""
    if layout == "channels_last" and x.ndim >= 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed" and x.ndim >= 2:
        return x.mT.contiguous().mT
    if layout == "permuted":
        order = tuple(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    if layout == "stepped":
        roomy = x.new_empty((*x.shape[:-1], 2 * x.shape[-1] + 1)).fill_(1)
        roomy[..., 1::2] = x
        return roomy[..., 1::2]
    if layout == "offset":
        roomy = x.new_empty(x.numel() + 3).fill_(1)
        roomy[3:] = x.reshape(-1)
        return roomy[3:].view(x.shape)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x.contiguous()


def make(
    case: Case, dtype: torch.dtype, labels: torch.dtype | None = None, ignore_index: int | None = None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``input, target`` and the keywords of ``ops.pixel_stats.check``.

    The logits of one case are the same numbers in every dtype up to rounding.
    """
    random = torch.Generator().manual_seed(zlib.crc32(repr(case.shape).encode()))
    N, C, *spatial = case.shape
    flat, single = (N, *spatial), (N, 1, *spatial)
    labels = labels or (torch.float64 if case.target == "soft" else torch.int64)
    if ignore_index is None:
        ignore_index = -100 if holds(labels, -100) else 200

    x = 3 * torch.randn(case.shape, generator=random, dtype=torch.float64)
    if case.logits == "large":
        x = x * 30
    if not case.from_logits:
        x = torch.rand(case.shape, generator=random, dtype=torch.float64)
        if case.mode == "multiclass":
            x = torch.softmax(4 * x, 1)
        x = torch.where(
            torch.rand(x.shape, generator=random) < 0.05, x.round(), x
        )  # some certain, some below the clamp
    if case.logits == "infinite":
        gone = torch.rand(case.shape, generator=random) < 0.1
        if case.mode == "multiclass":
            gone[:, 0] = False
            x = x.masked_fill(gone, -torch.inf)
        else:
            x = torch.where(gone, torch.inf * x.sign(), x)
    x = x.to(dtype)

    if case.target in ("index", "index1"):
        y = torch.randint(0, C, flat if case.target == "index" else single, generator=random)
    elif case.target == "soft":
        y = torch.rand(case.shape, generator=random, dtype=torch.float64)
        y = y / y.sum(1, keepdim=True) if case.mode == "multiclass" else y
    elif case.mode == "multiclass":
        y = torch.nn.functional.one_hot(torch.randint(0, C, flat, generator=random), C).movedim(-1, 1)
    else:
        y = (torch.rand(flat if case.target == "flat" else case.shape, generator=random) < 0.4).long()
    dropped = torch.zeros(y.shape, dtype=torch.bool)
    if case.ignored == "some":
        dropped = torch.rand(y.shape, generator=random) < 0.15
        if case.target in ("hard", "soft") and case.mode == "multiclass":
            dropped = dropped & (
                torch.arange(C).reshape(1, C, *[1] * len(spatial)) == C - 1
            )  # one class drops the pixel
    elif case.ignored == "all":
        dropped[:] = True
    elif case.ignored == "sample":
        dropped[-1:] = True
    if not holds(labels, ignore_index):
        dropped[:] = False
    y = torch.where(dropped, ignore_index, y).to(labels)

    call: dict[str, Any] = {}
    if case.weight:
        shape = {"flat": flat, "single": single, "full": case.shape}[case.weight]
        w = torch.rand(shape, generator=random) * 2
        call["weight_map"] = torch.where(torch.rand(shape, generator=random) < 0.1, 0, w)
    if case.mask:
        shape = {"flat": flat, "single": single, "full": case.shape}[case.mask]
        call["mask"] = torch.rand(shape, generator=random) < 0.8
    if case.logits == "poisoned":
        under = ~kept(case, y, call.get("mask"), ignore_index)
        poison = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
        x = torch.where(under, poison[torch.randint(0, 3, x.shape, generator=random)], x)

    call = {name: lay_out(t, case.layout_of_others) for name, t in call.items()}
    call |= {
        "mode": case.mode,
        "from_logits": case.from_logits,
        "one_vs_rest": case.one_vs_rest,
        "ignore_index": ignore_index,
    }
    return lay_out(x, case.layout), lay_out(y, case.layout_of_others), call


def kept(case: Case, y: Tensor, mask: Tensor | None, ignore_index: int) -> Tensor:
    """Where the logits count: ``(N, C, *spatial)``."""

    def spread(t: Tensor) -> Tensor:
        return (t.unsqueeze(1) if t.ndim < len(case.shape) else t).expand(case.shape)

    valid = (y if y.is_floating_point() else y.to(torch.int64)) != ignore_index
    if case.mode == "multiclass" and case.target in ("hard", "soft") and not case.one_vs_rest:
        valid = valid.all(1, keepdim=True)
    return spread(valid) if mask is None else spread(valid) & spread(mask != 0)


def holds(labels: torch.dtype, value: int) -> bool:
    """Whether a label of this dtype can be ``value``."""
    if labels.is_floating_point:
        return True
    low, high = (0, 1) if labels == torch.bool else (torch.iinfo(labels).min, torch.iinfo(labels).max)
    return low <= value <= high
