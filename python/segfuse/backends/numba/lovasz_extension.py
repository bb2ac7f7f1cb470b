"""lovasz_extension in Numba: keys of every pixel, a partition into cells of nearby errors, and NumPy's sort.

The memory of the slopes first holds keys: the bits of the error, with the sign bit for a positive. Cells share the
highest bits of a key; those below the last positive have no weight and go nowhere. A few cells together are sorted and
weighed at a time, each pixel with the address to which its slope goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops.lovasz_extension import Problems, classes_at_a_time
from ...ops.pixel_stats import Geometry, Tensors
from ._lanes import (
    LANES,
    bits,
    constant,
    counting,
    exp_negative,
    load,
    most,
    opposite,
    part,
    put,
    rounded,
    select,
    spread,
    store,
    take,
)
from ._lanes import total as total_of
from ._run import compiled, refuses, run, view
from ._tiles import Array, Operand, Piece

__all__ = ["backward", "forward", "refuses"]

CLAMP = 1e-7  # probabilities enter a logarithm no smaller than this
ELEMENTS = 1 << 16  # of a piece
CELLS = 1 << 13  # 32 for each power of two of a float error; the last is for pixels without an error
RUN, MOST_RUNS = 1 << 17, 32  # pixels that share counts
SORTED = 1 << 15  # pixels, at least, that are sorted together
LARGE = 1 << 19  # pixels; a larger problem has all threads for itself
# Of float32 and float64: the sign bit, NaN, and what stands for no error
BITS = {4: (-(1 << 31), 0x7FC00000, 0x7FFFFFFF), 8: (-(1 << 63), 0x7FF8 << 48, (1 << 63) - 1)}


def _each(kernel: Callable[..., Any], pieces: int, *arguments: Any) -> None:
    kernel(0, pieces, *arguments)


# ---------------------------------------------------------------------------------------------------- keys


@part
def _key(error: Any, positive: Any, has_error: Any, special: tuple[int, int, int]) -> Any:
    sign, nan, none = special
    size = (bits(error) | sign) ^ sign
    size = select(has_error, select(error == error, size, nan), none)
    return select(positive, size | sign, size)


@part
def _fits(t: Any, top: float) -> Any:
    """Where a label is a whole number from 0 to top."""
    return (t >= 0) & (t <= top) & (rounded(t) == t)


@compiled
def _keys(
    x: Array,
    x_at: int,
    x_step: int,
    y: Array,
    y_at: int,
    y_step: int,
    m: Array,
    m_at: int,
    m_step: int,
    keys: Array,
    at: int,
    step: int,
    wanted: Array,
    length: int,
    classes: int,
    first: int,
    how: tuple[bool, bool, bool, bool],
    ignore: float,
    special: tuple[int, int, int],
    p: Array,
) -> int:
    """Keys of a run of pixels, of the classes from ``first`` on; how many targets are out of range.

    Each tensor comes with the place of the first class and how far it is to the next. how: hinge, softmax, class
    numbers, mask. p: room for the probabilities.
    """
    hinge, softmax, index, masked = how
    wrong = spread(x, 0)
    top = classes - 1 if index else 1
    for i in range(0, length, LANES):
        count = min(LANES, length - i)
        there = counting(x) < count
        label, valid = spread(x, 0), there
        scale, value = label, label
        if not hinge:
            for c in range(1 if index else classes):  # one ignored class drops the pixel
                label = take(y, y_at + c * y_step + i, count)
                kept = label != ignore
                if masked:
                    kept = kept & (take(m, m_at + i, count) != 0)
                fits = _fits(label, top)
                wrong = wrong + select(there & kept & opposite(fits), spread(x, 1), 0)
                valid = valid & kept & fits
        if softmax:
            highest = take(x, x_at + i, count)
            for c in range(1, classes):
                highest = most(take(x, x_at + c * x_step + i, count), highest)
            for c in range(classes):
                value = exp_negative(take(x, x_at + c * x_step + i, count) - highest)
                store(p, c * LANES, value)
                scale = scale + value
            scale = spread(x, 1) / scale
        for j in range(len(wanted)):
            c = first + j
            if softmax:
                value = load(p, c * LANES) * scale
            else:
                value = take(x, x_at + c * x_step + i, count)
            if not index:
                label = take(y, y_at + c * y_step + i, count)
            if hinge:
                kept = label != ignore
                if masked:
                    kept = kept & (take(m, m_at + c * m_step + i, count) != 0)
                fits = _fits(label, top)
                wrong = wrong + select(there & kept & opposite(fits), spread(x, 1), 0)
                valid = kept & fits
                error = spread(x, 1) - value * (label * 2 - 1)
                positive, has_error = valid & (label == 1), valid & opposite(error <= 0)
            else:
                positive, has_error = valid & (label == (c if index else 1)), valid
                error = select(positive, spread(x, 1), 0) - value
            if not wanted[j]:
                has_error = error != error
                has_error = has_error ^ has_error
            put(keys, at + j * step + i, count, _key(error, positive, has_error, special))
    return int(total_of(wrong))


# ---------------------------------------------------------------------------------------------------- sorting

# A problem is a set of samples of one class, `stride` apart in memory, S pixels each. Its pixels are cut into runs.


@compiled
def _count(
    first: int,
    last: int,
    keys: Array,
    base: int,
    stride: int,
    S: int,
    run_: int,
    pixels: int,
    shift: int,
    counts: Array,
) -> None:
    """counts: ``(runs, CELLS, 2)``, negatives and positives."""
    none = (1 << (shift + 13)) - 1
    for r in range(first, last):
        for cell in range(CELLS):
            counts[r, cell, 0] = counts[r, cell, 1] = 0
        at, end = r * run_, min((r + 1) * run_, pixels)
        while at < end:
            n, i = at // S, at % S
            count = min(S - i, end - at)
            start = base + n * stride + i
            for k in range(start, start + count):
                key = keys[k]
                counts[r, (key & none) >> shift, 1 if key < 0 else 0] += 1
            at += count


@compiled
def _lay_out(counts: Array, wanted: bool, present: bool, groups: Array) -> tuple[int, int, int, int]:
    """Turns counts into cursors. Returns the positives, the lowest cell with a weight, how many pixels have one, and
    how many groups of cells are sorted together; groups: begin, size, and the positives and negatives before."""
    runs = len(counts)
    G = 0
    for r in range(runs):
        for cell in range(CELLS):
            G += counts[r, cell, 1]
    lowest, kept, F, B, found = CELLS - 1, 0, 0, 0, 0
    if wanted and (G > 0 or not present):
        groups[0, 0] = groups[0, 1] = groups[0, 2] = groups[0, 3] = 0
        while lowest > 0 and (kept == 0 or F < G):
            lowest -= 1
            for r in range(runs):
                negatives, positives = counts[r, lowest, 0], counts[r, lowest, 1]
                counts[r, lowest, 0] = kept
                kept += negatives + positives
                F += positives
                B += negatives
            groups[found, 1] = kept - groups[found, 0]
            if groups[found, 1] >= SORTED:
                found += 1
                groups[found, 0], groups[found, 1], groups[found, 2], groups[found, 3] = kept, 0, F, B
        if groups[found, 1] > 0:
            found += 1
    for r in range(runs):  # a place of its own for what goes nowhere
        for cell in range(lowest):
            counts[r, cell, 0] = kept + r
        counts[r, CELLS - 1, 0] = kept + r
    return G, lowest, kept, found


@compiled
def _partition(
    first: int,
    last: int,
    keys: Array,
    base: int,
    stride: int,
    S: int,
    run_: int,
    pixels: int,
    shift: int,
    counts: Array,
    lowest: int,
    sorted_: Array,
    places: Array,
) -> None:
    """Writes what has a weight to its cell, so that ascending order is that of descending errors, and 0 for its slope.

    sorted_: the error's bits and the place; of 64 bits the error's alone, and the places by themselves.
    """
    wide = len(places) > 0
    none = (1 << (shift + 13)) - 1
    least = lowest << shift
    for r in range(first, last):
        at, end = r * run_, min((r + 1) * run_, pixels)
        while at < end:
            n, i = at // S, at % S
            count = min(S - i, end - at)
            start = n * stride + i
            for k in range(start, start + count):
                key = keys[base + k]
                size, positive = key & none, 1 if key < 0 else 0
                cell = size >> shift
                cursor = counts[r, cell, 0]
                place = (k << 1) | positive
                if wide:
                    sorted_[cursor] = none - size
                    places[cursor] = place
                else:
                    sorted_[cursor] = ((none - size) << 33) | place
                counts[r, cell, 0] = cursor + (1 if size >= least and cell < CELLS - 1 else 0)
                keys[base + k] = 0
            at += count


@compiled
def _weigh(
    sorted_: Array, places: Array, G: int, F: int, B: int, slopes: Array, base: int, keep: bool, none: int
) -> float:
    """Slopes of sorted pixels, of which ``F`` positives and ``B`` negatives come before; their part of the loss."""
    wide = len(places) > 0
    sum_ = 0.0
    for i in range(len(sorted_)):
        place = places[i] if wide else np.int64(sorted_[i] & np.uint64(0x1FFFFFFFF))
        if wide:
            error = np.int64(none - np.int64(sorted_[i])).view(np.float64)
        else:
            error = np.float64(np.int32(none - np.int64(sorted_[i] >> np.uint64(33))).view(np.float32))
        union = float(G + B + 1)
        if place & 1:
            weight = 1.0 / (G + B)
            F += 1
        elif union == 1.0:  # without any positive the first pixel has it all
            weight = 1.0
            B += 1
        else:
            weight = (G - F) / (union * (union - 1.0))
            B += 1
        if weight > 0:
            sum_ += error * weight
        if keep:
            slope = -weight if place & 1 else weight
            slopes[base + (place >> 1)] = slope if error == error else error
    return sum_


# ---------------------------------------------------------------------------------------------------- gradient


@compiled
def _softmax_gradient(
    x: Array,
    x_at: int,
    x_step: int,
    slopes: Array,
    at: int,
    step: int,
    out: Array,
    out_at: int,
    out_step: int,
    coefficient: Array,
    length: int,
    p: Array,
) -> None:
    """dL/dz_k = p_k (g_k - sum_c g_c p_c) with g = dL/dp, which is 0 for every class of an ignored pixel."""
    classes = len(coefficient)
    for i in range(0, length, LANES):
        count = min(LANES, length - i)
        highest = take(x, x_at + i, count)
        for c in range(1, classes):
            highest = most(take(x, x_at + c * x_step + i, count), highest)
        scale = spread(x, 0)
        for c in range(classes):
            value = exp_negative(take(x, x_at + c * x_step + i, count) - highest)
            store(p, c * LANES, value)
            scale = scale + value
        scale = spread(x, 1) / scale
        dot = spread(x, 0)
        every = dot == dot
        for c in range(classes):
            slope = take(slopes, at + c * step + i, count)
            value = load(p, c * LANES) * scale
            store(p, c * LANES, value)
            dot = dot + slope * coefficient[c] * value
            every = every & (slope == 0)
        for c in range(classes):
            slope = take(slopes, at + c * step + i, count)
            found = load(p, c * LANES) * (slope * coefficient[c] - dot)
            put(out, out_at + c * out_step + i, count, select(every, spread(x, 0), found))


@part
def _by_logarithm(p: Any) -> Any:
    """d log(max(p, CLAMP)) / dp"""
    return select(p < CLAMP, 0, constant(p, 1) / p)


@compiled
def _class_gradient(
    x: Array,
    x_at: int,
    x_step: int,
    slopes: Array,
    at: int,
    step: int,
    out: Array,
    out_at: int,
    out_step: int,
    coefficient: Array,
    length: int,
    scores: bool,
) -> None:
    for c in range(len(coefficient)):
        k = spread(x, coefficient[c])
        for i in range(0, length, LANES):
            count = min(LANES, length - i)
            slope = take(slopes, at + c * step + i, count)
            found = slope * k
            if scores:
                p = take(x, x_at + c * x_step + i, count)
                found = found * (_by_logarithm(p) + _by_logarithm(spread(x, 1) - p))
            put(out, out_at + c * out_step + i, count, select(slope == 0, 0, found))


# ---------------------------------------------------------------------------------------------------- a call


class _Call:
    """What the passes of a call share."""

    def __init__(self, x: Tensors, g: Geometry, how: Problems) -> None:
        self.g, self.how = g, how
        self.dtype = np.dtype(np.float64 if x.input.dtype == torch.float64 else np.float32)
        self.operands = [None if t is None else Operand(t, g.spatial, self.dtype) for t in (x.input, x.target, x.mask)]
        self.scores = how.hinge and g.activation == "identity"  # probabilities in, scores wanted

    def pieces(self) -> tuple[int, int, int]:
        """How many there are, of a sample, and their pixels."""
        pixels = max(LANES, ELEMENTS // max(self.g.shape[1], 1) // LANES * LANES)
        each = -(-self.g.pixels // pixels)
        return self.g.shape[0] * each, each, pixels

    def rooms(self, pixels: int) -> list[Array]:
        """A thread's own memory for pieces."""
        none = np.empty((1, 1, 1), self.dtype)
        return [none if o is None else o.tile(1, pixels) for o in self.operands]

    def read(self, n: int, begin: int, end: int, rooms: list[Array]) -> list[Any]:
        """Memory, place of the first class and distance to the next, of logits, target and mask."""
        found: list[Any] = []
        for operand, room in zip(self.operands, rooms):
            if operand is None:
                found += [room.reshape(-1), 0, 0]
                continue
            operand.load(Piece(n, n + 1, begin, end), room)
            start = n * operand.channels * self.g.pixels + begin if operand.in_place else 0
            step = self.g.pixels if operand.in_place else room.shape[2]
            found += [room.reshape(-1), start, step if operand.channels > 1 else 0]
        return found


def forward(x: Tensors, g: Geometry, how: Problems) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Losses and pixels of every class ``(P, C)``, slopes ``(N, C, S)`` and the number of targets out of range.

    Without slopes to keep their memory holds the keys of a few classes after another.
    """
    call = _Call(x, g, how)
    N, C, S = *g.shape[:2], g.pixels
    value, positives = np.zeros((2, *how.count(g)))
    lot = classes_at_a_time(C, how)
    slope = torch.empty((N, lot, S), dtype=torch.float64 if call.dtype == np.float64 else torch.float32, device="cpu")
    invalid = 0
    for first in range(0, C if slope.numel() else 0, lot):
        classes = range(first, min(first + lot, C))
        found = _write_keys(call, classes, view(slope))
        invalid = invalid + found if how.hinge else found  # exclusive classes share their target
        _solve_all(call, classes, view(slope), value, positives)
    return torch.from_numpy(value), torch.from_numpy(positives), slope if how.keep_slopes else None, invalid


def _write_keys(call: _Call, classes: range, slope: Array) -> int:
    g, how = call.g, call.how
    pieces, each, pixels = call.pieces()
    keys = slope.view(np.int32 if slope.itemsize == 4 else np.int64).reshape(-1)
    wanted = np.array([how.wanted[c] for c in classes])
    switches = how.hinge, g.activation == "softmax", g.index_target and not how.hinge, call.operands[2] is not None
    invalid = np.zeros(pieces, np.int64)

    def part_(first: int, last: int) -> None:
        rooms, p = call.rooms(pixels), np.empty(g.shape[1] * LANES, call.dtype)
        for piece in range(first, last):
            n, begin = piece // each, piece % each * pixels
            end = min(begin + pixels, g.pixels)
            read = call.read(n, begin, end, rooms)
            if call.scores:
                read[:3] = _score(read, g.shape[1], end - begin), 0, end - begin
            invalid[piece] = _keys(
                *read,
                keys,
                n * slope[0].size + begin,
                g.pixels,
                wanted,
                end - begin,
                g.shape[1],
                classes.start,
                switches,
                float(g.ignore_index),
                BITS[slope.itemsize],
                p,
            )

    run(part_, pieces)
    return int(invalid.sum())


def _score(read: list[Any], classes: int, length: int) -> Array:
    """log p - log(1 - p) of a piece, ``(classes, length)``."""
    x, at, step = read[:3]
    p = np.lib.stride_tricks.as_strided(x[at:], (classes, length), (step * x.itemsize, x.itemsize))
    return (np.log(np.maximum(p, p.dtype.type(CLAMP))) - np.log(np.maximum(1 - p, p.dtype.type(CLAMP)))).reshape(-1)


def _solve_all(call: _Call, classes: range, slope: Array, value: Array, positives: Array) -> None:
    """Sorts the problems of some classes. Threads share the problems, or, where these are large, the parts of one."""
    g, how = call.g, call.how
    problems = len(value) * len(classes)
    pixels = g.pixels * (1 if how.per_image else g.shape[0])

    def solve(first: int, last: int, share: Callable[..., None] = _each) -> None:
        for problem in range(first, last):
            p, j = divmod(problem, len(classes))
            found = _solve(call, slope, classes[j], (p * slope.shape[1] + j) * g.pixels, share)
            value[p, classes[j]], positives[p, classes[j]] = found

    if pixels > LARGE or problems < torch.get_num_threads():
        solve(0, problems, run)
    else:
        run(solve, problems)


def _solve(call: _Call, slope: Array, c: int, base: int, share: Callable[..., None]) -> tuple[float, float]:
    """The loss and the positives of one problem."""
    g, how = call.g, call.how
    wide = slope.itemsize == 8
    keys = slope.view(np.int64 if wide else np.int32).reshape(-1)
    shift, none = (50, (1 << 63) - 1) if wide else (18, (1 << 31) - 1)
    pixels, stride = g.pixels * (1 if how.per_image else g.shape[0]), slope[0].size
    runs = min(max(-(-pixels // RUN), 1), MOST_RUNS)
    counts = np.empty((runs, CELLS, 2), np.int64)
    where = keys, base, stride, g.pixels, -(-pixels // runs), pixels, shift
    share(_count, runs, *where, counts)
    groups = np.empty((pixels // SORTED + 2, 4), np.int64)
    G, lowest, kept, n_groups = _lay_out(counts, how.wanted[c], how.present, groups)
    sorted_ = np.empty(kept + runs, np.uint64)
    places = np.empty(len(sorted_) if wide else 0, np.int64)
    share(_partition, runs, *where, counts, lowest, sorted_, places)
    parts = np.zeros(n_groups)

    def weigh(first: int, last: int) -> None:
        for i in range(first, last):
            begin, size, F, B = groups[i].tolist()
            own, at = sorted_[begin : begin + size], places[begin : begin + size]
            if wide:
                order = np.argsort(own, kind="stable")
                own, at = own[order], at[order]
            else:
                own.sort()
            parts[i] = _weigh(own, at, G, F, B, slope.reshape(-1), base, how.keep_slopes, none)

    if n_groups:
        share(weigh, n_groups)
    return sum(parts.tolist()), float(G)


def backward(x: Tensors, g: Geometry, how: Problems, slope: Tensor, coefficient: Tensor) -> Tensor:
    """The gradient of the input, in place of the slopes where it is stored like them."""
    in_place = x.input.is_contiguous() and x.input.dtype == slope.dtype
    grad = slope.reshape(x.input.shape) if in_place else torch.empty_like(x.input)
    if not grad.numel():
        return grad
    call = _Call(x, g, how)
    output = Operand(grad, g.spatial, call.dtype)
    slopes, weights, softmax = view(slope).reshape(-1), view(coefficient), g.activation == "softmax"
    pieces, each, pixels = call.pieces()

    def part_(first: int, last: int) -> None:
        rooms, room = call.rooms(pixels), output.tile(1, pixels)
        p = np.empty(g.shape[1] * LANES, call.dtype)
        for piece in range(first, last):
            n, begin = piece // each, piece % each * pixels
            end = min(begin + pixels, g.pixels)
            k = weights[n if how.per_image else 0]
            at = n * g.shape[1] * g.pixels + begin
            where = (room.reshape(-1), at, g.pixels) if output.in_place else (room.reshape(-1), 0, pixels)
            read = call.read(n, begin, end, rooms)[:3] if softmax or call.scores else [slopes, 0, 0]
            own = *read, slopes, at, g.pixels, *where, k, end - begin
            if softmax:
                _softmax_gradient(*own, p)
            else:
                _class_gradient(*own, call.scores)
            output.store(Piece(n, n + 1, begin, end), room)

    run(part_, pieces)
    return grad
