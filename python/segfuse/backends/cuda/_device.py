"""Where a CUDA kernel runs: the device of its tensors and the stream that is current there."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ... import _cuda
from .. import DEBUG as DEBUG
from .. import forced

DEVICE = "cpu" if _cuda.EMULATED else "cuda"


def elsewhere(input: Tensor, device: str | None = None) -> str | None:
    """Why a tensor cannot be read from here, whatever its dtype."""
    device = device or input.device.type
    if device != DEVICE:
        return f"it runs on a GPU, the input is on {device}"
    if _cuda.EMULATED:
        return None if forced() == "cuda" else "it is emulated, for tests"
    return _wrong_gpu(torch.cuda.current_device())


def idle() -> str | None:
    """Why the kernels cannot run on this machine."""
    if _cuda.EMULATED:
        return None
    if torch.version.cuda is None:
        return "it is installed, but torch is built for the CPU alone"
    if not torch.cuda.is_available():
        return "it is installed, but torch finds no GPU that it can use"
    return _wrong_gpu(torch.cuda.current_device())


@cache
def _wrong_gpu(index: int) -> str | None:
    """Why the kernels do not run on a GPU: none is compiled for it, nor any that its driver could compile."""
    major, minor = torch.cuda.get_device_capability(index)
    for architecture in _cuda.ARCHITECTURES:
        number, _, kind = architecture.partition("-")
        if not number.isdecimal():  # native and the like: whatever the builder had
            return None
        built = divmod(int(number), 10)
        if (kind != "real" and built <= (major, minor)) or (built[0] == major and built[1] <= minor):
            return None
    return f"its kernels are built for {', '.join(_cuda.ARCHITECTURES)}, the GPU has compute capability {major}.{minor}"


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
