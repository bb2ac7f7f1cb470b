"""cmssl: the fused sweeps against their definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
import windows
from cases import CASES, make
from compare import close, within_rounding
from segfuse.backends import available
from segfuse.ops import cmssl

fast_backends = pytest.mark.parametrize("backend", [name for name in available("cmssl") if name != "reference"])


def run(x, y, call, case, backend, scope="batch", cut=0.1, detach=False, padding="zeros", window=3, first_class=0):
    def sums(tensors, g, w):
        return cmssl.sums(tensors, g, cmssl.Cmssl(w, 0.01, 1e-12, cut, scope, detach, first_class))

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
    for e, p, f, what in zip(exact, plain, fast, ("total", "selected", "gradient")):
        if name.endswith("one_pixel"):  # the rounding of one number is luck
            close(f, e, 1e-4 if dtype == torch.float32 else 1e-2)
        else:
            within_rounding(f, p, e, dtype, what)


@pytest.mark.parametrize("window", [3, 5, 11])
@pytest.mark.parametrize("padding", ["zeros", "valid"])
@pytest.mark.parametrize(("scope", "cut"), [("batch", 0.2), ("sample", 0.1), ("class", 0.1), ("fixed", 0.3)])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", windows.SEVERAL_BOXES)
@fast_backends
def test_settings(backend, name, detach, scope, cut, padding, window):
    case = CASES[name]
    x, y, call = make(case, torch.float64)
    more = {
        "scope": scope,
        "cut": cut,
        "detach": detach,
        "padding": padding,
        "window": windows.window_for(name, window),
    }
    more["first_class"] = int(case.shape[1] > 1)
    exact = run(x, y, call, case, "reference", **more)
    fast = run(x, y, call, case, backend, **more)
    for e, f in zip(exact, fast):
        within_rounding(f, e, e, torch.float64)


@pytest.mark.parametrize("shape", windows.SHAPES)
def test_threads_change_nothing(threads, shape):
    windows.same_for_any_number_of_threads(sf.CMSSLLoss(window=7), shape)
