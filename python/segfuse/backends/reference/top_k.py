"""The definition of top_k: a stable sort."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.top_k import Selection
from .pixel_stats import refuses as refuses


def forward(values: Tensor, valid: Tensor | None, percent: float) -> Selection:
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    total = valid.sum(1, dtype=torch.float64)
    count = torch.where(total > 0, (total * percent / 100).floor().clamp(min=1), 0)
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    order = order.gather(1, torch.sort(valid.gather(1, order), dim=1, descending=True, stable=True).indices)
    rank = torch.arange(values.shape[1], device=values.device)
    chosen = torch.zeros_like(values, dtype=torch.uint8)
    chosen.scatter_(1, order, (rank < count[:, None]).to(torch.uint8))
    return Selection(chosen, torch.where(chosen > 0, values, 0).sum(1, dtype=torch.float64), count)
