"""Every sum of the pass and every gradient: backends against the reference, the reference against its definition."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, LABELS, LAYOUTS, Case, make
from compare import FLOOR, close, same, within_rounding
from segfuse.backends import available, use_backend
from segfuse.ops import pixel_stats as op
from segfuse.ops.pixel_stats import MOMENTS, Geometry, Plan, Row, Tensors, Term

LOGARITHMIC = ("focal", "focal_all", "power")
FAST = [name for name in available("pixel_stats") if name != "reference"]


def both(*terms: Term) -> list[Row]:
    return [(term, part) for term in terms for part in (0, 1)]


CE, FOCAL = Term("focal", 0), Term("focal", 2)
EVERYTHING: list[Row] = [
    *MOMENTS,
    *both(
        CE, FOCAL, Term("focal", 0.5), Term("focal_all", 0), Term("power", 0.3), Term("dsc", 1), Term("dsc_pixel", 1, 1)
    ),
]
PLANS: dict[str, list[Row]] = {  # a kernel may take a shortcut for any of these
    "dice": ["tp", "pred", "true", "n"],
    "dice_squared": ["tp", "pred2", "true2", "n"],
    "overlap": ["tp"],
    "size": ["pred"],
    "brosch": ["tp", "tp2", "pred2", "true", "n"],
    "l1": ["l1", "pred", "true"],
    "squares": ["sq_true", "sq_false", "count"],
    "counts": ["count", "true_count", "n", "true", "true2"],
    "cross_entropy": ["count", *both(CE)],
    "focal": ["count", *both(FOCAL)],
    "focal_1": both(Term("focal", 1)),
    "focal_general": both(Term("focal", 1.5)),
    "two_focal": both(CE, Term("focal", 0.5)),
    "smoothed": ["count", *both(CE, Term("focal_all", 0))],
    "focal_smoothed": both(FOCAL, Term("focal_all", 2)),
    "power": ["count", *both(Term("power", 0.3))],
    "power_1": both(Term("power", 1)),
    "dsc": ["true", *both(Term("dsc", 1))],
    "dsc_half": both(Term("dsc", 0.5)),
    "dsc_0": both(Term("dsc", 0)),
    "dsc_pixel": ["count", *both(Term("dsc_pixel", 1, 1), Term("dsc_pixel", 0.5, 2))],
    "dice_and_cross_entropy": ["tp", "pred", "true", "n", "count", *both(CE)],
    "dice_and_focal": ["tp", "pred", "true", "n", "count", *both(FOCAL)],
    "distance_pred": ["distance_pred", "count"],
    "distance_sq": ["distance_sq", "count"],
    "mapped": both(Term("focal", 0, mapped=True)),
    "mapped_and_not": ["tp", "distance_sq", *both(CE, Term("focal", 0, mapped=True), Term("focal", 2, mapped=True))],
    "mapped_smoothed": both(Term("focal_all", 0, mapped=True), Term("power", 0.5, mapped=True)),
    "moments_and_terms": ["sq_false", "l1", "pred", *both(Term("focal", 1.5), Term("dsc", 1))],
}

PLAN_CASES = [
    "odd_2d",
    "33_classes",
    "soft",
    "weight_full",
    "poisoned",
    "binary",
    "binary_soft",
    "multilabel_soft",
    "channels_last",
    "infinite",
    "large",
]


def coefficients(g: Geometry, plan: Plan) -> Tensor:
    """Random numbers for every sum; 0 for the second part of a term that has only a first."""
    random = torch.Generator().manual_seed(plan.rows)
    k = torch.randn((plan.rows, *g.shape[:2]), generator=random, dtype=torch.float64)
    for term in plan.terms:
        if g.exclusive and term.kind in LOGARITHMIC:
            k[plan.row((term, 1))] = 0
    return k


def rows(g: Geometry, plan: Plan) -> list[Row]:
    """The rows of a plan that hold something."""
    found: list[Row] = list(plan.moments)
    for term in plan.terms:
        found += both(term)[: 1 if g.exclusive and term.kind in LOGARITHMIC else 2]
    return found


def run(backend: str, x: Tensors, g: Geometry, plan: Plan, with_map: bool = True) -> dict[str, Tensor]:
    """Every sum, the gradient of all of them, and the loss map with its gradient, by name."""
    k = coefficients(g, plan)
    with use_backend(backend), torch.no_grad():
        sums = op.forward(x, g, plan)
        assert sums.shape == (plan.rows, *g.shape[:2]) and sums.dtype == torch.float64
        out = {f"sum of {row}": sums[plan.row(row)] for row in rows(g, plan)}
        out["gradient"] = op.backward(x, g, plan, k)
        if with_map and plan.terms:
            terms = Plan(both(*plan.terms))
            k = coefficients(g, terms)
            out["loss map"] = op.loss_map(x, g, terms, k)
            upstream = torch.randn(g.map_shape, generator=torch.Generator().manual_seed(1)).to(out["loss map"].dtype)
            out["gradient of the loss map"] = op.backward(x, g, terms, k, upstream)
    return out


def distances(x: Tensor, call: dict[str, Any], per_pixel: bool) -> Tensor:
    """Of either sign and of every class or, where ``per_pixel``, of the pixel; NaN under the mask."""
    shape = (x.shape[0], 1, *x.shape[2:]) if per_pixel else x.shape
    d = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(4))
    mask = call.get("mask")
    if mask is not None:
        mask = mask.unsqueeze(1) if mask.ndim < x.ndim else mask
        d = d.masked_fill((mask == 0).all(1, keepdim=True), torch.nan)
    return d


def compare(backend: str, x: Tensor, y: Tensor, call: dict[str, Any], wanted: list[Row]) -> None:
    plan = Plan(wanted)
    call = call | {"distance_map": distances(x, call, any(term.mapped for term in plan.terms))}
    before = [t.clone() for t in (x, y, *(v for v in call.values() if isinstance(v, Tensor)))]
    tensors, g = op.check(x, y, **call)
    exact_tensors, exact_g = op.check(x.double(), y, **call)
    exact = run("reference", exact_tensors, exact_g, plan)
    plain = exact if x.dtype == torch.float64 else run("reference", tensors, g, plan)
    fast = run(backend, tensors, g, plan)
    assert fast["gradient"].dtype == x.dtype and fast["gradient"].shape == x.shape
    for name in exact:
        within_rounding(fast[name], plain[name], exact[name], x.dtype, name)
    after = (x, y, *(v for v in call.values() if isinstance(v, Tensor)))
    assert all(same(a, b) for a, b in zip(before, after)), "an input changed"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(backend, case, dtype):
    x, y, call = make(CASES[case], dtype)
    compare(backend, x, y, call, EVERYTHING)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", PLAN_CASES)
def test_every_plan_matches_reference(backend, case, plan):
    for dtype in (torch.float32, torch.bfloat16):
        x, y, call = make(CASES[case], dtype)
        compare(backend, x, y, call, PLANS[plan])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("ignore_index", [-100, 1, 200])
@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 2, 9, 17)),
        Case((2, 2, 9, 17), target="hard"),
        Case((2, 1, 9, 17), mode="binary", target="hard"),
        Case((2, 2, 9, 17), mode="multilabel", target="hard", layout_of_others="stepped"),
        Case((2, 2, 9, 17), one_vs_rest=True),
    ],
    ids=["index", "one_hot", "binary", "multilabel", "one_vs_rest"],
)
def test_every_label_dtype(backend, case, labels, ignore_index):
    x, y, call = make(case, torch.float32, labels, ignore_index)
    assert y.dtype == labels
    if case.target == "hard" and case.mode == "multiclass" and ignore_index == 1:
        with pytest.raises(ValueError, match="leaves out every pixel of a one-hot target"):
            op.check(x, y, **call)
        return
    compare(backend, x, y, call, [*MOMENTS, *both(FOCAL)])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("others", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 3, 3, 5, 4), (2, 3, 29)], ids=str)
def test_every_layout(backend, shape, layout, others):
    x, y, call = make(Case(shape, weight="full", mask="flat", layout=layout, layout_of_others=others), torch.float32)
    compare(backend, x, y, call, [*MOMENTS, *both(FOCAL)])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plan", ["dice", "everything"])
def test_layout_does_not_change_the_sums(backend, layout, plan):
    plain = Case((2, 3, 6, 70), layout="expanded")  # whose samples repeat: every layout can hold it
    x, y, call = make(plain, torch.float32)
    wanted = Plan(EVERYTHING if plan == "everything" else PLANS[plan])
    call["distance_map"] = distances(x, call, False)
    contiguous = run(backend, *op.check(x.contiguous(), y, **call), wanted)
    moved = run(backend, *op.check(_moved(x, layout), y, **call), wanted)
    assert all(same(contiguous[name], moved[name]) for name in contiguous)


def _moved(x: Tensor, layout: str) -> Tensor:
    from cases import lay_out

    return lay_out(x.contiguous(), layout)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "permuted"])
def test_gradient_has_the_layout_of_the_logits(backend, layout):
    x, y, call = make(Case((2, 3, 8, 9), layout=layout), torch.float32)
    grad = run(backend, *op.check(x, y, **call), Plan(PLANS["dice"]))["gradient"]
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "case", ["poisoned", "poisoned_mask", "poisoned_one_hot", "poisoned_binary", "poisoned_multilabel"]
)
@pytest.mark.parametrize("plan", [*PLANS, "everything"])
def test_nothing_comes_from_ignored_pixels(backend, case, plan):
    """NaN and infinite logits under ignored pixels reach no sum, and their gradient is exactly 0."""
    from cases import kept

    x, y, call = make(CASES[case], torch.float32)
    tensors, g = op.check(x, y, **call, distance_map=distances(x, call, True))
    out = run(backend, tensors, g, Plan(EVERYTHING if plan == "everything" else PLANS[plan]))
    assert all(value.isfinite().all() for value in out.values())
    gone = ~kept(CASES[case], y, call.get("mask"), call["ignore_index"])
    assert gone.any() and not out["gradient"][gone].any()
    if "gradient of the loss map" in out:
        assert not out["gradient of the loss map"][gone].any()


@pytest.mark.parametrize("case", ["odd_2d", "binary", "soft", "33_classes", "multilabel_soft"])
@pytest.mark.parametrize("plan", [*PLANS, "everything"])
def test_nan_stays_in_its_group(backend, case, plan):
    """A NaN at a valid pixel makes the sums of its sample and its own gradient NaN, and nothing else."""
    case = CASES[case]
    x, y, call = make(case, torch.float32)
    y = torch.where(y == -100, 0, y)
    x = x.clone()
    x[0, -1].view(-1)[5] = torch.nan
    tensors, g = op.check(x, y, **call, distance_map=distances(x, call, True))
    wanted = Plan(EVERYTHING if plan == "everything" else PLANS[plan])
    out = run(backend, tensors, g, wanted)
    sums = torch.stack([value for name, value in out.items() if name.startswith("sum")])
    bad = torch.zeros(x.shape, dtype=torch.bool)
    bad.flatten(2)[0, :, 5] = True
    if g.activation != "softmax":
        bad[:, :-1] = False
        assert not sums[:, :, :-1].isnan().any()
    assert not sums[:, 1:].isnan().any()
    assert not out["gradient"][~bad].isnan().any()
    if set(wanted.moments) - op.COUNTS or wanted.terms:
        assert sums[:, 0].sum().isnan()
        assert out["gradient"][bad].isnan().all()
    if "loss map" in out:
        bad = bad.any(1) if g.exclusive else bad
        assert same(out["loss map"].isnan(), bad)


# ------------------------------------------------------------------------------------------- the definition itself


def definition(x: Tensor, y: Tensor, call: dict[str, Any], g: Geometry, row: Row) -> Tensor:
    """One sum, written down again from its formula, for whole (N, C, *) tensors without anything ignored."""
    p = {"softmax": lambda: torch.softmax(x, 1), "sigmoid": lambda: torch.sigmoid(x), "identity": lambda: x}[
        g.activation
    ]()
    if g.index_target:
        y = torch.nn.functional.one_hot(y.reshape(g.shape[0], *g.spatial), g.shape[1]).movedim(-1, 1)
    y = y.reshape(x.shape).double()
    w = call.get("weight_map")
    u = torch.ones_like(x) if w is None else (w[:, None] if w.ndim < x.ndim else w).expand(x.shape).double()
    d = distances(x, call, True).double()
    one = torch.ones_like(x)
    if isinstance(row, str):
        value = {
            "count": one,
            "true_count": y,
            "n": u,
            "true": u * y,
            "true2": u * y**2,
            "pred": u * p,
            "pred2": u * p**2,
            "tp": u * p * y,
            "tp2": u * p**2 * y,
            "l1": u * (p - y).abs(),
            "sq_true": u * y * (p - y) ** 2,
            "sq_false": u * (1 - y) * (p - y) ** 2,
            "distance_pred": u * d * p,
            "distance_sq": u * d * (p - y) ** 2,
        }[row]
    else:
        term, part = row
        t, chance = (y, p) if part == 0 else (1 - y, 1 - p)  # the target and the probability of this part
        q = (1 - p) ** term.a * p
        entropy = -(y * p.log() + (1 - y) * (1 - p).log())
        value = (
            u
            * {
                "focal": t * (1 - chance) ** term.a * -chance.log(),
                "focal_all": (1 - chance) ** term.a * -chance.log(),
                "power": t * (-(y * p.log()).sum(1, keepdim=True) if g.exclusive else entropy) ** term.a,
                "dsc": t * q,
                "dsc_pixel": t * (1 - (2 * q * y + term.b) / (q + y + term.b)),
            }[term.kind]
            * (d if term.mapped else 1)
        )
    return value.flatten(2).sum(2) if x.ndim > 2 else value


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 3, 5, 7), ignored="none", weight="flat"),
        Case((2, 3, 5, 7), ignored="none", target="soft", weight="full"),
        Case((2, 3, 5, 7), ignored="none", one_vs_rest=True),
        Case((2, 1, 5, 7), ignored="none", mode="binary", target="soft", weight="single"),
        Case((2, 3, 35), ignored="none", mode="multilabel", target="hard", weight="full"),
        Case((2, 3, 5, 7), ignored="none", mode="multilabel", target="soft", from_logits=False),
    ],
    ids=["index", "soft", "one_vs_rest", "binary", "multilabel", "probabilities"],
)
@pytest.mark.parametrize(
    "row",
    [*EVERYTHING, *both(Term("focal", 1.5), Term("dsc", 0.5), Term("power", 2.5), Term("focal", 2, mapped=True))],
    ids=str,
)
def test_reference_is_the_definition(case, row):
    x, y, call = make(case, torch.float64)
    x = x.clamp(1e-3, 1 - 1e-3) if not case.from_logits else x
    x.requires_grad_()
    tensors, g = op.check(x, y, **call, distance_map=distances(x, call, True))
    if row not in rows(g, Plan([row])):
        pytest.skip("a logarithmic term of exclusive classes has one part")
    expected = definition(x, y, call, g, row)
    with use_backend("reference"):
        plan = Plan([row])
        found = op.forward(tensors, g, plan)[plan.row(row)].detach()
        close(found, expected.detach(), 1e-12)
        k = torch.randn(g.shape[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        full = torch.zeros((plan.rows, *g.shape[:2]), dtype=torch.float64)
        full[plan.row(row)] = k
        with torch.no_grad():
            grad = op.backward(tensors, g, plan, full)
    if expected.requires_grad:
        (wanted,) = torch.autograd.grad((k * expected).sum(), x)
        close(grad, wanted, 1e-11)
    else:
        assert not grad.any()


@pytest.mark.parametrize("case", ["index", "soft", "binary", "probabilities"])
def test_gradcheck(backend, case):
    case = {
        "index": Case((2, 3, 2, 2), weight="flat"),
        "soft": Case((1, 3, 2, 2), target="soft"),
        "binary": Case((2, 1, 3), mode="binary", target="soft", weight="full"),
        "probabilities": Case((1, 2, 2, 2), mode="multilabel", target="hard", from_logits=False),
    }[case]
    x, y, call = make(case, torch.float64)
    x = x.clamp(0.01, 0.99) if not case.from_logits else x
    plan = Plan(
        ["tp", "pred2", "l1", "sq_true", *both(CE, Term("focal", 1.5), Term("power", 1.5), Term("dsc_pixel", 1, 1))]
    )

    def total(x: Tensor) -> Tensor:
        tensors, g = op.check(x, y, **call, distance_map=distances(x, call, True))
        return (coefficients(g, plan) * op.sums(tensors, g, plan)).sum()

    x.requires_grad_()
    assert torch.autograd.gradcheck(total, x)
    assert torch.autograd.gradgradcheck(total, x)


# ------------------------------------------------------------------------------ threads and instruction sets


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "case",
    [
        Case((1, 3, 301, 307)),
        Case((3, 19, 71, 101), weight="full"),
        Case((2, 3, 150, 151), target="soft", layout="transposed"),
        Case((1, 1, 500, 501), mode="binary", target="hard"),
        Case((2, 4, 200, 151), mode="multilabel", target="soft", weight="full"),
    ],
    ids=["multiclass", "many_classes", "soft", "binary", "multilabel"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_for_any_number_of_threads(backend, case, dtype, threads):
    x, y, call = make(case, dtype)
    tensors, g = op.check(x, y, **call, distance_map=distances(x, call, True))
    logarithmic = Plan([row for row in EVERYTHING if isinstance(row, str) or row[0].kind in LOGARITHMIC])

    def results(count: int) -> dict[str, Tensor]:
        torch.set_num_threads(count)
        return run(backend, tensors, g, logarithmic) | run(
            backend, tensors, g, Plan(PLANS["dsc"]), with_map=not g.exclusive
        )

    one = results(1)
    for count in (2, 3):
        other = results(count)
        assert all(same(one[name], other[name]) for name in one), count


@pytest.mark.parametrize("backend", FAST)
def test_same_bits_every_time(backend):
    x, y, call = make(Case((2, 3, 150, 151)), torch.float32)
    tensors, g = op.check(x, y, **call, distance_map=distances(x, call, True))
    first = run(backend, tensors, g, Plan(EVERYTHING))
    for _ in range(3):
        again = run(backend, tensors, g, Plan(EVERYTHING))
        assert all(same(first[name], again[name]) for name in first)


def _instruction_sets() -> list[str]:
    return segfuse._cpp.isa_info()["found"] if "cpp" in FAST else []


def test_forced_instruction_set_is_used():
    wanted = os.environ.get("SEGFUSE_ISA")
    if "cpp" not in FAST:
        pytest.skip("the C++ extension is not built")
    used = segfuse._cpp.isa_info()["used"]
    assert used in _instruction_sets()
    assert wanted is None or used == wanted


@pytest.mark.skipif("SEGFUSE_ISA" in os.environ, reason="one is forced already")
@pytest.mark.parametrize("isa", _instruction_sets())
def test_every_instruction_set(isa):
    """The shared table again, in a process where this instruction set is forced."""
    if isa == segfuse._cpp.isa_info()["used"]:
        return  # this process has just done it
    some = "float32 or odd_2d or 33_classes or soft or binary"
    chosen = f"test_forced_instruction_set_is_used or (test_matches_reference and ({some}))"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env={**os.environ, "SEGFUSE_ISA": isa}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# ------------------------------------------------------------------------------------------- the public function


def test_pixel_stats_function(backend):
    x = torch.tensor([[[2.0, -1.0, 0.5]], [[0.0, 3.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[[1, 0, 1]], [[0, 1, -100]]])
    sums = segfuse.pixel_stats(x, y, ("tp", "pred", "true", "n"))
    p = torch.sigmoid(x.detach())
    close(sums["tp"].detach(), torch.stack([p[0, 0, 0] + p[0, 0, 2], p[1, 0, 1]])[:, None], 1e-14)
    close(sums["pred"].detach(), torch.stack([p[0].sum(), p[1, 0, :2].sum()])[:, None], 1e-14)
    assert sums["true"].tolist() == [[2.0], [1.0]]
    assert sums["n"].tolist() == [[3.0], [2.0]]
    (grad,) = torch.autograd.grad(sums["pred"].sum() + 2 * sums["tp"][1].sum(), x)
    slope = p * (1 - p)
    close(grad, slope * torch.tensor([[[1.0, 1, 1]], [[1, 3, 0]]]), 1e-14)


@pytest.mark.skipif("cuda" not in FAST, reason="the CPU raises")
@pytest.mark.parametrize("broken", ["label", "weight"])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_a_gpu_answers_values_out_of_range_with_nan(mode, broken):
    """Of the sample that has them, and of a loss over it."""
    x = torch.randn(2, 1 if mode == "binary" else 3, 9, 40, generator=torch.Generator().manual_seed(0))
    y, weight = (x[:, :1] > 0).long().reshape(2, 1, 9, 40), torch.ones(2, 9, 40)
    if broken == "label":
        y[1, 0, 5, 35] = 7
    else:
        weight[1, 5, 35] = -1
    y = y if mode == "binary" else y[:, 0]
    with use_backend("cuda"):
        sums = op.pixel_stats(x, y, ("tp", "n"), weight_map=weight)
        assert all(s[0].isfinite().all() and s[1].isnan().all() for s in sums.values())
        assert segfuse.DiceCELoss()(x, y, weight_map=weight).isnan()
        assert segfuse.FocalLoss(reduction="none")(x, y, weight_map=weight).isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint16])
def test_an_ignored_class_drops_the_pixel_in_the_second_call_too(dtype):
    """Whether one is ignored follows from the values: what a loss keeps of the first call must not decide it."""
    loss = segfuse.DiceLoss(from_logits=False, ignore_index=7)
    p = torch.rand(2, 3, 4, 5).softmax(1)
    y = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 4, 5)), 3).movedim(-1, 1).to(dtype)
    plain = loss(p, y)
    some = y.clone()
    some[0, 1, 2, 3] = 7
    mask = torch.ones(2, 4, 5)
    mask[0, 2, 3] = 0
    assert torch.equal(loss(p, some), segfuse.DiceLoss(from_logits=False)(p, y, mask=mask)) and not torch.equal(
        loss(p, some), plain
    )
