"""The arithmetic on the sums: a traced formula gives what its own code gives on tensors, derivative included."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import segfuse as sf
from all_losses import ALL, IDS, problem
from compare import close, evaluate, same
from segfuse.backends import available
from segfuse.losses._base import Loss
from segfuse.ops import formula
from segfuse.ops.formula import ratio, where

pytestmark = pytest.mark.skipif("cpp" not in available("formula"), reason="the C++ extension is not built")


def traced(loss: Loss, x: Tensor, y: Tensor) -> bool:
    """Whether the value comes from one native call."""
    return "traced operations" in sf.explain(loss, x, y)


def by_torch(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Loss], x: Tensor, y: Tensor, **call: Any) -> Any:
    """The same with the formula on tensors, the pass as it was."""
    with monkeypatch.context() as patch:
        patch.setattr(formula, "_native_backend", lambda *_: None)
        return evaluate(make(), x, y, **call)


# ------------------------------------------------------------------------------------------- every loss


@pytest.mark.parametrize("native", [name for name in available("formula") if name != "reference"])
@pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
def test_native_is_torch(monkeypatch, variant, mode, native):
    """Every loss is traced; value and gradient are those of its code on tensors, for every reduction."""
    x, y = problem(mode)
    y[0, ..., 1] = -100
    for reduction in ("mean", "sum") if variant.compound or variant.name == "BlobLoss" else ("mean", "sum", "none"):

        def make(reduction: str = reduction) -> Loss:
            return variant(mode=mode, reduction=reduction)

        with sf.use_backend(native):
            if make().fusable and reduction != "none" and native != "numba":  # which leaves most formulas to torch
                assert traced(make(), x, y)
            value, grad = evaluate(make(), x, y)
            expected, expected_grad = by_torch(monkeypatch, make, x, y)
        close(value, expected, 1e-13)
        close(grad, expected_grad, 1e-11)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_gradient_by_a_parameter(monkeypatch, mode):
    x, y = problem(mode)
    losses = [
        sf.TLoss(nu_tilde=0.4, lam=0.3),
        sf.CompoundLoss({"t": (0.3, sf.TLoss(nu_tilde=0.4, lam=0.3)), "dice": sf.DiceLoss()}),
    ]
    for loss in losses:
        (parameter,) = loss.parameters()
        loss(x, y).backward()
        native = parameter.grad.clone()
        parameter.grad = None
        with monkeypatch.context() as patch, sf.use_backend("reference"):
            patch.setattr(formula, "_native_backend", lambda *_: None)
            loss(x, y).backward()
        close(native, parameter.grad.double(), 1e-6)


def test_a_frozen_parameter_and_a_frozen_input():
    x, y = problem("binary", dtype=torch.float32)
    loss = sf.TLoss()
    loss.nu_tilde.requires_grad_(False)
    _, grad = evaluate(loss, x, y)
    assert grad.any() and loss.nu_tilde.grad is None
    loss = sf.TLoss()
    loss(x, y).backward()
    assert loss.nu_tilde.grad is not None and loss.nu_tilde.grad != 0


# ------------------------------------------------------------------------------------------- words of a formula

FORMULAS: dict[str, Callable[[Any], Any]] = {
    "add": lambda s: s.tp + s.pred + 1 + (2 + s.true),
    "sub": lambda s: s.tp - s.pred - 3 + (5 - s.true),
    "mul": lambda s: s.tp * s.pred * 0.5 + 2 * s.tp,
    "div": lambda s: s.tp / (s.pred + 1) + 3 / (s.tp + 1) + s.tp / 4,
    "pow": lambda s: s.tp**2 + (s.tp + 1) ** 0.5 + 1.1**s.tp + (s.tp + 1) ** (s.pred / 50),
    "neg": lambda s: -s.tp,
    "abs": lambda s: abs(s.tp - s.pred) + (s.pred - 7).abs() + torch.abs(s.tp - 3),
    "log": lambda s: (s.tp + 1).log() + torch.log(s.pred + 2),
    "log1p": lambda s: s.tp.log1p() + torch.log1p(s.pred),
    "exp": lambda s: (s.tp / s.n).exp() + torch.exp(-s.pred),
    "expm1": lambda s: (s.tp / s.n).expm1() + torch.expm1(-s.pred),
    "sqrt": lambda s: (s.tp + 1).sqrt() + torch.sqrt(s.pred + 2),
    "tanh": lambda s: (s.tp / s.n).tanh() + torch.tanh(s.fn / s.n),
    "sinh": lambda s: (s.tp / s.n).sinh() + torch.sinh(s.fn / s.n),
    "cosh": lambda s: (s.tp / s.n).cosh() + torch.cosh(s.fn / s.n),
    "lgamma": lambda s: (s.tp + 1).lgamma() + torch.lgamma(s.pred + 0.5),
    "lgamma below 0": lambda s: torch.lgamma(0.3 - s.pred) + (s.tp - 1e12).lgamma() * 1e-12,
    "square": lambda s: s.tp.square() + torch.square(s.pred),
    "maximum": lambda s: torch.maximum(s.tp, s.pred - 6) + (s.tp - 4).clamp(min=0.0),
    "minimum": lambda s: torch.minimum(s.tp, s.pred - 6) + (s.tp - 4).clamp(max=1.0) + s.tp.clamp(2.0, 6.0),
    "torch.clamp": lambda s: torch.clamp(s.tp - 4, min=0.0, max=3.0),
    "where": lambda s: where(s.tp > 5, s.tp, 2.0 * s.pred) + where(s.pred <= 12, 1.0, s.tp),
    "torch.where": lambda s: torch.where(s.tp >= 5, s.tp, s.pred),
    "compare": lambda s: (
        s.tp * (where(s.tp < s.pred, 1.0, 0.0) + where(s.fn == 0, 1.0, 0.0) + where(s.fn != 0, 3.0, 0.0))
    ),
    "ratio": lambda s: ratio(s.tp, s.true - s.true) + ratio(s.tp, s.pred),
    "sum": lambda s: s.tp * s.pred.sum(0, keepdim=True) + s.pred.sum(1, keepdim=True) + s.tp.sum(),
    "mean": lambda s: s.tp.mean(0, keepdim=True) + s.pred.mean(1, keepdim=True) + s.pred.mean() + s.tp,
    "amax": lambda s: s.tp / s.true.amax(1, keepdim=True),
    "detach": lambda s: s.tp * s.pred.detach(),
    "columns": lambda s: s.tp[:, :1] + s.pred[:, 1:].sum(1, keepdim=True) + s.tp,
    "moments": lambda s: (
        s.tp + s.fp * 2 + s.fn * 3 + s.tn * 5 + s.pred2 * 7 + s.true2 * 11 + s.count * 13 + s.true_count * 17
    ),
    "terms": lambda s: s.focal(1.5)[0] + s.focal(0.0)[0] * 2 + s.power(1.3)[0] * 3,
    "constant": lambda s: s.tp * math.pi + 1,
    "not differentiable": lambda s: s.true / (s.n + 1),
}


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("name", FORMULAS)
def test_every_operation(monkeypatch, name, mode):
    x, y = problem(mode, n=3)
    w = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1))

    for reduction in ("mean", "sum", "none"):

        def make(reduction: str = reduction) -> Loss:
            return sf.RegionLoss(FORMULAS[name], reduction=reduction)

        assert traced(make(), x, y)
        value, grad = evaluate(make(), x, y, weight_map=w)
        expected, expected_grad = by_torch(monkeypatch, make, x, y, weight_map=w)
        close(value, expected, 1e-13)
        close(grad, expected_grad, 1e-12)
        if name == "not differentiable":
            assert not grad.any()


def test_ratio_of_nothing_is_0_with_gradient_0():
    x, y = problem("binary")
    value, grad = evaluate(sf.RegionLoss(lambda s: ratio(s.tp, s.true * 0)), x, y)
    assert value == 0 and not grad.any()


def test_infinite_numbers_do_not_leak_through_unused_branches():
    """0 times an infinite slope is no NaN: the branch was not taken."""
    x, y = problem("binary")
    value, grad = evaluate(sf.RegionLoss(lambda s: where(s.true > 0, s.tp / s.true, (s.tp * 0).log())), x, y)
    assert value.isfinite() and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("at", [0.0, -0.0, -3.0, -math.inf, math.inf, math.nan])
def test_slope_of_lgamma_at_poles(monkeypatch, at):
    x, y = problem("binary")

    def make() -> Loss:
        return sf.RegionLoss(lambda s: torch.lgamma(s.tp - s.tp.detach() + at))

    (_, grad), (_, expected) = evaluate(make(), x, y), by_torch(monkeypatch, make, x, y)
    assert traced(make(), x, y)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_the_largest_of_some_nan_is_nan():
    x, y = problem("multiclass", n=1)
    loss = sf.RegionLoss(lambda s: (s.class_index - 1).sqrt().amax(1, keepdim=True) + s.tp)
    assert traced(loss, x, y) and loss(x, y).isnan()


def test_the_largest_of_no_class():
    """It would be read from beside the array."""
    x, y = problem("binary")
    with pytest.raises(IndexError, match="amax"):
        sf.RegionLoss(lambda s: s.tp[:, 1:].amax(1, keepdim=True) + s.tp)(x, y)


# ------------------------------------------------------------------------------------------- what cannot be traced


def _branches(s: Any) -> Any:
    return 1 - s.tp / (s.true + 1) if s.tp.sum() > 0 else s.pred


def _unknown_function(s: Any) -> Any:
    return 1 - torch.sigmoid(s.tp - s.pred)


def _indexes(s: Any) -> Any:
    return 1 - (s.tp / (s.true + 1))[:, [0]]


def _holds_a_tensor(s: Any) -> Any:
    return 1 - s.tp / (s.true + torch.ones(1, 1, dtype=torch.float64))


def _sums_without_keepdim(s: Any) -> Any:
    return 1 - s.tp / (s.true.sum(1)[:, None] + 1)


@pytest.mark.parametrize("function", [_branches, _unknown_function, _indexes, _holds_a_tensor, _sums_without_keepdim])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_untraceable_formulas_run_on_tensors(backend, function, mode):
    x, y = problem(mode)
    loss = sf.RegionLoss(function)
    why = sf.explain(loss, x, y)
    assert "torch" in why and not traced(loss, x, y)
    value, grad = evaluate(loss, x, y)
    p = (torch.softmax if mode == "multiclass" else lambda x, _: torch.sigmoid(x))(x.requires_grad_(), 1)
    hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1) if mode == "multiclass" else y

    class Sums:
        tp, pred, true = (p * hot).sum((2, 3)), p.sum((2, 3)), hot.sum((2, 3)).double()

    expected = function(Sums).mean()
    close(value, expected.detach(), 1e-13)
    close(grad, torch.autograd.grad(expected, x)[0], 1e-12)


def test_reason_is_told():
    x, y = problem("binary")
    assert "branch" in sf.explain(sf.RegionLoss(_branches), x, y)
    assert "sigmoid" in sf.explain(sf.RegionLoss(_unknown_function), x, y)


@pytest.mark.parametrize("batch", [False, True])
def test_untraceable_formulas_have_the_same_shapes(batch):
    x, y = problem("multiclass")
    for reduction in ("mean", "sum", "none"):
        plain = sf.RegionLoss(lambda s: 1 - s.tp / (s.true + 1), reduction=reduction, batch=batch)(x, y)
        other = sf.RegionLoss(_holds_a_tensor, reduction=reduction, batch=batch)(x, y)
        assert plain.shape == other.shape
        close(other, plain, 1e-13)


def test_an_unknown_sum_is_an_error():
    x, y = problem("binary")
    with pytest.raises(AttributeError, match="there is no sum 'tpp'"):
        sf.RegionLoss(lambda s: s.tpp)(x, y)


def test_an_error_in_a_formula_is_not_swallowed():
    def broken(s: Any) -> Any:
        raise ZeroDivisionError("mine")

    x, y = problem("binary")
    with pytest.raises(ZeroDivisionError, match="mine"):
        sf.RegionLoss(broken)(x, y)


# What a formula may be made of: also arguments that the tracer does not know, which it must not drop.
LEAVES = (*("s.tp", "s.pred", "s.true", "s.fp", "s.n", "s.pred2") * 3, "0.5", "3", "s.tp.size(-2)", "s.tp.size(1)")
ONE = (
    *("(-{a})", "abs({a} - 3)", "({a}).square()", "torch.abs(input={a})", "({a}).detach()", "(abs({a}) + 1) ** 0.5"),
    *("torch.sqrt(abs({a}) + 1)", "torch.tanh({a} / 50)", "(abs({a})).log1p()", "1.01 ** {a}", "({a}) ** 0"),
    *("torch.pow(abs({a}) + 1, exponent=1.5)", "1 / (1 + abs({a}))", "2 - ({a})", "np.float32(2) * {a}"),
    *("({a}).sum(1, True)", "({a}).sum(dim=[1], keepdim=True)", "({a}).sum((0, 1), keepdim=True)", "({a}).sum()"),
    *("({a}).sum(-2, keepdim=True)", "torch.sum(input={a}, dim=-1, keepdim=True)", "({a}).sum(axis=0, keepdims=True)"),
    *("({a}).sum((0, -1))", "({a}).sum(1, keepdim=True, dtype=torch.float32)", "({a}).sum(1)[:, None]"),
    *("({a}).mean(-2, keepdim=True)", "({a}).mean([0, 1])", "torch.mean({a}, 1, True)", "({a}).mean(0)"),
    *("({a}).amax(1, keepdim=True)", "s.true.amax(-1, keepdim=True) * {a}", "({a}).max()", "({a}).cumsum(1)"),
    *("({a})[:, :1]", "({a})[..., :1]", "({a})[:, ::2].sum(1, keepdim=True)", "({a})[:, 1:].sum(1, keepdim=True)"),
    *("({a}).clamp(1, 4)", "({a}).clamp(max=4, min=6)", "({a}).clamp_min(2)", "torch.clamp(input={a}, min=s.true)"),
    *("({a}).sigmoid()", "({a}) / ({a}).shape[0]", "({a}) * len({a})", "({a}) * float(({a}).mean())", "({a}) // 2"),
    *("({a}) % 3", "torch.neg({a}, out=None)", "({a}).to(torch.float32)", "({a}).T.T", "({a}).softmax(1)"),
)
TWO = (
    *("({a} + {b})", "({a} - {b})", "({a} * {b})", "{a} / (abs({b}) + 1)", "torch.add({a}, {b}, alpha=2)"),
    *(
        "torch.sub({a}, {b}, alpha=0.5)",
        "torch.sub({a}, other={b})",
        "torch.div({a}, abs({b}) + 1, rounding_mode='floor')",
    ),
    *(
        "torch.maximum({a}, {b})",
        "torch.minimum({a}, other={b})",
        "torch.where({a} > {b}, {a}, {b})",
        "({a} <= {b}) * {a}",
    ),
    *("where({a} > {b}, 1.0, {b})", "({a}).where({a} >= {b}, {b})", "torch.where({a} == {b}, 0.1, 0.3) * {a}"),
    *("where(({a} > 2) & ({b} > 1), {a}, {b})", "({a}).clamp({b}, s.n)", "({a} > {b}).sum(1, keepdim=True) / 3 * {a}"),
    *("(abs({a}) + 1) ** ({b} / 50)", "torch.mul({a}, {b}).add(1)", "ratio({a}, {b} - {b})", "ratio({a}, {b})"),
    *("{a} * (({a} > 3) + ({b} > 3))", "{a} if ({b}).sum() > 40 else {a} - s.fn", "torch.lerp({a}, {b}, 0.3)"),
)


def some_formula(choose: random.Random, depth: int) -> str:
    if depth == 0:
        return choose.choice(LEAVES)
    a, b = some_formula(choose, depth - 1), some_formula(choose, choose.randrange(depth))
    return choose.choice(choose.choice((ONE, TWO))).format(a=a, b=b)


@pytest.mark.filterwarnings("ignore")  # of Python and torch, on odd formulas
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("seed", range(4))
def test_some_formulas(monkeypatch, seed, mode):
    """Traced or not, a formula gives what it gives on tensors."""
    x, y = problem(mode, n=3)
    choose, ran, native = random.Random(seed), 0, 0
    for _ in range(120):
        text = some_formula(choose, choose.randrange(1, 4))

        def make(text: str = text, reduction: str = choose.choice(("mean", "none"))) -> Loss:
            names = {"torch": torch, "np": np, "where": where, "ratio": ratio}
            return sf.RegionLoss(eval(f"lambda s: 0.01 * ({text}) + s.tp", names), reduction=reduction)

        try:
            expected, expected_grad = by_torch(monkeypatch, make, x, y)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            continue
        value, grad = evaluate(make(), x, y)
        ran, native = ran + 1, native + traced(make(), x, y)
        assert torch.allclose(value, expected, 1e-9, 1e-11, equal_nan=True), text
        assert torch.allclose(grad, expected_grad, 1e-8, 1e-10, equal_nan=True), text
    assert ran > 40 and native > 10, (ran, native)


@pytest.mark.parametrize(
    "formula",
    [
        lambda s: torch.maximum(s.tp, s.tp),
        lambda s: torch.maximum(s.true, s.tp * 0 + s.true) + s.tp,
        lambda s: torch.minimum(s.pred, s.pred * 1) * s.tp,
        lambda s: s.pred.clamp(min=s.pred) + s.tp,
        lambda s: (s.tp * 0) ** 0 + s.tp,
        lambda s: (s.tp * 0) ** s.pred + s.tp,
    ],
)
def test_slopes_at_ties(monkeypatch, formula):
    x, y = problem("multiclass")
    value, grad = evaluate(sf.RegionLoss(formula), x, y)
    expected, expected_grad = by_torch(monkeypatch, lambda: sf.RegionLoss(formula), x, y)
    close(value, expected, 1e-13)
    close(grad, expected_grad, 1e-12)


def test_a_branch_that_asks_for_another_sum():
    """The sums were found with ones, where the other branch is taken."""
    x, y = problem("binary")
    loss = sf.RegionLoss(lambda s: s.tp if s.pred.sum() < 3 else s.pred2)
    value, grad = evaluate(loss, x, y)
    expected, expected_grad = evaluate(sf.RegionLoss(lambda s: s.pred2), x, y)
    close(value, expected, 1e-13)
    close(grad, expected_grad, 1e-12)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"average": "micro"}], ids=str)
@pytest.mark.parametrize(
    "formula",
    [
        lambda s: 1 - 2 * s.tp / (s.pred + s.true),
        lambda s: 1 - 2 * s.tp / (s.pred + s.true) if s.tp.sum() > -1 else s.tp,
        lambda s: 1 - torch.sigmoid(2 * s.tp / (s.pred + s.true)) + s.tp.sum(0, keepdim=True) / 9,
    ],
)
def test_an_ignored_sample_has_no_gradient(formula, options, create_graph):
    """Not even NaN, as the slope of 0 / 0 is; and it changes no sum of the others."""
    x, y = problem("multiclass")
    y[0] = -100
    x.requires_grad_()
    value = sf.RegionLoss(formula, reduction="sum", **options)(x, y)
    (grad,) = torch.autograd.grad(value, x, create_graph=create_graph)
    assert not grad[0].any() and grad[1].any() and grad.isfinite().all()
    alone = sf.RegionLoss(formula, reduction="sum", **options)(x[1:], y[1:])
    close(value.detach(), alone.detach(), 1e-13)


# ------------------------------------------------------------------------------ gradients written in the forward pass

LINEAR: dict[str, Callable[..., Loss]] = {
    "cross_entropy": sf.CrossEntropyLoss,
    "focal": lambda **c: sf.FocalLoss(gamma=1.5, **c),
    "sum": lambda **c: sf.CrossEntropyLoss(reduction="sum", **c),
    "numel": lambda **c: sf.FocalLoss(normalize="numel", **c),
    "weight": lambda **c: sf.CrossEntropyLoss(normalize="weight", **c),
    "smoothed": lambda **c: sf.CrossEntropyLoss(label_smoothing=0.2, **c),
    "compound": lambda **c: 0.3 * sf.CrossEntropyLoss(**c) + 1.7 * sf.FocalLoss(**c),
}


def labels(y: Tensor, dtype: torch.dtype, ignored: bool) -> tuple[Tensor, dict[str, Any]]:
    """The target with a few ignored pixels in one sample only, and the keyword that ignores them."""
    ignore_index = -100 if dtype != torch.uint8 else 200
    y = y.clone()
    if ignored:
        y[0, ..., :2] = ignore_index
    return y.to(dtype), {"ignore_index": ignore_index}


@pytest.mark.parametrize("ignored", [False, True], ids=["all valid", "some ignored"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_losses(name, mode, dtype, ignored):
    """Whatever was assumed before the pass about ignored pixels, the gradient is that of the reference."""
    x, y = problem(mode, (7, 9))
    y, common = labels(y, dtype, ignored)
    loss = LINEAR[name](mode=mode, **common)
    with sf.use_backend("reference"):
        expected, expected_grad = evaluate(loss, x, y)
    value, grad = evaluate(loss, x, y)
    close(value, expected, 1e-13)
    close(grad, expected_grad, 1e-12)
    # a second backward, a scaled one, one with gradient 0, and one of a mask on top
    x.requires_grad_()
    value = loss(x, y)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x, retain_graph=True)
    assert same(first, second)
    (scaled,) = torch.autograd.grad(value, x, torch.tensor(-3.0, dtype=value.dtype), retain_graph=True)
    close(scaled, -3 * grad, 1e-13)
    (zero,) = torch.autograd.grad(value, x, torch.tensor(0.0, dtype=value.dtype))
    assert not zero.any()
    mask = torch.ones(x.shape[0], *x.shape[2:])
    mask[1, :2] = 0
    with sf.use_backend("reference"):
        expected, expected_grad = evaluate(loss, x.detach(), y, mask=mask)
    value, grad = evaluate(loss, x.detach(), y, mask=mask)
    close(value, expected, 1e-13)
    close(grad, expected_grad, 1e-12)


@pytest.mark.parametrize("name", LINEAR)
def test_scaling_before_the_first_backward(name):
    """As automatic mixed precision does."""
    x, y = problem("multiclass", dtype=torch.float32)
    loss = LINEAR[name]()
    _, grad = evaluate(loss, x, y)
    x.requires_grad_()
    (65536.0 * loss(x, y)).backward()
    close(x.grad / 65536, grad.double(), 1e-6)


def test_a_gradient_belongs_to_its_caller():
    """Changing a returned gradient in place changes no other."""
    x, y = problem("multiclass")
    x.requires_grad_()
    value = sf.CrossEntropyLoss()(x, y)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, x)
    close(second, kept, 1e-13)


def test_inputs_changed_between_forward_and_backward_are_noticed():
    for loss in (sf.CrossEntropyLoss(), sf.DiceLoss()):
        x, y = problem("multiclass")
        a = (x.requires_grad_() * 1).clone()
        value = loss(a, y)
        with torch.no_grad():
            a.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_one_pass_writes_value_and_gradient(calls):
    """A pixel loss with a known normaliser does not read the logits again."""
    x, y = problem("binary", dtype=torch.float32)
    x.requires_grad_()
    value = sf.CrossEntropyLoss()(x, y)
    assert _passes(calls) == 1
    value.backward()
    assert x.grad is not None and calls["pixel_stats_backward"] == 0


def test_without_gradient_no_gradient_is_written(calls):
    x, y = problem("multiclass", dtype=torch.float32)
    for loss in (sf.CrossEntropyLoss(), sf.DiceLoss()):
        calls.clear()
        loss(x, y)
        assert _passes(calls) == sum(calls.values()) == 1


def _passes(calls: Counter[str]) -> int:
    return calls["pixel_stats_forward"] + calls["formula_forward"]


# ------------------------------------------------------------------------------------------- higher derivatives


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize(
    "make",
    [
        sf.DiceLoss,
        sf.CrossEntropyLoss,
        lambda: sf.FocalLoss(gamma=1.5) + 0.3 * sf.TverskyLoss(),
        lambda: sf.RegionLoss(_holds_a_tensor),
    ],
)
def test_create_graph(make, mode):
    """Second and third derivatives, and a gradient penalty as in training."""
    x, y = problem(mode, (2,), n=1)
    x.requires_grad_()
    loss = make()

    def slope(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
        return grad

    assert torch.autograd.gradcheck(slope, x)
    assert torch.autograd.gradgradcheck(slope, x)
    (loss(x, y) + slope(x).square().sum()).backward()
    with sf.use_backend("reference"):
        (expected,) = torch.autograd.grad(loss(x, y) + slope(x).square().sum(), x)
    close(x.grad, expected, 1e-11)
