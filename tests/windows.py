"""What the tests of ops on windows share: cases, settings, and the runs that must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import segfuse as sf
from cases import CASES, Case
from compare import same
from segfuse.backends import available
from segfuse.ops import pixel_stats
from segfuse.ops.local_moments import Window, make_window
from segfuse.ops.pixel_stats import Geometry, Tensors

NAMES = [name for name, case in CASES.items() if 1 <= len(case.shape) - 2 <= 3]
SEVERAL_BOXES = ["many_tiles", "binary_many_tiles", "binary_3d", "3d"]
ON_CPU = [name for name in available("ssim") if name in ("cpp", "numba")]
SHAPES = [(2, 1, 150, 330), (1, 3, 70, 35, 20)]  # cut into boxes along every axis

Sums = Callable[[Tensors, Geometry, Window], Sequence[Tensor]]


def window_for(name: str, window: int) -> int:
    """One that fits the case."""
    return min(window, 5) if "3d" in name else window


def run(
    sums: Sums, x: Tensor, y: Tensor, call: dict[str, Any], case: Case, backend: str, padding: str, window: int
) -> list[Tensor]:
    """The two sums of every group, and the gradient of the first one's."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    maps = {name: call[name] for name in ("weight_map", "mask") if name in call}
    with sf.use_backend(backend):
        tensors, g = pixel_stats.check(
            x, y, mode=case.mode, from_logits=case.from_logits, one_vs_rest=case.one_vs_rest, **maps
        )
        total, count = sums(tensors, g, make_window(window, 1.5, "gaussian", padding, g.spatial))
        weights = torch.linspace(0.5, 2, total.numel(), dtype=torch.float64).reshape(total.shape)
        (grad,) = torch.autograd.grad((weights * total).sum(), x)
    return [total.detach(), count.detach(), grad]


def same_for_any_number_of_threads(loss: sf.losses._base.Loss, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = (x + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) > 0).long()
    y = y if shape[1] == 1 else y.argmax(1)
    for backend in ON_CPU:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            z = x.clone().requires_grad_()
            with sf.use_backend(backend):
                value = loss(z, y)
                value.backward()
            found.append((value.detach(), z.grad))
        assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other)), backend
