"""Streaming bandwidth of this machine, and the time a loss cannot beat: the bytes that must move over it.

`torch.sum` streams a read and `Tensor.copy_` a read plus a write; with the same threads both reach what a plain C loop
reaches (AVX-512 loads and stores, two cores, buffers of 16 MB to 512 MB: within 5 %). A copy with non-temporal stores
has 1.4 to 1.9 times the rate of either; the floor is the plain copy.

Buffers are warm, four times the last-level cache (at least 256 MiB) and on huge pages where the system grants them, so
the bandwidth is that of memory. Losses at the smaller shapes partly live in the cache; the `here` bandwidths stream
buffers of the size of the case's own logits and give the stricter floor.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

MIB = 1 << 20


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second. `copy` counts the bytes read and the bytes written."""

    read: float
    write: float
    copy: float


def huge(nbytes: int) -> Tensor:
    """A zeroed float32 buffer, on huge pages where the system grants them."""
    buffer = torch.empty(nbytes // 4)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        page = mmap.PAGESIZE
        start = (buffer.data_ptr() + page - 1) // page * page
        length = (buffer.data_ptr() + nbytes - start) // page * page
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
    return buffer.zero_()


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=32 * MIB)


class Streams:
    """Two buffers to stream, to be timed beside the losses: `read()`, `write()` and `copy()` once over."""

    def __init__(self, nbytes: int | None = None) -> None:
        self.nbytes = max(256 * MIB, 4 * last_level_cache()) if nbytes is None else nbytes
        self.source, self.sink = huge(self.nbytes), huge(self.nbytes)

    def calls(self) -> dict[str, Callable[[], object]]:
        return {
            "read": self.source.sum,
            "write": lambda: self.sink.fill_(1.0),
            "copy": lambda: self.sink.copy_(self.source),
        }

    def bandwidth(self, seconds: dict[str, float]) -> Bandwidth:
        """From the seconds that each of `calls()` took."""
        return Bandwidth(
            read=self.nbytes / seconds["read"],
            write=self.nbytes / seconds["write"],
            copy=2 * self.nbytes / seconds["copy"],
        )

    def measure(self, rounds: int = 10) -> Bandwidth:
        """The best of `rounds`, round robin."""
        best = dict.fromkeys(self.calls(), float("inf"))
        for _ in range(rounds):
            for name, call in self.calls().items():
                start = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - start)
        return self.bandwidth(best)


def floor(logits: Tensor, labels: Tensor, bandwidth: Bandwidth, *, one_pass: bool) -> float:
    """Seconds that forward plus backward need to move their bytes.

    Backward reads logits and labels and writes the gradient: a copy of the logits plus a read of the labels. A loss of
    sums has read both once before, in forward. A pixel loss with a known normaliser (`one_pass`) can write the gradient
    while it reads.
    """
    forward = 0.0 if one_pass else (logits.nbytes + labels.nbytes) / bandwidth.read
    return forward + 2 * logits.nbytes / bandwidth.copy + labels.nbytes / bandwidth.read


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, GB/s")
    for size in (16 * MIB, 64 * MIB, None):
        streams = Streams(size)
        rates = {name: f"{rate / 1e9:.1f}" for name, rate in asdict(streams.measure()).items()}
        print(f"{streams.nbytes // MIB} MiB: {rates}")
