"""Moments of windows and their derivative, one axis after the other, as csrc/cpp/local_moments_kernels.cpp has them.

Along an axis a window is combined relative to its centre: its pixels have means m_k and variances v_k; with weights w
that add up to 1 and d_k = m_k - m_0, the law of total variance gives m = m_0 + sum w d and v = sum w v + sum w d^2 -
(sum w d)^2, and alike for the covariance. A flat window has exactly variance 0.

Rows of pixels are as long as whole lanes. What an axis combines is told by a table: for every row of results its place,
the place of the row's own values, and those of the rows (or, along x, the shifted row) that the window's weights meet.
Rows along x and y are made a block at a time, with the rows around it, so that they stay in cache; z follows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ...ops.local_moments import Window
from ._lanes import LANES, load, most, multiply_add, spread, store
from ._run import compiled, run
from ._tiles import Array

MEAN_A, VAR_A, MEAN_B, VAR_B, COV = range(5)  # records of moments; of pixels there are two, a and b
G_MEAN, G_VAR, G_COV, AT_A, AT_B = range(5)  # records of what goes back; G_VAR: twice the derivative
BLOCK = 1 << 15  # pixels of the rows that are worked on together
SLAB = 16  # planes that are worked on together, at least, beside those around them


@compiled
def gather(
    first: int,
    last: int,
    source: Array,
    step: int,
    out: Array,
    out_at: int,
    out_step: int,
    table: Array,
    weights: Array,
    length: int,
    raw: bool,
    pair: bool,
    var: bool,
    cov: bool,
) -> None:
    """Moments of windows from pixels (raw) or from moments. var, cov: which there are beside the means. step: from one
    record to the next; out_at: the place of out[0]."""
    var_a, mean_b, var_b, both = step, step if raw else 2 * step, 3 * step, 4 * step
    for row in range(first, last):
        to, centre = table[row, 0] - out_at, table[row, 1]
        for i in range(0, length, LANES):
            ca = load(source, centre + i)
            cb = load(source, centre + mean_b + i) if pair else ca
            sa = qa = sb = qb = ab = spread(source, 0)
            for k in range(len(weights)):
                at, w = table[row, 2 + k] + i, weights[k]
                da = load(source, at) - ca
                wa = da * w
                sa = sa + wa
                if var:
                    qa = multiply_add(wa, da, qa)
                    if not raw:
                        qa = multiply_add(load(source, at + var_a), w, qa)
                if pair:
                    db = load(source, at + mean_b) - cb
                    wb = db * w
                    sb = sb + wb
                    if var:
                        qb = multiply_add(wb, db, qb)
                        if not raw:
                            qb = multiply_add(load(source, at + var_b), w, qb)
                    if cov:
                        ab = multiply_add(wa, db, ab)
                        if not raw:
                            ab = multiply_add(load(source, at + both), w, ab)
            store(out, to + i, sa + ca)
            if var:
                store(out, to + out_step + i, most(spread(source, 0), qa - sa * sa))
            if pair:
                store(out, to + 2 * out_step + i, sb + cb)
                if var:
                    store(out, to + 3 * out_step + i, most(spread(source, 0), qb - sb * sb))
                if cov:
                    store(out, to + 4 * out_step + i, ab - sa * sb)


@compiled
def scatter(
    first: int,
    last: int,
    source: Array,
    step: int,
    own: Array,
    own_step: int,
    out: Array,
    out_step: int,
    table: Array,
    weights: Array,
    length: int,
    cov: bool,
) -> None:
    """The transpose: what the windows of the taps send back to this row, whose own values are a and b.

    mean' = sum w (g_mean + g_var (a - mean_a) + g_cov (b - mean_b)),  var' = sum w g_var,  cov' = sum w g_cov
    """
    for row in range(first, last):
        to, centre = table[row, 0], table[row, 1]
        for i in range(0, length, LANES):
            a = load(own, centre + i)
            b = load(own, centre + own_step + i) if cov else a
            mean = var = both = spread(source, 0)
            for k in range(len(weights)):
                at, w = table[row, 2 + k] + i, weights[k]
                gv = load(source, at + G_VAR * step)
                g = multiply_add(gv, a - load(source, at + AT_A * step), load(source, at))
                var = multiply_add(gv, w, var)
                if cov:
                    gc = load(source, at + G_COV * step)
                    g = multiply_add(gc, b - load(source, at + AT_B * step), g)
                    both = multiply_add(gc, w, both)
                mean = multiply_add(g, w, mean)
            store(out, to + i, mean)
            store(out, to + G_VAR * out_step + i, var)
            store(out, to + AT_A * out_step + i, a)
            if cov:
                store(out, to + G_COV * out_step + i, both)
                store(out, to + AT_B * out_step + i, b)


class Sweep:
    """Windows over ``planes // depth`` volumes of ``depth`` planes. ``read(plane, first, last, out)`` writes rows of a
    plane to ``out`` (2, rows, width)."""

    def __init__(
        self, window: Window, spatial: tuple[int, ...], groups: int, dtype: Any, pair: bool, read: Callable[..., None]
    ) -> None:
        missing = 3 - len(spatial)
        self.depth, self.height, self.width = (1,) * missing + spatial
        weights = ((1.0,),) * missing + window.weights
        self.weights = [np.array(w, dtype) for w in weights]
        self.radius = [len(w) // 2 for w in weights]
        self.planes, self.pair, self.read, self.dtype = groups * self.depth, pair, read, dtype
        self.length = -(-self.width // LANES) * LANES  # of a row
        self.pitch = self.length + -(-2 * self.radius[2] // LANES) * LANES  # of a row with what is beside it
        self.rows = self.planes * self.height
        self.step = (self.rows + 1) * self.length  # of a record of all rows; the last row is 0
        most_rows = max(BLOCK // self.length, 4 * self.radius[1], 1)
        self.block = min(most_rows, self.height)
        self.blocks = -(-self.height // self.block)

    def records(self, number: int) -> Array:
        """Memory for rows of every pixel and one of zeros."""
        found = np.empty((number, self.rows + 1, self.length), self.dtype)
        found[:, -1] = 0
        return found.reshape(-1)

    def inside(self, records: Array) -> Array:
        """``(number, planes, height, width)``"""
        x = records.reshape(-1, self.rows + 1, self.length)[:, :-1, : self.width]
        return x.reshape(len(x), self.planes, self.height, self.width)

    def block_of(self, i: int) -> tuple[int, int, int]:
        """Plane, first and last row."""
        first = i % self.blocks * self.block
        return i // self.blocks, first, min(first + self.block, self.height)

    def room(self, records: int, padded: bool) -> Array:
        """Memory for a block with the rows around it."""
        rows = self.block + 2 * self.radius[1]
        return np.zeros(records * rows * (self.pitch if padded else self.length) + LANES, self.dtype)

    def pixels(self, plane: int, first: int, last: int, room: Array) -> int:
        """Reads rows of a block and around it, 0 outside the image; returns how many."""
        r, rx = self.radius[1], self.radius[2]
        rows = last - first + 2 * r
        x = room[: 2 * rows * self.pitch].reshape(2, rows, self.pitch)
        top, bottom = max(first - r, 0), min(last + r, self.height)
        skip = top - (first - r)
        x[:, :skip] = 0
        x[:, skip + bottom - top :] = 0
        self.read(plane, top, bottom, x[: 1 + self.pair, skip : skip + bottom - top, rx : rx + self.width])
        return rows

    def along_x(self, room: Array, rows: int, out: Array, var: bool, cov: bool) -> None:
        table = _table(rows, self.length, 0, self.pitch, self.radius[2], 1, len(self.weights[2]))
        gather(
            0,
            rows,
            room,
            rows * self.pitch,
            out,
            0,
            rows * self.length,
            table,
            self.weights[2],
            self.length,
            True,
            self.pair,
            var,
            cov,
        )

    def moments(
        self, cov: bool, use: Callable[[int, int, Array], None], keep: bool = False, var: bool = True
    ) -> Array | None:
        """``use(first, last, moments)`` receives the moments of some rows of windows, ``(records, rows, length)``.
        Without ``var`` the means alone are made. Returns those of all rows before the last axis, if there is one more
        and they are to be kept.
        """
        number = 5 if cov else 4 if self.pair else 2
        depth = self.radius[0] > 0
        if depth and not keep:
            self._by_slabs(number, cov, use)
            return None
        volume = self.records(5) if depth else None  # as many as the way back writes

        def block(first: int, last: int) -> None:
            room, between, done = self.room(2, True), self.room(5, False), self.room(5, False)
            for i in range(first, last):
                plane, y, end = self.block_of(i)
                row = plane * self.height + y
                if volume is not None:
                    self._along_xy(plane, y, end, room, between, volume, row, self.step, var, cov)
                    continue
                self._along_xy(plane, y, end, room, between, done, 0, (end - y) * self.length, var, cov)
                self._pass_on(row, end - y, number, done, use)

        run(block, self.planes * self.blocks)
        if volume is not None:
            table = self._z_table()

            def along_z(first: int, last: int) -> None:
                done = np.empty(number * self.block * self.length, self.dtype)
                for i in range(first, last):
                    row, end = i * self.block, min((i + 1) * self.block, self.rows)
                    self._along_z(row, end, volume, self.step, done, table, var, cov)
                    self._pass_on(row, end - row, number, done, use)

            run(along_z, -(-self.rows // self.block))
        return volume

    def _along_xy(
        self, plane: int, y: int, end: int, room: Array, between: Array, out: Array, row: int, step: int, var: bool,
        cov: bool,
    ) -> None:  # fmt: skip
        """Moments of some rows before the last axis, from row ``row`` of ``out`` on."""
        rows, own = self.pixels(plane, y, end, room), end - y
        self.along_x(room, rows, between, var, cov)
        table = _table(
            own, self.length, 0, self.length, self.radius[1] * self.length, self.length, len(self.weights[1])
        )
        gather(
            0,
            own,
            between,
            rows * self.length,
            out,
            -row * self.length,
            step,
            table,
            self.weights[1],
            self.length,
            False,
            self.pair,
            var,
            cov,
        )

    def _along_z(
        self, row: int, end: int, volume: Array, step: int, done: Array, table: Array, var: bool, cov: bool
    ) -> None:
        gather(
            row,
            end,
            volume,
            step,
            done,
            row * self.length,
            (end - row) * self.length,
            table,
            self.weights[0],
            self.length,
            False,
            self.pair,
            var,
            cov,
        )

    def _by_slabs(self, number: int, cov: bool, use: Callable[[int, int, Array], None]) -> None:
        """Some planes at a time, with those around them, so that they stay in cache."""
        r, H = self.radius[0], self.height
        per = min(max(SLAB, 4 * r), self.depth)
        slabs, none = -(-self.depth // per), (per + 2 * r) * H  # the row of zeros
        step = (none + 1) * self.length

        def body(first: int, last: int) -> None:
            room, between = self.room(2, True), self.room(5, False)
            volume, done = np.zeros(number * step, self.dtype), np.empty(number * self.block * self.length, self.dtype)
            for i in range(first, last):
                top = i // slabs * self.depth
                z, end = i % slabs * per, min((i % slabs + 1) * per, self.depth)
                low, high = max(z - r, 0), min(end + r, self.depth)
                for plane in range(low, high):
                    for y in range(0, H, self.block):
                        row = (plane - low) * H + y
                        self._along_xy(
                            top + plane, y, min(y + self.block, H), room, between, volume, row, step, True, cov
                        )  # fmt: skip
                table = _depth_table((high - low) * H, H, high - low, r, self.length, none)
                for row in range((z - low) * H, (end - low) * H, self.block):
                    stop = min(row + self.block, (end - low) * H)
                    self._along_z(row, stop, volume, step, done, table, True, cov)
                    self._pass_on((top + low) * H + row, stop - row, number, done, use)

        run(body, self.planes // self.depth * slabs)

    def _pass_on(self, row: int, rows: int, number: int, done: Array, use: Callable[[int, int, Array], None]) -> None:
        use(row, row + rows, done[: number * rows * self.length].reshape(number, rows, self.length))

    def _z_table(self) -> Array:
        return _depth_table(self.rows, self.height, self.depth, self.radius[0], self.length, self.rows)

    def back(
        self, adjoint: Array, moments: Array | None, cov: bool, write: Callable[[int, int, int, Array], None]
    ) -> None:
        """Takes what :meth:`moments` returned and the adjoint records of every window; ``write(plane, first, last,
        gradient)`` receives rows of gradients by a."""
        sent = adjoint
        if moments is not None:
            sent = moments  # a row is read before it is written, and no other row is read
            run(
                scatter, self.rows, adjoint, self.step, moments, 2 * self.step, sent, self.step, self._z_table(),
                self.weights[0], self.length, cov,
            )  # fmt: skip

        r, rx = self.radius[1], self.radius[2]
        along_y = _block_table(self.rows, self.height, self.block, r, self.length, self.pitch, rx)

        def block(first: int, last: int) -> None:
            room, between, record = self.room(2, True), self.room(5, False), self.room(5, True)
            done = self.room(5, False)
            for i in range(first, last):
                plane, y, end = self.block_of(i)
                rows, own = self.pixels(plane, y, end, room), end - y
                self.along_x(room, rows, between, False, False)
                step, row = own * self.pitch, plane * self.height + y
                scatter(
                    row, row + own, sent, self.step, between, 2 * rows * self.length, record, step, along_y,
                    self.weights[1], self.length, cov,
                )  # fmt: skip
                # beside the rows nothing is sent back; lanes beyond their end hold what no window has made
                margins = record[: 5 * step].reshape(5, own, self.pitch)
                margins[:, :, :rx] = 0
                margins[:, :, rx + self.width :] = 0
                table = _table(own, self.length, 0, self.pitch, r * self.pitch + rx, 1, len(self.weights[2]))
                scatter(
                    0, own, record, step, room, rows * self.pitch, done, own * self.length, table, self.weights[2],
                    self.length, cov,
                )  # fmt: skip
                write(plane, y, end, done[: own * self.length].reshape(own, self.length)[:, : self.width])

        run(block, self.planes * self.blocks)


@lru_cache(maxsize=64)
def _table(rows: int, out_pitch: int, out_at: int, pitch: int, centre: int, step: int, taps: int) -> Array:
    """Rows one after the other: where results go, the row's own place, and its taps, ``step`` apart from the row on."""
    table = np.empty((rows, 2 + taps), np.int64)
    row = np.arange(rows)
    table[:, 0] = out_at + row * out_pitch
    table[:, 1] = row * pitch + centre
    table[:, 2:] = (row * pitch)[:, None] + step * np.arange(taps)
    return table


@lru_cache(maxsize=4)
def _block_table(rows: int, height: int, block: int, radius: int, length: int, pitch: int, beside: int) -> Array:
    """Taps along y among all rows, for places within a block: of results ``beside`` the begin of a row, of own values
    ``radius`` rows further down."""
    table = _depth_table(rows, 1, height, radius, length, rows).copy()
    row = np.arange(rows) % height % block
    table[:, 0] = row * pitch + beside
    table[:, 1] = (row + radius) * length
    return table


@lru_cache(maxsize=16)
def _depth_table(rows: int, height: int, depth: int, radius: int, length: int, none: int) -> Array:
    """Taps along z; `none`: the row of zeros that stands for those outside."""
    table = np.empty((rows, 3 + 2 * radius), np.int64)
    row = np.arange(rows)
    z = row // height % depth
    table[:, 0] = table[:, 1] = row * length
    for k in range(-radius, radius + 1):
        there = (z + k >= 0) & (z + k < depth)
        table[:, 2 + radius + k] = np.where(there, row + k * height, none) * length
    return table
