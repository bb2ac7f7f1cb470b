"""A group of a pair of probabilities and hard target as kernels take it: rows of whole lanes, and zeros around."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops._hard_pair import HardPair
from ._lanes import LANES
from ._run import view
from ._tiles import Array


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    if device != "cpu":
        return f"it runs on the CPU, the input is on {device}"
    return None if input.dtype in (torch.float32, torch.float64) else f"{input.dtype} is not computed in"


class Pair:
    """Arrays of a pair with three spatial axes; missing ones come first and have length 1."""

    def __init__(self, pair: HardPair) -> None:
        spatial = pair.p.shape[2:]
        self.dims = len(spatial)
        self.sides = (*[1] * (3 - self.dims), *spatial)
        self.first, self.index = pair.first, pair.index
        self.p, self.code = self._spatial(pair.p), self._spatial(pair.code)
        self.weight = None if pair.weight is None else self._spatial(pair.weight)
        self.dtype: Any = self.p.dtype
        # zeros around, where there is an axis: a row of pixels begins one place after the row does
        self.around = tuple(int(self.dims > 2 - d) for d in range(2))
        self.pitch = -(-self.sides[2] // LANES) * LANES + 2
        self.padded = (*(side + 2 * beside for side, beside in zip(self.sides, self.around)), self.pitch)

    def _spatial(self, x: Tensor) -> Array:
        return view(x).reshape(*x.shape[:2], *self.sides)

    @property
    def layout(self) -> tuple[int, int, int, int, int, int]:
        """Length of the axes, zeros around planes and rows, and the length of a row in memory."""
        return (*self.sides, *self.around, self.pitch)

    @property
    def groups(self) -> tuple[int, int]:
        return self.p.shape[0], self.p.shape[1] - self.first

    def of(self, n: int, c: int) -> tuple[Array, Array, Array, Array]:
        """p, y, valid and u of class ``first + c``."""
        c += self.first
        code = self.code[n, 0 if self.index else c]
        valid = code >= 0
        y = (code == (c if self.index else 1)).astype(self.dtype)
        if self.weight is None:
            return self.p[n, c], y, valid, valid.astype(self.dtype)
        return self.p[n, c], y, valid, np.where(valid, self.weight[n, min(c, self.weight.shape[1] - 1)], 0)

    def field(self, x: Array | None, dtype: Any = None) -> Array:
        """Padded memory, with the values of x."""
        found = np.zeros(int(np.prod(self.padded)) + LANES, dtype or self.dtype)
        if x is not None:
            self.inside(found)[...] = x
        return found

    def inside(self, field: Array) -> Array:
        whole = field[:-LANES].reshape(self.padded)
        z, y = (slice(beside, side + beside) for side, beside in zip(self.sides, self.around))
        return whole[z, y, 1 : 1 + self.sides[2]]
