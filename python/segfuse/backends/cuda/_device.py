"""Where a CUDA kernel runs: the device of its tensors and the stream that is current there."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ... import _cuda
from .. import forced

#: Targets out of range raise, as on the CPU; each call then waits for the device.
DEBUG = os.environ.get("SEGFUSE_DEBUG", "") not in ("", "0")
DEVICE = "cpu" if _cuda.EMULATED else "cuda"


def elsewhere(input: Tensor, device: str | None = None) -> str | None:
    """Why a tensor cannot be read from here, whatever its dtype."""
    device = device or input.device.type
    if device != DEVICE:
        return f"it runs on a GPU, the input is on {device}"
    return "it is emulated, for tests" if _cuda.EMULATED and forced() != "cuda" else None


def refuses(input: Tensor, device: str | None = None) -> str | None:
    floating = input.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    return elsewhere(input, device) or (None if floating else f"{input.dtype} is not compiled in")


def where(x: Tensor) -> tuple[int, int]:
    """The number of the device and the address of its current stream."""
    if _cuda.EMULATED:
        return 0, 0
    index = x.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)


def workspace(bytes: int, x: Tensor) -> Tensor:
    """Memory for one call. Kernels of the same stream run in order, so it may be freed once they are launched."""
    return torch.empty(bytes, dtype=torch.uint8, device=x.device)
