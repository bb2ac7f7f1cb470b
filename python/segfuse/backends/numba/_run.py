"""What every Numba kernel needs: NumPy views of tensors, and one parallel loop.

Threads are Python's: a kernel releases the interpreter's lock and takes a range of pieces. Numba's own parallel loops
would bring a second pool of threads, one that ends the process when it is entered after a fork or, in its portable
form, from two threads at once.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...ops.pixel_stats import FLOATING

_log = logging.getLogger("segfuse")
_pool: ThreadPoolExecutor | None = None

# NaN and infinity keep their meaning: no "nnan", no "ninf". "reassoc" would undo roundings that are meant.
_FASTMATH = {"contract", "nsz"}
_UNCOUNTED: Any = {"_nrt": False}


def allocating(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that makes arrays of its own."""
    return numba.njit(kernel, nogil=True, cache=True, error_model="numpy", fastmath=_FASTMATH)


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel ``(first, last, ...)`` over pieces, or a function of one. It allocates nothing, so nobody counts the
    references to an array: a count is atomic, and threads that share the array wait for each other in every loop."""
    return numba.njit(kernel, nogil=True, cache=True, error_model="numpy", fastmath=_FASTMATH, **_UNCOUNTED)


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    if device != "cpu":
        return f"it runs on the CPU, the input is on {device}"
    return None if input.dtype in FLOATING else f"{input.dtype} is not computed in"


def view(x: Tensor) -> NDArray[Any]:
    """The memory of a tensor on the CPU, strides and all; bfloat16, which NumPy does not know, as uint16."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def run(kernel: Callable[..., Any], pieces: int, *arguments: Any) -> None:
    """``kernel(first, last, *arguments)`` over all pieces, on as many threads as torch uses.

    What a piece writes is its own, so the number of threads changes nothing.
    """
    _announce()
    threads = max(1, min(torch.get_num_threads(), pieces))
    ends = [pieces * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(0, pieces, *arguments)
        return
    others = [_workers().submit(kernel, *ends[i : i + 2], *arguments) for i in range(1, threads)]
    try:
        kernel(*ends[:2], *arguments)
    finally:
        errors = [other.exception() for other in others]  # waits: no thread may outlive the memory it writes to
    for error in errors:
        if error is not None:
            raise error


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="segfuse")
    return _pool


def _forget_workers() -> None:
    """Threads do not survive a fork; the child starts its own."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


@functools.cache
def _announce() -> None:
    _log.info("segfuse runs on Numba: each kernel is compiled at its first call (seconds) and kept on disk.")
