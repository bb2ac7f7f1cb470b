"""cmssl: the fused sweeps against their definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
from cases import CASES, make
from compare import close, same, within_rounding
from segfuse.backends import available
from segfuse.ops import cmssl, pixel_stats
from segfuse.ops.local_moments import make_window

CALL = ("weight_map", "mask")
fast_backends = pytest.mark.parametrize("backend", [name for name in available("cmssl") if name != "reference"])


def usable(name: str) -> bool:
    case = CASES[name]
    return 1 <= len(case.shape) - 2 <= 3


def run(x, y, call, case, backend, scope="batch", cut=0.1, detach=False, padding="zeros", window=3, first_class=0):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with sf.use_backend(backend):
        tensors, g = pixel_stats.check(
            x, y, mode=case.mode, from_logits=case.from_logits, one_vs_rest=case.one_vs_rest,
            **{name: call[name] for name in CALL if name in call},
        )  # fmt: skip
        moved = make_window(window, 1.5, "gaussian", padding, g.spatial)
        settings = cmssl.Cmssl(moved, 0.01, 1e-12, cut, scope, detach, first_class)
        total, selected = cmssl.sums(tensors, g, settings)
        weights = torch.linspace(0.5, 2, total.numel(), dtype=torch.float64).reshape(total.shape)
        (grad,) = torch.autograd.grad((weights * total).sum(), x)
    return [total.detach(), selected.detach(), grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if usable(name)])
@fast_backends
def test_matches_reference(backend, name, dtype):
    case = CASES[name]
    x, y, call = make(case, dtype)
    exact = run(x.double(), y, call, case, "reference")
    plain = run(x, y, call, case, "reference")
    fast = run(x, y, call, case, backend)
    for e, p, f, what in zip(exact, plain, fast, ("total", "selected", "gradient")):
        if name.endswith("one_pixel"):  # the rounding of one number is luck
            close(f, e, 1e-4 if dtype == torch.float32 else 1e-2)
        else:
            within_rounding(f, p, e, dtype, what)


@pytest.mark.parametrize("window", [3, 5, 11])
@pytest.mark.parametrize("padding", ["zeros", "valid"])
@pytest.mark.parametrize(("scope", "cut"), [("batch", 0.2), ("sample", 0.1), ("class", 0.1), ("fixed", 0.3)])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", ["many_tiles", "binary_many_tiles", "binary_3d", "3d"])
@fast_backends
def test_settings(backend, name, detach, scope, cut, padding, window):
    case = CASES[name]
    window = min(window, 5) if "3d" in name else window
    x, y, call = make(case, torch.float64)
    more = {"scope": scope, "cut": cut, "detach": detach, "padding": padding, "window": window}
    more["first_class"] = int(case.shape[1] > 1)
    exact = run(x, y, call, case, "reference", **more)
    fast = run(x, y, call, case, backend, **more)
    for e, f in zip(exact, fast):
        within_rounding(f, e, e, torch.float64)


@pytest.mark.parametrize("shape", [(2, 1, 150, 330), (1, 3, 70, 35, 20)])
def test_threads_change_nothing(threads, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = (x + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) > 0).long()
    y = y if shape[1] == 1 else y.argmax(1)
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        z = x.clone().requires_grad_()
        value = sf.CMSSLLoss(window=7)(z, y)
        value.backward()
        found.append((value.detach(), z.grad))
    assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other))


@pytest.mark.skipif("cuda" not in available("cmssl"), reason="the CPU raises")
@pytest.mark.parametrize("broken", ["target", "mask", "weight"])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_a_gpu_answers_values_out_of_range_with_nan(mode, broken):
    x = torch.randn(2, 1 if mode == "binary" else 3, 9, 40, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    weight, loss = torch.ones(y.shape), sf.CMSSLLoss(mode=mode)
    with sf.use_backend("cuda"):
        assert loss(x, y, weight_map=weight).isfinite()
        if broken == "weight":
            weight[1, 5, 35] = -1
        else:
            y[1, 5, 35] = 7
        mask = y != 7 if broken == "mask" else None
        assert loss(x, y, weight_map=weight, mask=mask).isnan() == (broken != "mask")
