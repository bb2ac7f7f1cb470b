"""How MONAI reads a call: activations, one-hot targets, the background, ignored pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ...ops.pixel_stats import NEVER
from .._adapter import (
    Call,
    Explained,
    Reading,
    bare,
    numbers,
    warn,
)

Weight = Sequence[float] | float | int | Tensor | None


def _reduction(value: Any) -> str:
    """A name or a member of MONAI's enumeration."""
    name = str(getattr(value, "value", value))
    if name not in ("none", "mean", "sum"):
        raise ValueError(f'Unsupported reduction: {name}, available options are ["mean", "sum", "none"].')
    return name


class _Segmentation(Explained, _Loss):
    """Options that nearly every loss of MONAI has."""

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable[[Tensor], Tensor] | None,
        reduction: str,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        _check_activation(sigmoid, softmax, other_act)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act


def _check_activation(sigmoid: bool, softmax: bool, other_act: Any) -> None:
    if other_act is not None and not callable(other_act):
        raise TypeError(f"other_act must be None or callable but is {type(other_act).__name__}.")
    if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
        raise ValueError("Incompatible values: more than 1 of [sigmoid=True, softmax=True, other_act is not None].")


def _extent(self: Any, input: Tensor) -> bool | str:
    """What is summed over besides space; without spatial axes MONAI sums over all there is."""
    return "all" if input.ndim == 2 and not self.batch else bool(self.batch)


@dataclass
class _Read(Call):
    drop: bool = False  # leaves out class 0
    channels: int = 1  # that are left

    def shaped(self, x: Tensor) -> Tensor:
        """With one axis for every spatial one, as MONAI returns it without a reduction."""
        return x.reshape((*x.shape, *[1] * (self.input.ndim - 2)))


def _ignored(option: str) -> None:
    warn(f"single channel prediction, `{option}` ignored.")


def _read(
    self: Any,
    input: Tensor,
    target: Tensor,
    error: type[Exception] = AssertionError,
    keep_mask: bool = False,
    **changed: Any,
) -> _Read:
    """How ``self`` reads a call; ``changed`` replaces its options."""

    def option(name: str, default: Any = None) -> Any:
        return changed.get(name, getattr(self, name, default))

    input, target = bare(input), bare(target)
    channels = input.shape[1]
    softmax, sigmoid, index = option("softmax"), option("sigmoid"), option("to_onehot_y")
    if softmax and channels == 1:
        _ignored("softmax=True")
        softmax = False
    if option("other_act") is not None:
        input = option("other_act")(input)
    if index and channels == 1:
        _ignored("to_onehot_y=True")
        index = False
    drop = not option("include_background")
    if drop and channels == 1:
        _ignored("include_background=False")
        drop = False
    if index:
        target = target if target.ndim > 1 else target.unsqueeze(1)
        if target.shape[1] != 1:
            raise AssertionError(
                f"labels should have a channel with length equal to one; got {tuple(target.shape)}. "
                "Try: to_onehot_y=False for a target that is one-hot already"
            )
        shape = (target.shape[0], channels, *target.shape[2:])
    else:
        shape = tuple(target.shape)
    if shape != tuple(input.shape):
        raise error(
            f"ground truth has different shape ({shape}) from input ({tuple(input.shape)}). "
            "Try: to_onehot_y=True for a target of class numbers"
        )
    ignore_index, mask = option("ignore_index"), None
    if ignore_index is not None and not (index or channels == 1):
        mask = _mask_of_one_hot(target, ignore_index)
        ignore_index = None
        if mask.dtype != torch.bool and not keep_mask:  # shares of pixels: times prediction and target
            input = input.softmax(1) if softmax else input.sigmoid() if sigmoid else input
            input, target, mask, softmax, sigmoid = input * mask, target * mask, None, False, False
    exclusive = bool(softmax)
    mode = "multiclass" if index or exclusive else "multilabel" if channels > 1 else "binary"
    reading = Reading(
        mode=mode,  # type: ignore[arg-type]
        from_logits=bool(softmax or sigmoid),
        one_vs_rest=index and not exclusive,
        ignore_index=NEVER if ignore_index is None else int(ignore_index),
    )
    return _Read(input, target, reading, mask, drop=drop, channels=channels - drop)


def _mask_of_one_hot(target: Tensor, ignore_index: int) -> Tensor:
    """Pixels of another class than the ignored one (of a soft target, shares of them); for a number that is no class,
    those of any class."""
    if 0 <= ignore_index < target.shape[1]:
        ignored = target[:, ignore_index : ignore_index + 1]
        hard = not ignored.dtype.is_floating_point or bool(((ignored == 0) | (ignored == 1)).all())
        return ignored != 1 if hard else 1 - ignored
    return target.sum(1, keepdim=True) > 0


def _class_weights(self: Any, channels: int) -> tuple[float, ...] | None:
    """The weights of a Dice loss, which a single channel does not use."""
    if self.class_weight is None or channels == 1:
        return None
    if self.class_weight.ndim == 0:
        self.class_weight = torch.as_tensor([self.class_weight] * channels)
    weights: tuple[float, ...] = numbers(self.class_weight)
    if len(weights) != channels:
        raise ValueError(
            "The length of the `weight` sequence should be the same as the number of classes. "
            "If `include_background=False`, the weight should not include the background category class 0."
        )
    if min(weights) < 0:
        raise ValueError("the value/values of the `weight` should be no less than 0.")
    return weights
