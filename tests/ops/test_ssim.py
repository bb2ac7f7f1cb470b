"""ssim: the fused sweep against its definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
import windows
from cases import CASES, make
from compare import within_rounding
from segfuse.backends import available
from segfuse.ops import ssim

fast_backends = pytest.mark.parametrize("backend", [name for name in available("ssim") if name != "reference"])


def run(x, y, call, case, backend, contrast=False, padding="zeros", window=3, first_class=0):
    def sums(tensors, g, w):
        return ssim.sums(tensors, g, ssim.Ssim(w, 1e-4, 9e-4, contrast, first_class))

    return windows.run(sums, x, y, call, case, backend, padding, window)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", windows.NAMES)
@fast_backends
def test_matches_reference(backend, name, dtype):
    case = CASES[name]
    x, y, call = make(case, dtype)
    exact = run(x.double(), y, call, case, "reference")
    plain = run(x, y, call, case, "reference")
    fast = run(x, y, call, case, backend)
    for e, p, f, what in zip(exact, plain, fast, ("total", "count", "gradient")):
        within_rounding(f, p, e, dtype, what)


@pytest.mark.parametrize("window", [1, 5, 7, 11])
@pytest.mark.parametrize("padding", ["zeros", "valid"])
@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("name", windows.SEVERAL_BOXES)
@fast_backends
def test_settings(backend, name, contrast, padding, window):
    case = CASES[name]
    x, y, call = make(case, torch.float64)
    more = {
        "contrast": contrast,
        "padding": padding,
        "window": windows.window_for(name, window),
        "first_class": int(case.shape[1] > 1),
    }
    exact = run(x, y, call, case, "reference", **more)
    fast = run(x, y, call, case, backend, **more)
    for e, f in zip(exact, fast):
        within_rounding(f, e, e, torch.float64)


@pytest.mark.parametrize("shape", windows.SHAPES)
def test_threads_change_nothing(threads, shape):
    windows.same_for_any_number_of_threads(sf.SSIMLoss(window=7), shape)


@pytest.mark.skipif("cuda" not in available("ssim"), reason="the CPU raises")
@pytest.mark.parametrize("broken", ["target", "mask", "weight"])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
@pytest.mark.parametrize("make_loss", [sf.SSIMLoss, sf.CMSSLLoss], ids=["ssim", "cmssl"])
def test_a_gpu_answers_values_out_of_range_with_nan(make_loss, mode, broken):
    x = torch.randn(2, 1 if mode == "binary" else 3, 9, 40, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    weight, loss = torch.ones(y.shape), make_loss(window=3, mode=mode)
    with sf.use_backend("cuda"):
        assert loss(x, y, weight_map=weight).isfinite()
        if broken == "weight":
            weight[1, 5, 35] = -1
        else:
            y[1, 5, 35] = 7
        mask = y != 7 if broken == "mask" else None
        assert loss(x, y, weight_map=weight, mask=mask).isnan() == (broken != "mask")
