"""What every Numba kernel needs: NumPy views of tensors, and one parallel loop.

A kernel releases the interpreter's lock and takes a range of pieces, on threads of the OpenMP runtime that torch has
loaded: after each of its operations these wait busily for the next, and others would wait for a processor meanwhile.
Where it cannot be called (another system, a process after a fork) they are Python's. Numba's own parallel loops end the
process when they are entered after a fork or, in their portable form, from two threads at once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...doctor import openmp_runtimes
from ...ops.pixel_stats import FLOATING

_log = logging.getLogger("segfuse")
_pool: ThreadPoolExecutor | None = None
_Part = Callable[[int], None]

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
    if threads == 1:
        kernel(0, pieces, *arguments)
        return

    def part(i: int) -> None:
        kernel(pieces * i // threads, pieces * (i + 1) // threads, *arguments)

    openmp = None if _forked else _openmp()
    errors = _by_python(part, threads) if openmp is None else _by_openmp(openmp, part, threads)
    for error in errors:
        raise error


@functools.cache
def _openmp() -> Any:
    """GNU's runtime, if torch brought it, or it is the only one there is."""
    loaded = openmp_runtimes()
    chosen = [path for path in loaded if Path(torch.__file__).parent in Path(path).parents] or loaded
    if len(chosen) != 1 or "libgomp" not in chosen[0]:
        return None
    try:
        library = ctypes.CDLL(chosen[0])
    except OSError:
        return None
    library.GOMP_parallel.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _by_openmp(openmp: Any, part: _Part, threads: int) -> list[BaseException]:
    """The errors of all parts."""
    left = iter(range(threads))
    done: list[int] = []
    errors: list[BaseException] = []

    def body(_: Any) -> None:  # in every thread of the team, which may be smaller than it should
        try:
            for i in left:
                part(i)
                done.append(i)
        except BaseException as error:
            errors.append(error)

    openmp.GOMP_parallel(_BODY(body), None, threads, 0)
    if len(done) + len(errors) < threads:  # an interrupt on the way into `body` is printed by ctypes, and no more
        errors.append(KeyboardInterrupt())
    return errors


def _by_python(part: _Part, threads: int) -> list[BaseException]:
    others = [_workers().submit(part, i) for i in range(1, threads)]
    try:
        part(0)
    finally:
        errors = [other.exception() for other in others]  # waits: no thread may outlive the memory it writes to
    return [error for error in errors if error is not None]


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="segfuse")
    return _pool


_forked = False


def _after_fork() -> None:
    """Threads do not survive a fork; the child starts its own."""
    global _pool, _forked
    _pool, _forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _announce() -> None:
    _log.info("segfuse runs on Numba: each kernel is compiled at its first call (seconds) and kept on disk.")
