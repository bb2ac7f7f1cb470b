"""Which implementation of an op runs: ``cuda`` and ``cpp`` first, then ``numba``, then ``reference``."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

with contextlib.suppress(ImportError, OSError):  # now, so that it sees any fork: a child must not wait for threads
    _isa = importlib.import_module("segfuse._cpp").isa_info()
    if os.environ.get("SEGFUSE_ISA", _isa["used"]) != _isa["used"]:
        warnings.warn(
            f"SEGFUSE_ISA must be one of {', '.join(_isa['found'])} on this machine; "
            f"got {os.environ['SEGFUSE_ISA']!r}. {_isa['used']} runs",
            stacklevel=2,
        )

OPS = (
    "pixel_stats",
    "formula",
    "distance_transform_edt",
    "erosion",
    "disk_sums",
    "pairwise_hausdorff",
    "lovasz_extension",
    "top_k",
    "local_moments",
    "ssim",
    "cmssl",
)
NAMES = ("cuda", "cpp", "numba", "reference")
#: Values that do not fit raise on a GPU as on the CPU. Looking at them waits for the device: without it they give NaN.
DEBUG = os.environ.get("SEGFUSE_DEBUG", "") not in ("", "0")
_ENVIRONMENT = os.environ.get("SEGFUSE_BACKEND") or None  # read once, at import
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("segfuse_backend", default=None)


@cache
def _load(backend: str, op: str) -> tuple[ModuleType | None, str | None]:
    """The module ``backends/<backend>/<op>.py``, or the reason why there is none."""
    name = f"{__name__}.{backend}.{op}"
    if backend not in NAMES:
        return None, f"SEGFUSE_BACKEND must be one of {', '.join(NAMES)}"
    try:
        return importlib.import_module(name), None
    except (ImportError, OSError) as error:
        if backend == "numba":
            missing = getattr(error, "name", None) in ("numba", "llvmlite")
            return None, "the package numba is missing: pip install numba" if missing else f"{error}"
        return None, f"segfuse was installed without it: {error}"


def why_not(op: str) -> dict[str, str | None]:
    """For every backend, why ``op`` cannot run on it here; ``None`` where it can."""
    reasons = {name: _load(name, op)[1] for name in NAMES}
    if reasons["cuda"] is None:
        reasons["cuda"] = importlib.import_module(f"{__name__}.cuda._device").idle()
    return reasons


def available(op: str) -> list[str]:
    """The backends that can run ``op`` on this machine, best first."""
    return [name for name, reason in why_not(op).items() if reason is None]


def forced() -> str | None:
    """The backend demanded by :func:`use_backend` or ``SEGFUSE_BACKEND``, if any."""
    return _forced.get() or _ENVIRONMENT


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the ``with`` block on one backend; it runs there or raises.

    Args:
        name: ``"cpp"``, ``"cuda"``, ``"numba"`` or ``"reference"``.
    Raises:
        ValueError: unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}; got {name!r}. Try: use_backend('cpp')")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def pick(op: str, input: Tensor) -> ModuleType:
    """The backend module that runs ``op`` on ``input``.

    Raises:
        RuntimeError: no backend fits, or the forced one does not; each backend's reason is in the message.
    """
    demanded = forced()
    if demanded is None:
        best = _default(op, input.device.type, input.dtype)
        if best is not None:
            return best
    reasons = []
    for name in (demanded,) if demanded else NAMES:
        module, reason = _load(name, op)
        reason = reason if module is None else module.refuses(input)
        if module is not None and reason is None:
            return module
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(
        f"no backend runs {op} on {input.dtype} tensors on {input.device}; {'; '.join(reasons)}. "
        f"Try: {'without use_backend and SEGFUSE_BACKEND' if demanded else 'input.cpu()'}"
    )


@cache
def _default(op: str, device: str, dtype: torch.dtype) -> ModuleType | None:
    """The best backend for a kind of tensor. Its answer cannot change while the process runs."""
    probe = torch.empty(0, dtype=dtype, device="meta")
    for name in NAMES:
        module, _ = _load(name, op)
        if module is not None and module.refuses(probe, device) is None:
            return module
    return None
