"""What the losses on windows share: pixels of a prediction and its target, and from d loss / dp to the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops.local_moments import Window
from ...ops.pixel_stats import Geometry, Tensors
from .._layout import ACTIVATION
from ._lanes import (
    LANES,
    constant,
    counting,
    exp_negative,
    log,
    log1p,
    magnitude,
    most,
    opposite,
    part,
    put,
    rounded,
    select,
    spread,
    take,
)
from ._lanes import total as total_of
from ._run import compiled, run
from ._tiles import Array, Operand, Piece
from ._windows import Sweep

CLAMP = 1e-7  # probabilities enter a logarithm no smaller than this
ELEMENTS = 1 << 16  # of a piece
LOT = 1 << 20  # logits whose windows are worked on together
_SIGMOID, _SOFTMAX = ACTIVATION["sigmoid"], ACTIVATION["softmax"]


@part
def _sigmoid(v: Any) -> Any:
    """p, 1 - p, and e^-|v|"""
    e = exp_negative(magnitude(v) * -1)
    r = constant(v, 1) / (e + 1)
    return select(v >= 0, r, e * r), select(v >= 0, e * r, r), e


@compiled
def _read(
    x: Array,
    x_at: int,
    x_step: int,
    target: Array,
    target_at: int,
    target_step: int,
    mask: Array,
    mask_at: int,
    mask_step: int,
    weight: Array,
    weight_at: int,
    weight_step: int,
    p: Array,
    y: Array,
    m: Array,
    u: Array,
    ce: Array,
    at: int,
    step: int,
    length: int,
    classes: int,
    activation: int,
    how: tuple[bool, bool, bool, bool, bool],
    ignore: float,
) -> int:
    """p, y, m, u = m times the weight and the cross-entropy ce of a run of pixels; an ignored pixel has only 0.

    Each tensor comes with the place of the first class and how far it is to the next. how: class numbers, mask,
    weight, ce is wanted, the classes exclude each other. Returns how many targets and weights are out of range.
    """
    index, masked, weighted, entropy, exclusive = how
    wrong = spread(x, 0)
    top = classes - 1 if index else 1
    for i in range(0, length, LANES):
        count = min(LANES, length - i)
        there = counting(x) < count
        label, highest, sum_, rest, below = spread(x, 0), spread(x, 0), spread(x, 0), spread(x, 0), spread(x, 0)
        valid, own = there, there
        if activation == _SOFTMAX:
            highest = take(x, x_at + i, count)
            for c in range(1, classes):
                highest = most(take(x, x_at + c * x_step + i, count), highest)
        for c in range(classes):
            if c == 0 or not index:
                label = take(target, target_at + c * target_step + i, count)
                valid = label != ignore
                if masked:
                    valid = valid & (take(mask, mask_at + c * mask_step + i, count) != 0)
                fits = (label >= 0) & (label <= top)
                if index:
                    fits = fits & (rounded(label) == label)
                wrong = wrong + select(there & valid & opposite(fits), spread(x, 1), 0)
                valid = valid & fits
            value = select(valid, label, 0)
            if index:
                own = valid & (label == c)
                value = select(own, spread(x, 1), 0)
            k = at + c * step + i
            put(y, k, count, value)
            one = select(valid, spread(x, 1), 0)
            put(m, k, count, one)
            if weighted:
                w = take(weight, weight_at + c * weight_step + i, count)
                wrong = wrong + select(there & (w < 0), spread(x, 1), 0)
                put(u, k, count, select(valid, w, 0))
            v = take(x, x_at + c * x_step + i, count)
            if activation == _SOFTMAX:
                e = exp_negative(v - highest)
                sum_ = sum_ + e
                rest = rest + select(own, 0, e)  # without the target class, which would swallow the small ones
                below = select(own, highest - v, below)
                put(p, k, count, e)
                continue
            v = select(valid, v, 0)
            loss = v
            if activation == _SIGMOID:
                q, _, e = _sigmoid(v)
                if entropy:
                    share = select(v >= 0, spread(x, 1) - value, value)  # of the side that the logit argues against
                    loss = log1p(e) + select((share == 0) & (v == v), 0, share * magnitude(v))
            else:
                q = v
                if entropy:
                    yes, no = select(v < CLAMP, CLAMP, v), select(spread(x, 1) - v < CLAMP, CLAMP, spread(x, 1) - v)
                    loss = value * log(yes) * -1
                    if not exclusive:
                        loss = loss - (spread(x, 1) - value) * log(no)
            put(p, k, count, select(valid, q, 0))
            if entropy:
                put(ce, k, count, select(valid, loss, 0))
        if activation == _SOFTMAX:
            loss = select(below == 0, log1p(rest), below + log(sum_))
            for c in range(classes):
                k = at + c * step + i
                one = take(m, k, count)
                put(p, k, count, select(one > 0, take(p, k, count) / sum_, 0))
                if entropy:
                    put(ce, k, count, select(take(y, k, count) > 0, loss, 0))
    return int(total_of(wrong))


@compiled
def _finish(
    x: Array,
    x_at: int,
    x_step: int,
    p: Array,
    y: Array,
    m: Array,
    by_p: Array,
    by_ce: Array,
    at: int,
    step: int,
    out: Array,
    out_at: int,
    out_step: int,
    length: int,
    classes: int,
    first_class: int,
    activation: int,
    entropy: bool,
    exclusive: bool,
) -> None:
    """From d loss / dp and d loss / dce to the gradient of the logits, 0 where ignored."""
    for i in range(0, length, LANES):
        count = min(LANES, length - i)
        dot, others, h = spread(x, 0), spread(x, 0), spread(x, 0)
        if activation == _SOFTMAX:
            for c in range(classes):
                k = at + c * step + i
                own, here = take(p, k, count), take(y, k, count) > 0
                others = others + select(here, 0, own)
                if c >= first_class:
                    dot = dot + take(by_p, k, count) * own
                    if entropy:
                        h = select(here, take(by_ce, k, count), h)
        for c in range(classes):
            k, to = at + c * step + i, out_at + c * out_step + i
            if c < first_class and activation != _SOFTMAX:
                put(out, to, count, spread(x, 0))
                continue
            g = take(by_p, k, count) if c >= first_class else spread(x, 0)
            target = take(y, k, count)
            if activation == _SOFTMAX:
                own = take(p, k, count)
                dz = own * (g - dot)
                if entropy:
                    # dz_k = p_k (g_k - sum_c g_c p_c) + h (p_k - [k = t]) of the target class t
                    dz = dz + h * select(target > 0, others * -1, own)
            else:
                v = take(x, x_at + c * x_step + i, count)
                direct = take(by_ce, k, count) if entropy else spread(x, 0)
                rest = spread(x, 1) - target
                if activation == _SIGMOID:
                    own, q, _ = _sigmoid(v)
                    dz = own * q * g + direct * (rest * own - target * q)
                else:
                    q = spread(x, 1) - v
                    dz = direct * select(v < CLAMP, 0, target / v) * -1
                    if not exclusive:
                        dz = dz + direct * select(q < CLAMP, 0, rest / q)
                    dz = g + dz
            put(out, to, count, select(take(m, k, count) > 0, dz, 0))


class Lot:
    """Some samples: their pixels, and the windows over some of their classes."""

    def __init__(self, loss: WindowLoss, samples: range) -> None:
        self.loss, self.samples = loss, samples
        g = loss.g
        shape = (len(samples), g.shape[1], g.pixels)
        self.p, self.y, self.m = (np.empty(shape, loss.dtype) for _ in range(3))
        self.u = self.m if loss.operands[3] is None else np.empty(shape, loss.dtype)
        self.ce = np.empty(shape if loss.entropy else (1, 1, 1), loss.dtype)
        self.invalid = 0
        found = np.zeros(loss.pieces * len(samples), np.int64)
        outputs = [t.reshape(-1) for t in (self.p, self.y, self.m, self.u, self.ce)]

        def read(first: int, last: int) -> None:
            rooms = [None if o is None else o.tile(1, loss.pixels) for o in loss.operands]
            for i in range(first, last):
                n, begin, end = loss.piece(i)
                inputs = loss.load(samples[n], begin, end, rooms)
                at = n * g.shape[1] * g.pixels + begin
                found[i] = _read(
                    *inputs, *outputs, at, g.pixels, end - begin, g.shape[1], ACTIVATION[g.activation],
                    (
                        g.index_target, loss.operands[2] is not None, loss.operands[3] is not None, loss.entropy,
                        g.exclusive,
                    ),
                    float(g.ignore_index),
                )  # fmt: skip

        run(read, len(found))
        self.invalid = int(found.sum())

    def room(self, wanted: bool = True) -> Array:
        """A number for every pixel of every class."""
        return np.empty(self.p.shape if wanted else 0, self.p.dtype)

    def windows(self) -> Iterator[Windows]:
        """The groups whose windows are worked on together."""
        g = self.loss.g
        used = range(self.loss.first_class, g.shape[1])
        each = max(1, LOT // max(g.pixels * len(self.samples), 1))
        for first in range(0, len(used), each):
            yield Windows(self, used[first : first + each])

    def finish(self, by_p: Array, by_ce: Array | None, grad: Tensor) -> None:
        """Writes the gradient of the samples."""
        loss, g = self.loss, self.loss.g
        output = Operand(grad, g.spatial, loss.dtype)
        flat = [t.reshape(-1) for t in (self.p, self.y, self.m, by_p, by_p if by_ce is None else by_ce)]

        def body(first: int, last: int) -> None:
            room, x_room = output.tile(1, loss.pixels), loss.operands[0].tile(1, loss.pixels)
            for i in range(first, last):
                n, begin, end = loss.piece(i)
                own = self.samples[n]
                at = n * g.shape[1] * g.pixels + begin
                logits = loss.load(own, begin, end, [x_room, None, None, None])[:3]
                start = own * g.shape[1] * g.pixels + begin if output.in_place else 0
                _finish(
                    *logits, *flat, at, g.pixels, room.reshape(-1), start, g.pixels if output.in_place else loss.pixels,
                    end - begin, g.shape[1], loss.first_class, ACTIVATION[g.activation], by_ce is not None, g.exclusive,
                )  # fmt: skip
                output.store(Piece(own, own + 1, begin, end), room)

        run(body, loss.pieces * len(self.samples))


class Windows:
    """The windows of some classes of a lot."""

    def __init__(self, lot: Lot, classes: range) -> None:
        self.lot, self.classes = lot, classes
        g, loss = lot.loss.g, lot.loss
        self.groups = [(n, c) for n in range(len(lot.samples)) for c in classes]
        self.sweep = Sweep(loss.window, g.spatial, len(self.groups), loss.dtype, True, self._read)
        s = self.sweep
        self.images = lot.p.reshape(-1, s.height, s.width), lot.y.reshape(-1, s.height, s.width)
        self.of_plane = np.array([(n * g.shape[1] + c) * s.depth + z for n, c in self.groups for z in range(s.depth)])
        self.places = self.of_plane * (s.height * s.width)
        self.margins = tuple(r * loss.window.valid for r in s.radius)

    def _read(self, plane: int, first: int, last: int, out: Array) -> None:
        for image, to in zip(self.images, out):
            to[...] = image[self.of_plane[plane], first:last]

    def moments(self, cov: bool, keep: bool, kernel: Callable[..., Any], *settings: Any) -> tuple[Array | None, Array]:
        """``kernel(first, last, layout, places, partial, moments, *settings)`` for some rows of windows after another.
        Returns what :meth:`Sweep.moments` does, and the sums that it wrote for every row, by group."""
        s = self.sweep
        partial = np.zeros((s.rows, 2))

        def use(first: int, last: int, moments: Array) -> None:
            layout = (s.depth, s.height, s.width, s.length, moments[0].size, s.step, *self.margins)
            kernel(first, last, layout, self.places, partial, moments.reshape(-1), *settings)

        before = s.moments(cov, use, keep)
        return before, partial.reshape(len(self.groups), -1, 2).sum(1).T

    def index(self) -> tuple[list[int], list[int]]:
        """Sample and class of every group, as an index."""
        return [self.lot.samples[n] for n, _ in self.groups], [c for _, c in self.groups]

    def back(self, adjoint: Array, moments: Array | None, cov: bool, by_p: Array, add: bool) -> None:
        """Writes d loss / dp of every pixel, or adds it."""
        to = by_p.reshape(-1, self.sweep.height, self.sweep.width)

        def write(plane: int, first: int, last: int, gradient: Array) -> None:
            own = to[self.of_plane[plane], first:last]
            np.add(own, gradient, out=own) if add else np.copyto(own, gradient)

        self.sweep.back(adjoint, moments, cov, write)


class WindowLoss:
    """A call."""

    def __init__(self, x: Tensors, g: Geometry, window: Window, first_class: int, entropy: bool) -> None:
        self.g, self.window, self.first_class, self.entropy = g, window, first_class, entropy
        self.dtype = np.dtype(np.float64 if x.input.dtype == torch.float64 else np.float32)
        self.operands: list[Any] = [
            None if t is None else Operand(t, g.spatial, self.dtype) for t in (x.input, x.target, x.mask, x.weight)
        ]
        self.pixels = max(LANES, ELEMENTS // max(g.shape[1], 1) // LANES * LANES)
        self.pieces = -(-g.pixels // self.pixels)  # of a sample

    def piece(self, i: int) -> tuple[int, int, int]:
        """Sample of the lot, first and last pixel."""
        begin = i % self.pieces * self.pixels
        return i // self.pieces, begin, min(begin + self.pixels, self.g.pixels)

    def load(self, n: int, begin: int, end: int, rooms: list[Any]) -> list[Any]:
        """Memory, place of the first class and distance to the next, of every tensor."""
        found: list[Any] = []
        for operand, room in zip(self.operands, rooms):
            if operand is None or room is None:
                found += [np.empty(0, self.dtype), 0, 0]
                continue
            operand.load(Piece(n, n + 1, begin, end), room)
            start = n * operand.channels * self.g.pixels + begin if operand.in_place else 0
            step = self.g.pixels if operand.in_place else room.shape[2]
            found += [room.reshape(-1), start, step if operand.channels > 1 else 0]
        return found

    def lots(self) -> Iterator[Lot]:
        N, C, S = *self.g.shape[:2], self.g.pixels
        if not N * C * S:
            return
        each = max(1, LOT // (C * S))
        for first in range(0, N, each):
            yield Lot(self, range(first, min(first + each, N)))
