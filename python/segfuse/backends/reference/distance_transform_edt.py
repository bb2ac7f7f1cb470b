"""distance_transform_edt in plain torch: one axis after the other, every pair of pixels of a line."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.distance_transform_edt import Request, instances


def refuses(input: Tensor, device: str | None = None) -> str | None:
    return None


def _squares(far: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """Squared distance from every pixel to the nearest one where ``far`` is False, inf if there is none; its indices.

    d(y) = min_j (s (y - j))^2 + d(j), along each axis in turn.
    """
    shape, n = far.shape, request.spatial
    d = torch.where(far, torch.inf, torch.zeros(shape, dtype=torch.float64, device=far.device))
    own = [torch.arange(side, device=far.device) for side in shape[-n:]]
    indices = [i.expand(shape) for i in torch.meshgrid(*own, indexing="ij")]
    for axis, size in zip(range(n - 1, -1, -1), reversed(request.spacing)):
        line = axis - n
        side = torch.arange(shape[line], dtype=torch.float64, device=far.device)
        if not len(side):
            continue
        d = d.movedim(line, -1)
        best = [(d + (size * (side - y)) ** 2).min(-1) for y in range(len(side))]
        d = torch.stack([b.values for b in best], line)
        winner = torch.stack([b.indices for b in best], line)
        indices = [i.gather(line, winner) for i in indices]
    missing = d.isinf()
    own = [i.expand(shape) for i in torch.meshgrid(*own, indexing="ij")]
    return d, torch.stack([torch.where(missing, o, i) for o, i in zip(own, indices)])


def _masks(input: Tensor, request: Request) -> Tensor:
    """Foreground, with an axis for the classes if they were given."""
    if request.threshold is not None:
        return input > request.threshold
    if request.classes is None:
        return input.to(torch.int64) != 0
    if not request.classes:
        return torch.zeros(request.output_shape(input), dtype=torch.bool, device=input.device)
    number = input.to(torch.int64)
    beyond = (number < 0) & (input.dtype == torch.uint64)  # 2^63 and above: no class number
    return torch.stack([(number == c) & ~beyond for c in request.classes], -request.spatial - 1)


def _labels(labels: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    total, nearest = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device), None
    for label in labels.unique():
        own = labels == label
        d, indices = _squares(own, request)
        total = torch.where(own, d, total)
        nearest = indices if nearest is None else torch.where(own, indices, nearest)
    if nearest is None:
        nearest = _squares(torch.zeros(labels.shape, dtype=torch.bool, device=labels.device), request)[1]
    return total, nearest


def _nearest_two(labels: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    none = torch.full((2, *labels.shape), torch.inf, dtype=torch.float64, device=labels.device)
    fields = [_squares(labels != label, request)[0] for label in labels[labels != 0].unique()]
    first, second = torch.cat([torch.stack([*fields]), none] if fields else [none]).topk(2, 0, largest=False).values
    return first, second


def forward(input: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    def length(d: Tensor) -> Tensor:
        return (d if request.squared else d.sqrt()).to(request.dtype)

    if request.mode == "nearest_two":
        first, second = _nearest_two(instances(input), request)
        return length(first).contiguous(), length(second).contiguous()
    if request.mode == "labels":
        d, indices = _labels(input.to(torch.int64), request)
    else:
        masks = _masks(input, request)
        d, indices = _squares(masks, request) if request.mode == "inside" else _labels(masks.long(), request)
    d = length(torch.where(d.isinf(), 0, d)).contiguous()
    if request.mode == "signed":
        d = torch.where(masks.contiguous(), -d, d)
    return d, indices.to(torch.int32) if request.indices else None
