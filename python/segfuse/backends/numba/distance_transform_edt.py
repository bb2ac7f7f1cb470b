"""distance_transform_edt in Numba: distances along every row, then minima down every column, 16 columns at a time.

The algorithm is that of csrc/cpp/distance_transform_edt_kernels.cpp, which explains it. What differs: NumPy reads the
input, whatever its dtype and strides, into one byte a pixel. Its bits say for INSIDE whether the pixel is foreground;
otherwise whether it is of another kind than its neighbour along x, y and z, from which both sides follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...ops.distance_transform_edt import Request, instances
from ._lanes import LANES, counting, largest, least, load, most, part, root, select, some, spread, store
from ._run import allocating, compiled, run, view

X, Y, Z, FOREGROUND = 1, 2, 4, 8  # bits of a pixel's byte
STEP = 7  # rows from one whose minimisers are known to the next; two times three lie between
WIDTH = 64  # columns that are copied together
TILE = 1 << 16  # numbers that a tile may hold before it gets narrower
FEW_PLANES = 16  # from here on a plane is the unit of work along x and y
CHUNK = 1 << 18  # pixels whose bytes are found together
GROUP = 1 << 16  # pixels of the planes that are looked at together
SERIAL = 1 << 14  # pixels from which a second thread pays
EXACT = 1 << 24  # integers that float holds
FLOAT_RATIO = 1e9  # between spacings whose squares are far from the smallest float

Array = NDArray[Any]


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    return None if device == "cpu" else f"it runs on the CPU, the input is on {device}"


# ---------------------------------------------------------------------------------------------------- rows


@part
def _finish(size: Any, squared: bool, scale: float, absent: float) -> Any:
    """Squared distances as the caller wants them."""
    return select(size < np.inf, (size if squared else root(size)) * scale, absent)


@allocating
def _along_rows(
    first: int,
    last: int,
    kinds: Array,
    work: Array,
    nearest: Array,
    W: int,
    sides: bool,
    unit: float,
    how: tuple[bool, bool, bool, float],
) -> None:
    """Distances to the ends of each run of equal pixels. how: last pass, signed, squared, scale"""
    final, signed, squared, scale = how
    row = np.empty(W + LANES, work.dtype)
    step = counting(work)
    for y in range(first, last):
        start, end = y * W, (y + 1) * W
        begin = start
        while begin < end:
            kind = np.uint8(0) if sides else kinds[begin] & X
            to = begin + 1
            while to + LANES <= end and not some((load(kinds, to) & X) != kind):
                to += LANES
            while to < end and (kinds[to] & X) == kind:
                to += 1
            site = not sides and kind == 0
            u = 0.0 if site else unit
            left = float(begin - 1) if begin > start or site else -np.inf  # the nearest pixels of another kind
            right = float(to) if to < end or site else np.inf
            for i in range(begin, to, LANES):
                x = step + (i - start)
                d = least(x - (left - start), spread(work, right - start) - x) * u
                store(row, i - start, d * d)
            if len(nearest):
                for i in range(begin, to):
                    none = site or (begin == start and to == end)
                    to_left = to == end or (begin > start and i - begin + 1 <= to - i)
                    nearest[i] = (i if none else begin - 1 if to_left else to) - start
            begin = to
        if final:
            for i in range(0, W, LANES):
                d = _finish(load(row, i), squared, scale, 0.0)
                if signed:
                    d = select((load(kinds, start + i) & FOREGROUND) != 0, d * -1.0, d)
                store(row, i, d)
        for i in range(W):
            work[start + i] = row[i]


# ---------------------------------------------------------------------------------------------------- columns


@lru_cache(maxsize=16)
def _order(n: int, step: int) -> Array:
    """Rows in the order in which they are searched, each with those between whose minimisers its own lie, or -1."""
    found = [(0, -1, -1), (n - 1, 0, -1)]
    h = step
    while h < n - 1:
        h *= 2
    while h >= step:
        found += [(y, y - h, min(y + h, n - 1)) for y in range(h, n - 1, 2 * h)]
        h //= 2
    return np.array(found if n > 1 else found[:1], np.int64)


@compiled
def _minimise(
    tile: Array,
    out: Array,
    at: int,
    n: int,
    squares: Array,
    per_row: float,
    sides: bool,
    minimiser: Array,
    order: Array,
    bounds: Array,
) -> None:
    """The minima of one group. squares: (unit (k - n))^2 at k; bounds: where the lanes of a row attain their minimum,
    and how far that may be."""
    for k in range(len(order)):
        y, a, b = order[k, 0], order[k, 1], order[k, 2]
        own = load(tile, at + y * LANES)
        begin, end = 0, n - 1
        if a >= 0:
            begin = max(bounds[a, 0] - sides, 0)
        if b >= 0:
            end = min(bounds[b, 1] + sides, n - 1)
            reach = min(bounds[a, 2] + y - a, bounds[b, 2] + b - y)
            begin, end = max(begin, y - reach), max(min(end, y + reach), 0)
        far = largest(most(own, spread(tile, 0) - own))
        if far < np.inf:
            reach = int(min(np.sqrt(far) * per_row, float(n))) + 1
            begin, end = max(begin, y - reach), min(end, y + reach)
        end = max(begin, end)
        sign = select(own < 0, spread(tile, -1), 1)
        best, where, row = spread(tile, np.inf), spread(tile, 0), spread(tile, begin)
        for j in range(begin, end + 1):
            v = load(tile, at + j * LANES)
            if sides:
                v = most(v * sign, 0)
            v = v + squares[n + j - y]
            less = v < best
            where = select(less, row, where)
            best = select(less, v, best)
            row = row + 1
        has = best < np.inf
        high = int(largest(select(has, where, -1)))
        if k == 0 and high < 0:  # no lane has a site
            for i in range(n * LANES):
                out[at + i] = np.inf
            for i in range(len(minimiser)):
                minimiser[i] = i // LANES
            return
        store(out, at + y * LANES, best)
        if len(minimiser):
            store(minimiser, y * LANES, select(has, where, spread(tile, y)))  # a column without a site points to itself
        bounds[y, 0] = int(-largest(select(has, spread(tile, 0) - where, -n)))
        bounds[y, 1] = high
        bounds[y, 2] = int(min(np.sqrt(largest(select(has, best, 0))) * per_row, float(n))) + 1
    if len(minimiser):
        return
    for a in range(0, n - 2, STEP):
        b = min(a + STEP, n - 1)
        reach = min(bounds[a, 2], bounds[b, 2]) + STEP
        begin = max(bounds[a, 0] - sides, a + 1 - reach, 0)
        end = max(min(bounds[b, 1] + sides, b - 1 + reach, n - 1), begin)
        for y in range(a + 1, b, 3):
            y2, y3 = min(y + 1, b - 1), min(y + 2, b - 1)
            best1 = best2 = best3 = spread(tile, np.inf)
            sign1 = select(load(tile, at + y * LANES) < 0, spread(tile, -1), 1)
            sign2 = select(load(tile, at + y2 * LANES) < 0, spread(tile, -1), 1)
            sign3 = select(load(tile, at + y3 * LANES) < 0, spread(tile, -1), 1)
            for j in range(begin, end + 1):
                v = load(tile, at + j * LANES)
                v1 = v2 = v3 = v
                if sides:
                    v1, v2, v3 = most(v * sign1, 0), most(v * sign2, 0), most(v * sign3, 0)
                best1 = least(v1 + squares[n + j - y], best1)
                best2 = least(v2 + squares[n + j - y2], best2)
                best3 = least(v3 + squares[n + j - y3], best3)
            store(out, at + y * LANES, best1)
            store(out, at + y2 * LANES, best2)
            store(out, at + y3 * LANES, best3)


@allocating
def _down_columns(
    first: int,
    last: int,
    kinds: Array,
    work: Array,
    indices: Array,
    shape: tuple[int, int, int],
    axis: int,
    width: int,
    sides: bool,
    unit: float,
    squares: Array,
    order: Array,
    how: tuple[bool, bool, bool, float],
) -> None:
    """Minima along y (axis 1) of planes, or along z (axis 0) of volumes, by blocks of columns side by side."""
    final, signed, squared, scale = how
    D, H, W = shape
    n, columns = (H, W) if axis == 1 else (D, H * W)  # neighbours in a column are as far apart as a row is long
    flips = np.uint8(Y if axis == 1 else Z)
    blocks = (columns + width - 1) // width
    tile, out = np.empty(n * width, work.dtype), np.empty(n * width, work.dtype)
    minimiser = np.empty(n * LANES if len(indices) else 0, work.dtype)
    held, tail = np.empty(n * LANES if len(indices) else 0, np.int32), np.empty(LANES, work.dtype)
    parity = np.zeros(width, np.uint8)
    bounds = np.empty((n, 3), np.int64)
    for block in range(first, last):
        begin = block % blocks * width
        start = block // blocks * n * columns + begin
        count = min(width, columns - begin)
        for g in range(0, width, LANES):
            store(parity, g, spread(parity, 0))
        for y in range(n):
            at = start + y * columns
            for g in range(0, count, LANES):
                to = g * n + y * LANES
                if count - g >= LANES:
                    store(tile, to, load(work, at + g))
                else:
                    for i in range(LANES):
                        tile[to + i] = work[at + g + i] if i < count - g else np.inf
                if sides and y:
                    odd = load(parity, g) ^ (load(kinds, at + g) & flips)
                    store(parity, g, odd)
                    v = load(tile, to)
                    store(tile, to, select(odd != 0, spread(tile, 0) - v, v))
        for g in range(0, count, LANES):
            _minimise(tile, out, g * n, n, squares, 1.00001 / unit, sides, minimiser, order, bounds)
            if len(indices):
                _move(indices, minimiser, tile, g * n, held, shape, axis, start + g, min(LANES, count - g), sides)
        for y in range(n):
            at = start + y * columns
            for g in range(0, count, LANES):
                d = load(out, g * n + y * LANES)
                if final:
                    d = _finish(d, squared, scale, 0.0)
                    if signed:
                        d = select((load(kinds, at + g) & FOREGROUND) != 0, d * -1.0, d)
                if count - g >= LANES:
                    store(work, at + g, d)
                else:
                    store(tail, 0, d)
                    for i in range(count - g):
                        work[at + g + i] = tail[i]


@compiled
def _move(
    indices: Array,
    minimiser: Array,
    tile: Array,
    top: int,
    held: Array,
    shape: tuple[int, int, int],
    axis: int,
    at: int,
    count: int,
    sides: bool,
) -> None:
    """The nearest pixel of the line leads to the nearest pixel of all, unless it is of another kind itself."""
    D, H, W = shape
    n, step = (H, W) if axis == 1 else (D, H * W)
    for d in range(axis + 1, 3):
        index = indices[d - 3 + len(indices)]
        for y in range(n):
            for i in range(count):
                held[y * LANES + i] = index[at + y * step + i]
        for y in range(n):
            for i in range(count):
                k = y * LANES + i
                source = int(minimiser[k]) * LANES + i
                site = sides and (tile[top + source] < 0) != (tile[top + k] < 0)
                own = (at + i) % W if d == 2 else (at + i) // W % H
                index[at + y * step + i] = own if site else held[source]
    for y in range(n):
        for i in range(count):
            indices[axis - 3 + len(indices), at + y * step + i] = int(minimiser[y * LANES + i])


# ---------------------------------------------------------------------------------------------------- two instances


@allocating
def _two_along_rows(
    first: int, last: int, work: Array, labels: Array, W: int, squares: Array, how: tuple[bool, bool, bool, float]
) -> None:
    """work, labels: ``(2, pixels)``, the nearest and the second nearest. Instance 0 is none."""
    final, _, squared, scale = how
    seen, at = np.empty((2, 2), np.int64), np.empty(2, np.int64)  # way, the last and the one before: instance, place
    for y in range(first, last):
        start = y * W
        for way in range(2):  # from the left, then from the right
            for j in range(2):
                seen[0, j] = seen[1, j] = at[j] = 0
            for x in range(W):
                i = x if way == 0 else W - 1 - x
                k = start + i
                label = labels[0, k] if way == 0 or work[0, k] == 0 else 0
                if label != 0 and label != seen[0, 0]:
                    at[1], seen[0, 1], seen[0, 0] = at[0], seen[0, 0], label
                if label != 0:
                    at[0] = i
                if way == 0:
                    for j in range(2):
                        work[j, k] = squares[W + i - at[j]] if seen[0, j] else np.inf
                        labels[j, k] = seen[0, j]
                    continue
                for j in range(2):
                    new, d = seen[0, j], squares[W + at[j] - i]
                    if new == 0:
                        continue
                    if d < work[0, k]:
                        if new != labels[0, k]:
                            work[1, k], labels[1, k] = work[0, k], labels[0, k]
                        work[0, k], labels[0, k] = d, new
                    elif new != labels[0, k] and d < work[1, k]:
                        work[1, k], labels[1, k] = d, new
        if final:
            for j in range(2):
                for k in range(start, start + W):
                    work[j, k] = (work[j, k] if squared else np.sqrt(work[j, k])) * scale


@part
def _see(d: Any, label: Any, first: Any, second: Any, instance: Any, other: Any) -> Any:
    """The two nearest of what was seen so far, of different instances."""
    same, nearer = label == instance, d < first
    replaces = select(same, nearer ^ nearer, nearer)
    between = select(same, nearer ^ nearer, d < second)  # of what is not nearer
    other = select(replaces, instance, select(nearer, other, select(between, label, other)))
    second = select(replaces, first, select(nearer, second, select(between, d, second)))
    return select(nearer, d, first), second, select(nearer, label, instance), other


@allocating
def _two_down_columns(
    first: int,
    last: int,
    work: Array,
    labels: Array,
    shape: tuple[int, int, int],
    axis: int,
    squares: Array,
    how: tuple[bool, bool, bool, float],
) -> None:
    """Searched outwards from each row until the second distance cannot shrink any more."""
    final, _, squared, scale = how
    D, H, W = shape
    n, columns = (H, W) if axis == 1 else (D, H * W)
    blocks = (columns + LANES - 1) // LANES
    near, far = np.empty(n * LANES, work.dtype), np.empty(n * LANES, work.dtype)
    near_label, far_label = np.empty(n * LANES, np.int32), np.empty(n * LANES, np.int32)
    tail, tail_label = np.empty(2 * LANES, work.dtype), np.empty(2 * LANES, np.int32)
    for block in range(first, last):
        begin = block % blocks * LANES
        start = block // blocks * n * columns + begin
        count = min(LANES, columns - begin)
        top, bottom = n, -1  # rows between which an instance is known
        for y in range(n):
            for i in range(LANES):  # lanes that are not there keep nobody searching
                k, here = y * LANES + i, start + y * columns + i
                real = i < count
                near[k], far[k] = (work[0, here], work[1, here]) if real else (0, 0)
                near_label[k], far_label[k] = (labels[0, here], labels[1, here]) if real else (0, 0)
                if near_label[k] != 0:
                    top, bottom = min(top, y), y
        for y in range(n):
            here = y * LANES
            a, b = load(near, here), load(far, here)
            la, lb = load(near_label, here), load(far_label, here)
            k = 1
            while (y - k >= top or y + k <= bottom) and squares[n + k] < largest(b):
                for side in range(2):
                    row = y - k if side == 0 else y + k
                    if (side == 0 and row >= top) or (side == 1 and row <= bottom):
                        row *= LANES
                        a, b, la, lb = _see(load(near, row) + squares[n + k], load(near_label, row), a, b, la, lb)
                        a, b, la, lb = _see(load(far, row) + squares[n + k], load(far_label, row), a, b, la, lb)
                k += 1
            if final:
                a, b = _finish(a, squared, scale, np.inf), _finish(b, squared, scale, np.inf)
            store(tail, 0, a)
            store(tail, LANES, b)
            store(tail_label, 0, la)
            store(tail_label, LANES, lb)
            for j in range(2):
                for i in range(count):
                    work[j, start + y * columns + i] = tail[j * LANES + i]
                    labels[j, start + y * columns + i] = tail_label[j * LANES + i]


# ---------------------------------------------------------------------------------------------------- a call


def _each(kernel: Any, pieces: int, pixels: int, *arguments: Any) -> None:
    if pixels < SERIAL:
        kernel(0, pieces, *arguments)
    else:
        run(kernel, pieces, *arguments)


def _foreground(input: Tensor, request: Request, out: Array) -> None:
    """Whether a pixel is foreground, of every class if they were given."""
    x = view(input)
    if request.threshold is not None:
        if input.dtype == torch.bfloat16:
            x = (x.astype(np.uint32) << 16).view(np.float32)
        np.greater(x, x.dtype.type(request.threshold), out=out)
    elif request.classes is None:
        np.not_equal(x, 0, out=out)
    else:
        low, high = (0, 1) if x.dtype == bool else (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
        for i, c in enumerate(request.classes):
            own = out[(slice(None),) * (input.ndim - request.spatial) + (i,)]
            own[...] = x == x.dtype.type(c) if low <= c <= high else False


def _cut(x: Any, axis: int, first: int, last: int) -> Any:
    """Part of an axis; spatial ones are counted from the last."""
    return x[(slice(None),) * (axis if axis >= 0 else x.ndim + axis) + (slice(first, last),)]


def _kinds(
    first: int, last: int, input: Tensor, request: Request, along: int, bits: dict[int, int], out: Array
) -> None:
    """The byte of every pixel between two places of the axis `along`. bits: that of every spatial axis."""
    step = max(1, CHUNK * input.shape[along] // out.size)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        own = _cut(out, along, begin, end)
        if request.mode == "inside":
            _foreground(_cut(input, along, begin, end), request, own.view(bool))
            continue
        before = min(begin, 1)
        part = _cut(input, along, begin - before, end)
        kinds: Array = view(part)
        if request.mode != "labels":
            kinds = np.empty(request.output_shape(part), bool)
            _foreground(part, request, kinds)
        here = _cut(kinds, along, before, end)
        own[...] = here.view(np.uint8) * np.uint8(FOREGROUND) if request.mode == "signed" else 0
        for axis, bit in bits.items():
            of, skip = (kinds, 1 - before) if axis == along else (here, 1)
            differ = _cut(of, axis, 1, out.shape[axis]) != _cut(of, axis, 0, of.shape[axis] - 1)
            target = _cut(own, axis, skip, out.shape[axis])
            target |= differ.view(np.uint8) * np.uint8(bit)


def _lay_out(
    input: Tensor, request: Request
) -> tuple[tuple[int, int, int], tuple[float, float, float], dict[int, int]]:
    """Lengths and spacings of three axes, the last ones that count, and the bit of each of these."""
    kept = [axis for axis in range(-1, -request.spatial - 1, -1) if request.indices or input.shape[axis] != 1]
    missing = 3 - len(kept)
    lengths = [1] * missing + [input.shape[axis] for axis in reversed(kept)]
    spacing = [1.0] * missing + [request.spacing[axis] for axis in reversed(kept)]
    return tuple(lengths), tuple(spacing), dict(zip(kept, (X, Y, Z)))  # type: ignore[return-value]


def _scale(request: Request, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, bool]:
    """The unit of length, and whether squared distances in it need float64."""
    sizes = [size for side, size in zip(shape, spacing) if side != 1] or [1.0]
    scale, smallest = max(sizes), min(sizes)
    farthest = sum((side - 1) ** 2 for side in shape)
    inexact = farthest >= EXACT if scale == smallest else scale > smallest * FLOAT_RATIO
    return scale, request.dtype == torch.float64 or inexact


def _squares(side: int, unit: float, dtype: Any) -> Array:
    """(unit k)^2 for -side <= k <= side"""
    with np.errstate(over="ignore"):
        return ((unit * np.arange(-side, side + 1)) ** 2).astype(dtype)


def _instances(input: Tensor) -> Array:
    labels = instances(input)
    if labels.numel() and (bool((labels < 0).any()) or int(labels.max()) >= 2**31):  # too large: numbered from 1
        there = labels != 0
        numbers = torch.unique(labels[there], return_inverse=True)[1]
        labels = torch.zeros_like(labels).masked_scatter_(there, numbers + 1)
    return np.stack([view(labels.to(torch.int32)).reshape(-1)] * 2)


def forward(input: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    """Distances, and indices or the distances to the second nearest."""
    two, leading = request.mode == "nearest_two", request.output_shape(input)
    out = torch.empty((2, *leading) if two else leading, dtype=request.dtype, device="cpu")
    indices = torch.empty((request.spatial if request.indices else 0, *leading), dtype=torch.int32, device="cpu")
    if out.numel():
        _transform(input, request, out, indices.reshape(len(indices), out.numel()))
    if two:
        return out[0], out[1]
    return out, indices if request.indices else None


def _transform(input: Tensor, request: Request, out: Tensor, indices: Tensor) -> None:
    shape, spacing, bits = _lay_out(input, request)
    D, H, W = shape
    scale, wide = _scale(request, shape, spacing)
    work = out if wide == (out.dtype == torch.float64) else torch.empty(out.shape, dtype=torch.float64, device="cpu")
    unit = [size / scale for size in spacing]
    squares = [_squares(side, u, np.float64 if wide else np.float32) for side, u in zip(shape, unit)]
    two, last = request.mode == "nearest_two", 0 if D > 1 else 1 if H > 1 else 2
    how = [
        (axis == last, request.mode == "signed", request.squared, scale**2 if request.squared else scale)
        for axis in range(3)
    ]
    widths = [LANES if two else max(min(WIDTH, TILE // side // LANES * LANES), LANES) for side in shape]
    values: Array
    sides, places = request.mode != "inside", view(indices)
    if two:
        values, labels = view(work).reshape(2, -1), _instances(input)
        pixels = labels.shape[1]

        def rows(first: int, last: int) -> None:
            _two_along_rows(first, last, values, labels, W, squares[2], how[2])

        def columns(first: int, last: int, axis: int) -> None:
            _two_down_columns(first, last, values, labels, shape, axis, squares[axis], how[axis])
    else:
        values, pixels = view(work).reshape(-1), out.numel()
        padded = np.zeros(pixels + LANES, np.uint8)  # lanes read on
        along = _longest(input, request)
        kinds, nearest = padded[:pixels].reshape(out.shape), places[-1] if request.indices else np.empty(0, np.int32)
        _each(_kinds, input.shape[along], pixels, input, request, along, bits, kinds)

        def rows(first: int, last: int) -> None:
            _along_rows(first, last, padded, values, nearest, W, sides, unit[2], how[2])

        def columns(first: int, last: int, axis: int) -> None:
            _down_columns(
                first,
                last,
                padded,
                values,
                places,
                shape,
                axis,
                widths[axis],
                sides,
                unit[axis],
                squares[axis],
                _order(shape[axis], 1 if request.indices else STEP),
                how[axis],
            )

    if request.indices:  # an axis without a pass
        for axis in range(3 - request.spatial, 2):
            if shape[axis] == 1:
                places[axis - 3 + request.spatial] = 0
    planes, blocks = pixels // (H * W), -(-W // widths[1])

    def both(first: int, last: int) -> None:
        step = max(1, GROUP // (H * W))
        for plane in range(first, last, step):
            end = min(plane + step, last)
            rows(plane * H, end * H)
            columns(plane * blocks, end * blocks, 1)

    if H > 1 and planes >= FEW_PLANES:
        _each(both, planes, pixels)
    else:
        _each(rows, planes * H, pixels)
        if H > 1:
            _each(columns, planes * blocks, pixels, 1)
    if D > 1:
        _each(columns, planes // D * -(-H * W // widths[0]), pixels, 0)
    if work is not out:
        out.copy_(work)


def _longest(input: Tensor, request: Request) -> int:
    """The longest axis but the last, which is read in one go; spatial ones are counted from the last."""
    axis = max(range(max(input.ndim - 1, 1)), key=lambda axis: input.shape[axis])
    return axis - input.ndim if axis >= input.ndim - request.spatial else axis
