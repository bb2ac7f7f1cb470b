"""One loss at one shape: its candidates, the check that they compute the same, their peak memory and their time."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bandwidth import MIB, Bandwidth, floor
from peers import ARGUMENTS, LIBRARIES, LOSSES, PACKAGES, SMALL, LossFunction, compiled, held

RTOL = 1e-4


class NotComparable(Exception):
    """Why a candidate is not timed."""


@dataclass(frozen=True)
class Candidate:
    call: LossFunction
    labels: Tensor
    against: str | None = "eager"  # the candidate that must give the same value and gradient
    scale: float = 1.0  # that one's value over this one's
    baseline: str = "segfuse"  # the candidate whose time it is compared with


def segfuse() -> Any:
    import segfuse

    return segfuse


@lru_cache(maxsize=1)
def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits that lean towards their labels, and labels in square patches.

    Labels are uint8 and shaped like the logits for one class, else int64 without a class axis.
    """
    samples, classes, *spatial = shape
    generator = torch.Generator().manual_seed(0)
    patch = max(1, spatial[-1] // 16)
    coarse = (samples, 1, *(size // patch for size in spatial))
    labels = torch.randint(0, max(classes, 4), coarse, generator=generator)
    for axis in range(2, len(shape)):
        labels = labels.repeat_interleave(patch, axis)
    logits = 2 * torch.randn(shape, generator=generator)
    if classes == 1:
        labels = (labels == 0).to(torch.uint8)
        logits += 4 * labels - 2.0
    else:
        logits.scatter_add_(1, labels, torch.full(labels.shape, 2.0))
        labels = labels.squeeze(1).contiguous()
    return logits.requires_grad_(), labels


class Case:
    """`candidates` by name; `missing` says why one is not among them, `notes` what else its check showed.

    Beside `segfuse`, `eager`, `compile` and the libraries there are `segfuse as <library>`, set to that library's way
    of reducing, and for a compound `term <loss>`, each of its terms alone.
    """

    def __init__(self, loss: str, shape: tuple[int, ...], libraries: Sequence[str] = tuple(LIBRARIES)) -> None:
        self.loss, self.shape = loss, shape
        self.logits, self.labels = inputs(shape)
        self.candidates: dict[str, Candidate] = {}
        self.missing: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self._expected: dict[tuple[str, bool], tuple[float, Tensor]] = {}
        row = LOSSES[loss]
        self._add("eager", lambda: Candidate(row.plain, self.labels, against=None))
        self._add("segfuse", lambda: Candidate(row.segfuse(segfuse()), self.labels))
        if row.compiles:
            self._add("compile", lambda: Candidate(compiled(row.plain), self.labels))
        for library in libraries:
            self._add(library, partial(self._peer, library))
        for term in row.terms:
            self._add(f"term {term}", partial(self._term, term))

    def _add(self, name: str, build: Callable[[], Candidate]) -> None:
        try:
            self.candidates[name] = build()
        except Exception as error:  # whatever a library raises is a reason to leave it out
            self.missing[name] = _reason(error)

    def _term(self, loss: str) -> Candidate:
        return Candidate(LOSSES[loss].segfuse(segfuse()), self.labels, against=None)

    def _peer(self, library: str) -> Candidate:
        classes = self.shape[1]
        peer = LIBRARIES[library](classes).get(self.loss)
        if peer is None:
            raise NotComparable(f"{PACKAGES[library]} has no such loss")
        labels = held(library, self.labels, classes)
        if not peer.options:
            return Candidate(peer.call, labels, scale=peer.scale)
        twin = f"segfuse as {library}"
        self.candidates[twin] = Candidate(
            LOSSES[self.loss].segfuse(segfuse(), **peer.options), self.labels, against=None
        )
        return Candidate(peer.call, labels, against=twin, scale=peer.scale, baseline=twin)

    def clear(self) -> None:
        self.logits.grad = None

    def step(self, name: str) -> Callable[[], Tensor]:
        """Forward plus backward of one candidate, returning the loss; call `clear` before."""
        candidate, logits = self.candidates[name], self.logits

        def run() -> Tensor:
            value = candidate.call(logits, candidate.labels)
            value.backward()
            return value

        return run

    def outcome(self, name: str, elements: int | None = None, double: bool = False) -> tuple[float, Tensor]:
        """Value and gradient of the candidate; with `elements` on a part of the images with about so many logits."""
        if (name, double) in self._expected and elements is None:
            return self._expected[name, double]
        candidate, logits = self.candidates[name], self.logits.detach()
        labels = candidate.labels
        if elements is not None:
            for axis in (2, 0):
                part = max(1, min(logits.shape[axis], elements * logits.shape[axis] // logits.numel()))
                logits = logits.narrow(axis, 0, part)
                labels = labels.narrow(axis - (logits.ndim - labels.ndim) * (axis > 0), 0, part)
            logits, labels = logits.clone(), labels.contiguous()
        if double:
            logits = logits.double()
            labels = labels.double() if labels.is_floating_point() else labels
        logits.requires_grad_()
        try:
            loss = candidate.call(logits, labels)
            (gradient,) = torch.autograd.grad(loss, logits)
        except Exception as error:
            raise NotComparable(_reason(error)) from error
        value = loss.item()
        if not (math.isfinite(value) and bool(gradient.isfinite().all())):
            raise NotComparable("value or gradient is not finite")
        if elements is None and any(other.against == name for other in self.candidates.values()):
            self._expected[name, double] = value, gradient
        return value, gradient

    def _difference(self, name: str, elements: int | None = None, double: bool = False) -> str:
        """How the candidate differs from what it must equal; empty if it does not."""
        candidate = self.candidates[name]
        if candidate.against is None:
            self.outcome(name, elements, double)
            return ""
        expected, direction = self.outcome(candidate.against, elements, double)
        value, gradient = self.outcome(name, elements, double)
        off = abs(value * candidate.scale / expected - 1)
        if not off <= RTOL:
            return f"value differs from {candidate.against} by {off:.1e}"
        off = float((gradient * candidate.scale - direction).abs_().max() / direction.abs().max())
        return "" if off <= RTOL else f"gradient differs from {candidate.against} by {off:.1e} of its largest entry"

    def verify(self, name: str) -> None:
        """Run the candidate; raise `NotComparable` unless value and gradient are what they must be.

        A peer may lose digits in float32 (SMP takes sums with `vector_norm`: 1e-3 off at millions of pixels; Lovasz
        weights as differences lose more). It is the same function if it agrees in float64, or where it refuses that on
        a few pixels, and that it needed that is kept in `notes`. A row of the table may ask for float64 at once.
        """
        in_double, compared = LOSSES[self.loss].in_double, self.candidates[name].against is not None
        difference = self._difference(name, double=in_double)
        if in_double:
            self.outcome(name)  # it must run in float32 too, and be compiled for it
        if compared and in_double:
            self.notes[name] = "compared in float64"
        elif compared and difference:
            self.notes[name] = f"{difference} in float32, equal in float64"
            try:
                difference = self._difference(name, 1 << 24, double=True)
            except NotComparable:
                self.notes[name] = f"{difference} in float32, equal on a few pixels"
                difference = self._difference(name, 1 << 10)
        if difference:
            self.notes.pop(name, None)
            raise NotComparable(difference)

    def verify_all(self) -> None:
        """Move every candidate that fails to `missing`, and free what the check kept."""
        for name in list(self.candidates):
            try:
                self.verify(name)
            except NotComparable as reason:
                self.missing[name] = str(reason)
        for name in self.missing:
            self.candidates.pop(name, None)
        self._expected.clear()

    def floor(self, bandwidth: Bandwidth) -> float:
        return floor(self.logits, self.labels, bandwidth, one_pass=LOSSES[self.loss].one_pass)


def _reason(error: Exception) -> str:
    text = (str(error).strip() or repr(error)).splitlines()[0][:200]
    return text if isinstance(error, (NotComparable, ImportError)) else f"{type(error).__name__}: {text}"


# `(prepare, run)`: `prepare` is called before `run`, outside the clock.
Timed = tuple[Callable[[], object], Callable[[], object]]


def small_calls() -> dict[str, Timed]:
    """Every public class at [4, 1, 64, 64], and eager `binary_cross_entropy_with_logits` on ready-made float labels."""
    sf = segfuse()
    logits, labels = inputs(SMALL)

    def clear() -> None:
        logits.grad = None

    def timed(loss: LossFunction, target: Tensor) -> Timed:
        return clear, lambda: loss(logits, target).backward()

    calls = {"eager BCE": timed(torch.nn.functional.binary_cross_entropy_with_logits, labels.float())}
    for name in sf.losses.__all__:
        loss = ARGUMENTS[name](sf) if name in ARGUMENTS else getattr(sf, name)()
        calls[name] = timed(loss, labels)
    return calls


def heap(fresh_above: int) -> None:
    """glibc: larger buffers come fresh from the system and go back to it at once; smaller ones are reused."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(-3, fresh_above)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2 * fresh_above)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)


def steady_heap() -> None:
    """The heap of a process that has run for a while: glibc's thresholds grow with what is freed, up to 32 MiB."""
    heap(32 * MIB)


def peak_extra(call: Callable[[], object]) -> int | None:
    """Bytes of resident memory that `call` needed at its peak, above what was there before and with what it returns.

    Every buffer above 128 KiB is fresh memory in this call, so that none hides in freed memory and none lingers. The
    kernel's high-water mark of the resident set is reset before (`/proc/self/clear_refs`) and read after (`VmHWM`).
    Unlike torch's profiler this sees native buffers too. The kernel counts in batches: 100 KiB may be missed.
    None where the system cannot say.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kib(key: str) -> int:
        return int(re.search(rf"^{key}:\s+(\d+) kB", status.read_text(), re.MULTILINE)[1])  # type: ignore[index]

    gc.collect()
    heap(MIB // 8)
    try:
        reset.write_text("5")
        before = kib("VmRSS")
        kept = call()
        peak = kib("VmHWM")
        del kept
    except OSError:
        return None
    finally:
        steady_heap()
    return (peak - before) * 1024


def interleave(calls: dict[str, Timed], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, in turns: a block of about 20 ms of the first, then of the second, and round again.

    A call leaves when it had its share of `seconds` and three blocks (two, if one call alone exceeds its share) or 300
    blocks.
    """

    def once(name: str) -> float:
        prepare, run = calls[name]
        prepare()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    samples = {name: [once(name)] for name in calls}
    block = {name: max(1, int(20e-3 / samples[name][0])) for name in calls}
    active, rounds = list(calls), 1
    gc.disable()
    try:
        while active and rounds < 300:
            rounds += 1
            for name in active:
                samples[name] += [once(name) for _ in range(block[name])]
            least = {name: 3 if samples[name][0] < seconds else 2 for name in active}
            active = [name for name in active if rounds < least[name] or sum(samples[name]) < seconds]
    finally:
        gc.enable()
    return samples
