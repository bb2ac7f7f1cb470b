"""Deep supervision: one criterion on the outputs of several resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ._base import CompoundLoss, Loss, number, one_of
from .combo import DiceCELoss

__all__ = ["DeepSupervisionLoss"]


class DeepSupervisionLoss(CompoundLoss):
    """``sum_i w_i criterion(output_i, target_i)`` over the outputs of a network, finest first.

    Args:
        criterion: any loss whose value is one number. Default: Dice plus cross-entropy.
        weights: one per output, or ``"half"``: 1, 1/2, 1/4, ..., or ``"equal"``: all 1. They are not normalised. An
            output of weight 0 costs nothing and stays in the graph with a gradient of 0, as DDP needs it.
        resize: how one target is brought to the sizes of the outputs: ``"nearest-exact"`` (MONAI) or ``"nearest"``
            (nnU-Net's trainer gives the targets ready-made). Labels keep their dtype and no class is mixed.
        stacked: the outputs come as one tensor ``(N, outputs, C, *spatial)``, as MONAI's DynUNet gives them.

    A plain tensor is the criterion's own case: evaluation without the coarse outputs needs no change of the loss.
    Source: Lee et al. 2015 (arXiv 1409.5185).
    """

    held_as: ClassVar = {"weights": "weights_by_output"}

    def __init__(
        self,
        criterion: Loss | None = None,
        *,
        weights: Sequence[float] | Literal["half", "equal"] = "half",
        resize: Literal["nearest-exact", "nearest"] = "nearest-exact",
        stacked: bool = False,
    ) -> None:
        super().__init__({"criterion": DiceCELoss() if criterion is None else criterion})
        self.weights_by_output: tuple[float, ...] | str = (
            one_of("weights", weights, ("half", "equal"))
            if isinstance(weights, str)
            else number("weights", tuple(weights))
        )
        self.resize = one_of("resize", resize, ("nearest-exact", "nearest"))
        self.stacked = bool(stacked)

    @property
    def criterion(self) -> Loss:
        return self.terms["criterion"]

    @criterion.setter
    def criterion(self, criterion: Loss) -> None:
        self.terms["criterion"] = criterion

    def weight(self, index: int) -> float:
        """Of one output."""
        if isinstance(self.weights_by_output, tuple):
            return float(self.weights_by_output[index])
        return 0.5**index if self.weights_by_output == "half" else 1.0

    def forward(
        self,
        input: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        *,
        weight_map: Tensor | None = None,
        mask: Tensor | None = None,
        distance_map: Any = None,
        return_terms: bool = False,
    ) -> Any:
        """As :meth:`Loss.forward`.

        Args:
            input: a list or tuple of outputs ``(N, C, *spatial)``, finest first; or one output.
            target: one target, which is resized to every output; or one for each output.
            weight_map, mask: resized like the target. distance_map: for outputs of one size.
            return_terms: also return the detached values of the outputs with a weight: ``output_0``, ...
        """
        options = {"weight_map": weight_map, "mask": mask, "distance_map": distance_map}
        if isinstance(input, Tensor) and self.stacked:
            input = input.unbind(1)
        if isinstance(input, Tensor):
            if not isinstance(target, Tensor):
                raise ValueError(
                    f"there is one output and {len(target)} targets. Try: loss(input, target[0]), or a list of outputs"
                )
            return super().forward(input, target, **options, return_terms=return_terms)
        if isinstance(input, Mapping):
            raise TypeError(
                "outputs must be a list, finest first; got a dictionary. Try: loss([outputs['out'], ...], target)"
            )
        targets = [target] * len(input) if isinstance(target, Tensor) else target
        if not input or len(targets) != len(input):
            raise ValueError(
                f"there must be one target, or one for each output; got {len(input)} outputs and {len(targets)} "
                "targets. Try: one target, which is resized to the outputs"
            )
        if isinstance(self.weights_by_output, tuple) and len(self.weights_by_output) != len(input):
            raise ValueError(
                f"there must be one weight for each output; got {len(self.weights_by_output)} weights and {len(input)} "
                f"outputs. Try: weights={[1.0] * len(input)} or weights='half'"
            )
        total: Any = 0.0
        values: dict[str, Tensor] = {}
        for i, (x, y) in enumerate(zip(input, targets, strict=True)):
            w = self.weight(i)
            if w == 0:
                total = total + x.flatten()[:0].sum().float()  # 0, and the output stays in the graph
                continue
            resized = {name: _fit(t, x, self.resize) for name, t in options.items()}
            value = super().forward(x, _fit(y, x, self.resize), **resized)
            total = total + w * value
            values[f"output_{i}"] = value.detach()
        return (total, values) if return_terms else total

    def extra_repr(self) -> str:
        return f"weights={self.weights_by_output!r}, resize={self.resize!r}, stacked={self.stacked}"


def _fit(x: Any, output: Tensor, resize: str) -> Any:
    """A target or map at the size of an output."""
    if not isinstance(x, Tensor):
        return x
    spatial = tuple(output.shape[2:])
    return x if tuple(x.shape[x.ndim - len(spatial) :]) == spatial else nearest(x, spatial, resize == "nearest-exact")


def nearest(x: Tensor, size: Sequence[int], exact: bool = True) -> Tensor:
    """The last axes of a tensor brought to ``size`` by picking pixels: any dtype, no mixing.

    Source: ``torch.nn.functional.interpolate``: pixel i of the result is pixel ``floor((i + 1/2) n / m)`` of n
    (``exact``), or ``floor(i n / m)``.
    """
    for axis, m in zip(range(x.ndim - len(size), x.ndim), size, strict=True):
        n = x.shape[axis]
        if n == m:
            continue
        i = torch.arange(m, device=x.device)
        x = x.index_select(axis, ((2 * i + 1) * n // (2 * m) if exact else i * n // m).clamp(max=n - 1))
    return x
