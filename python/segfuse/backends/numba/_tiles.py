"""Tensors of any dtype and strides as kernels take them: float32 or float64, ``(N, C, S)``, contiguous.

Where a tensor is that already, or of a dtype that the kernel converts in registers, it is read and written in place.
Otherwise the pixels of a piece are copied to a tile that stays in cache, and the results back: NumPy does strides and
dtypes but those of 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._half import narrow, widen
from ._run import compiled, view

Array = NDArray[Any]
WIDE = 4096  # pixels; NumPy takes three times as long for a row of int64, but needs no call of a kernel
NUMBERS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}  # what `_half` reads and writes, and as what
LABELS = {torch.bool: torch.uint8, torch.uint8: torch.uint8, torch.int64: torch.int64}  # those people have


class Piece:
    """Samples ``first`` to ``last``, pixels ``begin`` to ``end``."""

    __slots__ = ("begin", "end", "first", "last")

    def __init__(self, first: int, last: int, begin: int, end: int) -> None:
        self.first, self.last, self.begin, self.end = first, last, begin, end


class Operand:
    """A tensor, cut into pieces. ``shape`` is ``(N, C or 1, *spatial)``. ``known``: dtypes that the kernel converts."""

    def __init__(
        self, x: Tensor, spatial: tuple[int, ...], computed: Any, known: Mapping[torch.dtype, torch.dtype] | None = None
    ) -> None:
        if x.ndim == len(spatial) + 1:
            x = x.unsqueeze(1)
        self.computed = np.dtype(computed)
        self.half = x.dtype in (torch.float16, torch.bfloat16)
        self.spatial = view(x)
        self.channels = x.shape[1]
        try:
            flat = x.view(*x.shape[:2], prod(spatial))
        except RuntimeError:  # the strides of the spatial axes cannot be joined
            self.flat: Array | None = None
            self.in_place = False
            return
        own = not self.half and view(flat).dtype == self.computed
        seen = None if own or known is None else known.get(x.dtype)
        self.in_place = flat.is_contiguous() and (own or seen is not None)
        self.flat = view(flat.view(seen) if self.in_place and seen is not None else flat)

    def tile(self, most: int, pixels: int) -> Array:
        """Memory for the copy of a piece; the tensor itself where none is needed."""
        if self.in_place:
            assert self.flat is not None
            return self.flat
        return np.empty((most, self.channels, pixels), self.computed)

    def load(self, piece: Piece, tile: Array) -> None:
        if self.in_place:
            return
        for n in range(piece.first, piece.last):
            out = tile[n - piece.first, :, : piece.end - piece.begin]
            if self.flat is None:
                for c in range(self.channels):
                    _copy(out[c], self.spatial[n, c].flat[piece.begin : piece.end], self.half)
            else:
                _copy(out, self.flat[n, :, piece.begin : piece.end], self.half)

    def store(self, piece: Piece, tile: Array) -> None:
        if self.in_place:
            return
        length = piece.end - piece.begin
        for n in range(piece.first, piece.last):
            found = tile[n - piece.first, :, :length]
            if self.half and self.flat is not None:
                narrow(found, self.flat[n, :, piece.begin : piece.end])
                continue
            if self.half:
                packed = np.empty(found.shape, self.spatial.dtype)
                narrow(found, packed)
                found = packed
            if self.flat is not None:
                np.copyto(self.flat[n, :, piece.begin : piece.end], found, casting="unsafe")
                continue
            for c in range(self.channels):
                self.spatial[n, c].flat[piece.begin : piece.end] = found[c]


def _copy(out: Array, x: Array, half: bool) -> None:
    if half:
        widen(x, out)
    elif x.dtype == np.int64 and x.ndim == 2 and len(x) == 1 and x.shape[1] >= WIDE and x.strides[1] == x.itemsize:
        _from_int64(out[0], x[0])
    else:
        np.copyto(out, x, casting="unsafe")


@compiled
def _from_int64(out: Any, x: Any) -> None:
    for i in range(len(out)):
        out[i] = x[i]
