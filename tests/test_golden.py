"""Every golden value and gradient of the specification, on every backend."""

from __future__ import annotations

import pytest
import torch

import golden
from compare import close, evaluate
from golden import CASES, EDGE_CASES, EDGES, TABLE

#: relative to the value, relative to the largest entry of the gradient
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (2e-6, 1e-5)}


def test_every_id_has_an_owner():
    assert set(CASES) == TABLE.keys()
    assert set(EDGE_CASES) == EDGES.keys()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_case(backend, name, dtype):
    case = CASES[name]
    loss = TABLE[name](case).to(dtype)
    value, grad = evaluate(loss, golden.logits(case).to(dtype), golden.target(case), weight_map=golden.weight_map(case))
    assert value.dtype == grad.dtype == dtype
    close(value, case["value"], TOLERANCE[dtype][0])
    close(grad, golden.gradient(case), TOLERANCE[dtype][1])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [name for name in TABLE if "grad_nu_tilde" in CASES[name]])
def test_gradient_by_the_parameter(backend, name, dtype):
    case = CASES[name]
    loss = TABLE[name](case).to(dtype)
    loss(golden.logits(case).to(dtype), golden.target(case)).backward()
    close(loss.nu_tilde.grad, case["grad_nu_tilde"], TOLERANCE[dtype][1])


@pytest.mark.parametrize("name", [name for name in TABLE if CASES[name]["input"] == "B"])
def test_binary_case_with_a_channel_axis(backend, name):
    """(N, 1, *spatial) is the same problem as (N, *spatial)."""
    case = CASES[name]
    x, y, w = golden.logits(case)[:, None], golden.target(case), golden.weight_map(case)
    value, grad = evaluate(TABLE[name](case), x, y, weight_map=w)
    close(value, case["value"], 1e-10)
    close(grad[:, 0], golden.gradient(case), 1e-10)


@pytest.mark.parametrize("name", [name for name in TABLE if "ignore" in CASES[name]["params"]])
def test_a_mask_ignores_like_ignore_index(backend, name):
    case = CASES[name]
    x, y, w = golden.logits(case), golden.labels(case["input"]), golden.weight_map(case)
    value, grad = evaluate(TABLE[name](case), x, y, weight_map=w, mask=~golden.ignored(case))
    close(value, case["value"], 1e-10)
    close(grad, golden.gradient(case), 1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", EDGES)
def test_edge_case(backend, name, dtype):
    case = EDGE_CASES[name]
    if name.split(".")[0] in ("ce", "topk_ce", "generalized_dice", "lovasz_softmax"):  # losses of several classes
        case = {**case, "input": case["input"].replace("B", "M", 1)}
    value, grad = evaluate(EDGES[name](case), golden.logits(case).to(dtype), golden.target(case))
    close(value, case["value"], TOLERANCE[dtype][0])
    if "gradient 0" in case["note"]:
        assert not grad.any()
    elif "gradient is 0" in case["note"]:  # up to the rounding of terms that cancel
        assert float(grad.abs().max()) <= 1e-8
