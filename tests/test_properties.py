"""Whatever the shape, the strides and the dtypes: the kernel is the reference, ignored pixels are nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import segfuse as sf
from cases import LABELS, LAYOUTS, Case, holds, kept, lay_out, make
from compare import evaluate, same, within_rounding
from segfuse.backends import available, use_backend
from segfuse.ops import pixel_stats as op
from segfuse.ops.pixel_stats import MOMENTS, Plan, Term

BACKENDS = [name for name in available("pixel_stats") if name != "reference"]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# The same examples every time; no deadline, since the machine may be busy.
fixed = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any input that a pass may be given."""
    mode = draw(st.sampled_from(["binary", "multilabel", "multiclass"]))
    channels = 1 if mode == "binary" else draw(st.integers(2 if mode == "multiclass" else 1, 9))
    spatial = draw(st.lists(st.integers(0, 9) | st.just(1), min_size=1, max_size=4))
    targets = {
        "multiclass": ["index", "index1", "hard", "soft"],
        "binary": ["hard", "flat", "soft"],
        "multilabel": ["hard", "soft"],
    }
    shapes = [None, "flat", "single", "full"]
    return Case(
        shape=(draw(st.integers(0, 3)), channels, *spatial),
        mode=mode,
        target=draw(st.sampled_from(targets[mode])),
        ignored=draw(st.sampled_from(["none", "some", "some", "all", "sample"])),
        weight=draw(st.sampled_from(shapes)),
        mask=draw(st.sampled_from(shapes[:3] if mode == "multiclass" else shapes)),
        logits=draw(st.sampled_from(["normal", "normal", "large", "poisoned"])),
        layout=draw(st.sampled_from(LAYOUTS)),
        layout_of_others=draw(st.sampled_from(LAYOUTS)),
        one_vs_rest=mode == "multiclass" and draw(st.booleans()),
    )


@st.composite
def labels(draw: st.DrawFn, case: Case) -> tuple[torch.dtype, int]:
    """A dtype that can hold the target of a case, and the label that is ignored."""
    floating = [d for d in LABELS if d.is_floating_point]
    dtype = draw(st.sampled_from(floating if case.target == "soft" else LABELS))
    if case.target.startswith("index") and not holds(dtype, case.shape[1] - 1):
        dtype = torch.uint8
    return dtype, draw(st.sampled_from([-100, 255, 200]))


def usable(case: Case) -> bool:
    # "expanded" repeats the first sample, and then nothing lies under the pixels that were poisoned
    return not (case.logits == "poisoned" and "expanded" in (case.layout, case.layout_of_others))


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
@fixed
def test_kernel_is_the_reference(backend, data):
    case = data.draw(cases().filter(usable))
    dtype = data.draw(st.sampled_from(DTYPES))
    x, y, call = make(case, dtype, *data.draw(labels(case)))
    plan = Plan([*MOMENTS, *((term, part) for term in (Term("focal", 0), Term("focal", 2)) for part in (0, 1))])

    def run(backend: str, x: Tensor) -> tuple[Tensor, ...]:
        tensors, g = op.check(x, y, **call, distance_map=torch.linspace(-3, 3, x.shape[-1]).expand(x.shape))
        k = torch.randn((plan.rows, *g.shape[:2]), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        if g.exclusive:
            k[[plan.row((term, 1)) for term in plan.terms]] = 0
        with use_backend(backend), torch.no_grad():
            return *op.forward(tensors, g, plan).unbind(), op.backward(tensors, g, plan, k)

    exact, plain, fast = run("reference", x.double()), run("reference", x), run(backend, x)
    for row, (f, p, e) in enumerate(zip(fast, plain, exact, strict=True)):
        within_rounding(f, p, e, dtype, f"row {row}")
    valid = kept(case, y, call.get("mask"), call["ignore_index"])
    assert not fast[-1][~valid].any()


@st.composite
def losses(draw: st.DrawFn, case: Case) -> sf.losses._base.Loss:
    """Some loss for a case, alone or in a sum."""
    if case.one_vs_rest:
        return sf.FocalLoss(activation="sigmoid", mode=case.mode)
    some: list[Any] = [
        sf.CrossEntropyLoss,
        sf.DiceLoss,
        sf.TverskyLoss,
        sf.GeneralizedDiceLoss,
        sf.MCCLoss,
        sf.FocalLoss,
        lambda **c: sf.DiceLoss(squared=True, batch=True, empty="skip", **c),
        lambda **c: 0.5 * sf.FocalLoss(gamma=1.5, **c) + sf.DiceLoss(**c),
        lambda **c: sf.TopKCrossEntropyLoss(k=40, **c) + sf.JaccardLoss(**c),
        sf.UnifiedFocalLoss,
    ]
    return draw(st.sampled_from(some))(mode=case.mode)


@given(data=st.data())
@fixed
def test_layout_changes_nothing(data):
    """The same bits from any strides of any argument."""
    case = data.draw(cases().filter(lambda case: usable(case) and case.logits != "large"))
    plain = Case(**{**vars(case), "layout": "contiguous", "layout_of_others": "contiguous"})
    dtype, ignore_index = data.draw(labels(case))
    x, y, call = make(plain, data.draw(st.sampled_from(DTYPES)), dtype, ignore_index)
    loss = data.draw(losses(case))
    loss = _ignoring(loss, ignore_index)
    call = {name: call[name] for name in ("weight_map", "mask") if name in call}
    value, grad = evaluate(loss, x, y, **call)
    layouts = st.sampled_from([name for name in LAYOUTS if name != "expanded"])
    moved = {name: lay_out(t, data.draw(layouts)) for name, t in call.items()}
    found = evaluate(loss, lay_out(x, data.draw(layouts)), lay_out(y, data.draw(layouts)), **moved)
    assert same(found[0], value)
    assert same(found[1], grad)


@given(data=st.data())
@fixed
def test_ignored_pixels_change_nothing(data):
    """Whatever their logits are, the value is the same and their gradient is exactly 0; it is never NaN."""
    case = data.draw(cases().filter(lambda case: usable(case) and case.logits == "poisoned"))
    dtype, ignore_index = data.draw(labels(case))
    x, y, call = make(case, torch.float32, dtype, ignore_index)
    loss = _ignoring(data.draw(losses(case)), ignore_index)
    call = {name: call[name] for name in ("weight_map", "mask") if name in call}
    valid = kept(case, y, call.get("mask"), ignore_index)
    value, grad = evaluate(loss, x, y, **call)
    assert value.isfinite() and grad.isfinite().all()
    assert not grad[~valid].any()
    clean = evaluate(loss, torch.where(valid, x, 7.0), y, **call)
    assert same(clean[0], value) and same(clean[1], grad)


def _ignoring(loss: Any, ignore_index: int) -> Any:
    """The same loss with another label to ignore, in every term."""
    for term in getattr(loss, "terms", {"": loss}).values():
        term.ignore_index = ignore_index
    return loss
