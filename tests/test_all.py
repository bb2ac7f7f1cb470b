"""What holds for every loss: reductions, ignored pixels, gradients, dtypes, copies. One table: all_losses.py."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

import segfuse as sf
from all_losses import ALL, CHANNELS, CLASS_WEIGHT, FITTING, IDS, MODES, VARIANTS, Variant, problem
from cases import lay_out
from compare import close, evaluate, same, within_rounding
from segfuse.losses._base import CompoundLoss, Loss, PixelLoss, StatsLoss
from segfuse.losses._boundary import HardLoss
from segfuse.losses._distance import DistanceLoss

every = pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)


def weights(y: Tensor, variant: Variant, mode: str, seed: int = 3) -> dict[str, Tensor]:
    """A weight map, where it has a meaning, and a mask, each of its own shape."""
    random = torch.Generator().manual_seed(seed)
    shape = y.shape if mode != "multiclass" else (y.shape[0], *y.shape[1:])
    flat = (shape[0], 1, *shape[2:]) if mode != "multiclass" else shape
    found = {"weight_map": torch.rand(shape, generator=random), "mask": torch.rand(flat, generator=random) < 0.8}
    return found if variant.weighable else {"mask": found["mask"]}


def with_ignored(y: Tensor, seed: int = 4) -> tuple[Tensor, Tensor]:
    """The target with ignored pixels, and where they are."""
    gone = torch.rand(y.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    return torch.where(gone, -100, y), gone


def over_channels(gone: Tensor, x: Tensor) -> Tensor:
    return (gone if gone.ndim == x.ndim else gone[:, None]).expand(x.shape)


def test_the_table_has_every_loss():
    assert {variant.name for variant in VARIANTS} == set(sf.losses.__all__)
    assert set(sf.losses.__all__) <= set(sf.__all__)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_table_sets_every_parameter(variant):
    """A parameter that no variant sets would never be tested."""
    if variant.name in ("CompoundLoss", "DeepSupervisionLoss", "RegionLoss"):
        return
    common = {"self", "common", *inspect.signature(Loss.__init__).parameters}
    own = set(inspect.signature(getattr(sf, variant.name).__init__).parameters) - common
    seen = {name for other in VARIANTS if other.name == variant.name for name in other.settings}
    assert own <= seen | {"smooth"}, own - seen


# ------------------------------------------------------------------------------------------- values and gradients


@every
def test_backends_agree(variant, mode):
    """With a weight map, a mask and ignored pixels: the kernel within twice the rounding of the reference."""
    loss = variant(mode=mode)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, y = problem(mode, (9, 31), dtype)
        y, _ = with_ignored(y)
        call = weights(y, variant, mode)
        with sf.use_backend("reference"):
            exact = evaluate(loss, x.double(), y, **call)
            plain = evaluate(loss, x, y, **call)
        fast = evaluate(loss, x, y, **call)
        within_rounding(fast[0], plain[0], exact[0], dtype, "value")
        within_rounding(fast[1], plain[1], exact[1], dtype, "gradient")


@every
def test_gradcheck(variant, mode):
    if variant.settings.get("detach_e"):
        return  # leaves out a part of the gradient
    x, y = problem(mode, (3,), n=2, seed=7)
    y[0, ..., 0] = -100
    loss = variant(mode=mode)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_second_derivative(variant):
    if variant.settings.get("detach_e"):
        return
    mode = variant.modes[-1]
    x, y = problem(mode, (2,), n=1, seed=8)
    loss = variant(mode=mode)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), x.requires_grad_())


@every
def test_probabilities_instead_of_logits(variant, mode):
    """from_logits=False gives the same value, and the gradient by p."""
    x, y = problem(mode)
    one_vs_rest = variant.settings.get("activation") == "sigmoid"

    def activate(x: Tensor) -> Tensor:
        return torch.softmax(x, 1) if mode == "multiclass" and not one_vs_rest else torch.sigmoid(x)

    value, grad = evaluate(variant(mode=mode), x, y)
    found, by_logits = evaluate(lambda x, y: variant(mode=mode, from_logits=False)(activate(x), y), x, y)
    close(found, value, 1e-12)
    close(by_logits, grad, 1e-10)


@every
def test_soft_targets_at_0_and_1_are_hard_targets(variant, mode):
    x, y = problem(mode)
    dense = torch.nn.functional.one_hot(y, 3).movedim(-1, 1) if mode == "multiclass" else y
    loss = variant(mode=mode)
    value, grad = evaluate(loss, x, y)
    for target in (dense, dense.double(), dense.to(torch.float16), dense.bool()):
        found = evaluate(loss, x, target)
        close(found[0], value, 1e-12)
        close(found[1], grad, 1e-11)


@every
def test_number_of_spatial_axes_does_not_matter(variant, mode):
    if variant.positional or variant.windowed:
        return
    x, y = problem(mode, (4, 6))
    loss = variant(mode=mode)
    value, grad = evaluate(loss, x, y)
    for spatial in ((24,), (2, 4, 3), (1, 4, 1, 6)):
        found = evaluate(loss, x.reshape(*x.shape[:2], *spatial), y.reshape(*y.shape[:-2], *spatial))
        close(found[0], value, 1e-13)
        close(found[1].reshape(grad.shape), grad, 1e-12)


@every
def test_order_of_samples_does_not_matter(variant, mode):
    x, y = problem(mode, n=3)
    loss = variant(mode=mode)
    value, grad = evaluate(loss, x, y)
    found = evaluate(loss, x.flip(0), y.flip(0))
    close(found[0], value, 1e-13)
    close(found[1].flip(0), grad, 1e-12)


# ------------------------------------------------------------------------------------------- reductions


@every
def test_reductions(variant, mode):
    x, y = problem(mode)
    y, gone = with_ignored(y)
    N, C = x.shape[:2]
    if variant.compound or variant.name == "BlobLoss":
        with pytest.raises(ValueError, match="reduction"):
            variant(mode=mode, reduction="none")
        assert evaluate(variant(mode=mode, reduction="sum"), x, y)[0].shape == ()
        return
    mean, total, none = (evaluate(variant(mode=mode, reduction=r), x, y) for r in ("mean", "sum", "none"))
    assert mean[0].shape == total[0].shape == ()
    if "reduce_first" in variant.settings or "power" in variant.settings:
        return  # not a sum of the parts
    loss = variant(mode=mode)
    if isinstance(loss, DistanceLoss | HardLoss):  # the mean over the pixels of a (sample, class)
        assert none[0].shape == (N, C - (mode == "multiclass"))
        if variant.name != "WeightedHausdorffLoss" and not variant.settings.get("log"):
            counts = (~gone if gone.ndim == x.ndim else ~gone[:, None]).sum((2, 3)).expand(none[0].shape)
            close((none[0] * counts).sum(), total[0], 1e-12)
            close(total[0] / counts.sum(), mean[0], 1e-12)
        return
    close(none[0].sum(), total[0], 1e-12)
    close(none[1], total[1], 1e-11)
    per_pixel = isinstance(loss, PixelLoss | sf.CMSSLLoss) or (
        variant.name == "SelfAdjustingDiceLoss" and loss.form == "pixel"
    )
    if per_pixel:
        one_vs_rest = variant.settings.get("activation") == "sigmoid" and mode == "multiclass"
        assert none[0].shape == (y.shape if not one_vs_rest else x.shape)
        if not one_vs_rest:
            assert not none[0][gone].any()
        return
    if variant.name == "TLoss":
        assert none[0].shape == (N,)
    elif isinstance(loss, sf.LovaszLoss):
        per_image = mode != "multiclass" if loss.per_image is None else loss.per_image
        groups = C if isinstance(loss.classes, str) else len(loss.classes)
        assert none[0].shape == ((N, groups) if per_image else (groups,))
    elif variant.name == "SSIMLoss":
        assert none[0].shape == (N, C)
    elif isinstance(loss, sf.GeneralizedDiceLoss):
        assert none[0].shape == (() if loss.batch else (N,))
    else:
        groups = 1 if loss.average == "micro" else C
        assert none[0].shape == (
            (groups,) if loss.batch else (N, groups) if groups > 1 or loss.average != "micro" else (N,)
        )
    if variant.settings.get("empty") != "skip":
        close(none[0].mean(), mean[0], 1e-12)


@every
def test_mean_over_valid_pixels(variant, mode):
    """A batch in which half of the pixels are ignored has the value of the other half alone."""
    if variant.positional:  # for a distance the ignored half is background
        return
    x, y = problem(mode, (4, 5))
    loss = variant(mode=mode)
    value, grad = evaluate(loss, x, y)
    wide_x = torch.cat([x, torch.full_like(x, 3.0)], -1)
    found = evaluate(loss, wide_x, torch.cat([y, torch.full_like(y, -100)], -1))
    factor = 0.5 if variant.settings.get("normalize") == "numel" else 1.0
    close(found[0], value * factor, 1e-12)
    close(found[1][..., :5], grad * factor, 1e-11)
    assert not found[1][..., 5:].any()


# ------------------------------------------------------------------------------------------- ignored pixels


@every
def test_nothing_comes_from_ignored_pixels(variant, mode):
    """Not the value of their logits, nor NaN; their gradient is exactly 0. The mask is the same as ignore_index."""
    x, y = problem(mode)
    hidden, gone = with_ignored(y)
    where = over_channels(gone, x)
    loss = variant(mode=mode)
    value, grad = evaluate(loss, x, hidden)
    assert value.isfinite() and grad.isfinite().all()
    assert not grad[where].any()
    for poison in (torch.nan, -torch.inf, 1e300):
        found = evaluate(loss, x.masked_fill(where, poison), hidden)
        assert same(found[0], value) and same(found[1], grad)
    with sf.use_backend("reference"):
        close(evaluate(loss, x.masked_fill(where, torch.nan), hidden)[1], grad, 1e-11)
    masked = evaluate(loss, x.masked_fill(where, torch.nan), y, mask=~gone)
    close(masked[0], value, 1e-13)
    close(masked[1], grad, 1e-12)
    other = evaluate(variant(mode=mode, ignore_index=77), x, torch.where(gone, 77, y))
    close(other[0], value, 1e-13)


@every
def test_weight_0_counts_as_a_pixel_but_adds_nothing(variant, mode):
    if not variant.weighable:
        return
    x, y = problem(mode)
    loss = variant(mode=mode)
    one = evaluate(loss, x, y, weight_map=torch.ones(x.shape[0], *x.shape[2:]))
    plain = evaluate(loss, x, y)
    close(one[0], plain[0], 1e-13)
    close(one[1], plain[1], 1e-12)
    w = torch.ones(x.shape[0], *x.shape[2:])
    w[..., 0] = 0
    grad = evaluate(loss, x, y, weight_map=w)[1]
    # the pixel counts for its neighbours
    assert variant.windowed or variant.name == "HausdorffERLoss" or not grad[..., 0].any()


def nothing(variant: Variant) -> float:
    """The value where there is nothing to measure: 0, lower by its offset for a Combo loss without it."""
    return variant.settings["alpha"] - 1 if variant.settings.get("offset") is False else 0


@every
def test_all_ignored(variant, mode):
    x, y = problem(mode)
    for dtype in (torch.float64, torch.float16):
        value, grad = evaluate(variant(mode=mode), x.to(dtype), torch.full_like(y, -100))
        assert value == nothing(variant) and not grad.any()
        value, grad = evaluate(variant(mode=mode), x.to(dtype), y, mask=torch.zeros(x.shape[0], *x.shape[2:]))
        assert value == nothing(variant) and not grad.any()


@every
def test_a_sample_without_valid_pixels(variant, mode):
    """Its loss is 0; the rest is finite and has a gradient."""
    x, y = problem(mode)
    y[0] = -100
    value, grad = evaluate(variant(mode=mode), x, y)
    assert value.isfinite() and grad.isfinite().all()
    assert not grad[0].any() and (grad[1].any() or variant.may_vanish)


@every
def test_nothing_to_average(backend, variant, mode):
    """An empty batch, and images without a pixel."""
    for n, *spatial in ((0, 4, 4), (2, 0, 4)):
        x, y = problem(mode, tuple(spatial), n=n)
        value, grad = evaluate(variant(mode=mode), x, y)
        assert value == nothing(variant) and grad.shape == x.shape


@every
def test_absent_classes(variant, mode):
    """A target without one class, without foreground, with foreground only: finite, and pushed somewhere."""
    x, y = problem(mode)
    for target in (torch.where(y == CHANNELS[mode] - 1, 0, y), torch.zeros_like(y), torch.ones_like(y)):
        value, grad = evaluate(variant(mode=mode), x, target)
        assert value.isfinite() and grad.isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_certain_predictions(variant, mode, dtype):
    """Logits of +-30 and of +-inf, right and wrong: no NaN. They cost at most +inf, with a finite gradient."""
    _, y = problem(mode)
    hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1) if mode == "multiclass" else y
    for sign in (1, -1):
        value, grad = evaluate(variant(mode=mode), (60.0 * hot - 30).to(dtype) * sign, y)
        assert value.isfinite() and grad.isfinite().all()
    wrong = -3.0 if mode == "multiclass" else torch.inf
    for x in (torch.where(hot > 0, 3.0, -torch.inf), torch.where(hot > 0, -torch.inf, wrong)):
        value, grad = evaluate(variant(mode=mode), x.to(dtype), y)
        assert not value.isnan() and grad.isfinite().all()
        if x.max() == 3 and "label_smoothing" not in variant.settings:
            assert value.isfinite()


@every
def test_nan_at_a_valid_pixel_is_seen(variant, mode):
    if variant.name == "TopKCrossEntropyLoss":
        variant = Variant(variant.name, {**variant.settings, "k": 100.0}, variant.modes)
    x, y = problem(mode)
    x[0, -1, 2, 3] = torch.nan
    value, grad = evaluate(variant(mode=mode), x, y)
    assert value.isnan()
    assert grad[0, -1, 2, 3].isnan()


# ------------------------------------------------------------------------------------------- dtypes and layouts


@every
def test_dtypes(variant, mode):
    """Half and single logits give a float32 loss, double logits a double one; the gradient is what the logits are."""
    x, y = problem(mode)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        value, grad = evaluate(variant(mode=mode), x.to(dtype), y)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert grad.dtype == dtype and (grad.any() or variant.may_vanish)
        exact = evaluate(variant(mode=mode), x.to(dtype).double(), y)
        close(value, exact[0], 1e-5)


@every
def test_layouts(variant, mode):
    x, y = problem(mode, (6, 10))
    loss = variant(mode=mode)
    value, grad = evaluate(loss, x, y)
    for layout in ("channels_last", "transposed", "permuted", "stepped", "offset"):
        moved = lay_out(x, layout).requires_grad_()
        found = loss(moved, lay_out(y, layout))
        found.backward()
        assert same(found.detach(), value)
        assert same(moved.grad, grad)


@every
def test_shapes_of_the_target(variant, mode):
    """(N, *) and (N, 1, *) hold the same labels; a binary problem may come without its channel axis."""
    x, y = problem(mode)
    loss = variant(mode=mode)
    expected = evaluate(loss, x, y)
    if mode == "multiclass":
        assert all(same(a, b) for a, b in zip(evaluate(loss, x, y[:, None]), expected, strict=True))
    if mode == "binary":
        assert all(same(a, b) for a, b in zip(evaluate(loss, x, y[:, 0]), expected, strict=True))
        value, grad = evaluate(loss, x[:, 0], y[:, 0])
        assert same(value, expected[0]) and same(grad, expected[1][:, 0])
    if mode != "multilabel":  # auto finds the mode by the number of channels
        assert all(same(a, b) for a, b in zip(evaluate(variant(), x, y), expected, strict=True))


@every
def test_one_loss_object_for_many_kinds_of_calls(variant, mode):
    """What a loss remembers about one call does not reach the next."""
    loss = variant(mode=mode)
    x, y = problem(mode, dtype=torch.float32)
    kinds = [(x, y, {}), (lay_out(x, "permuted"), y, {}), (x, lay_out(y, "stepped"), {}), (x, y.to(torch.int32), {})]
    kinds += [(x, y, weights(y, variant, mode)), (x, with_ignored(y)[0], {}), (x.double(), y, {})]
    other = (4, 9) if variant.positional else (30,)  # a spacing is made for a number of axes
    kinds += [(*problem(mode, (6, 5), torch.float32), {}), (*problem(mode, other, torch.float32, 1), {})]
    found = [evaluate(loss, x, y, **call) for x, y, call in kinds * 2]
    assert all(same(a, b) for one, two in zip(found[:9], found[9:]) for a, b in zip(one, two))
    for (x, y, call), (value, grad) in zip(kinds, found):
        expected = evaluate(variant(mode=mode), x, y, **call)
        assert same(value, expected[0]) and same(grad, expected[1])


# ------------------------------------------------------------------------------------------- weights of classes


@every
def test_class_weights(variant, mode):
    """On every backend the same; all equal is the same as none, but for a sum."""
    if "class_weight" in variant.settings:
        return
    x, y = problem(mode)
    y, _ = with_ignored(y)
    loss = variant(mode=mode, class_weight=CLASS_WEIGHT[mode])
    with sf.use_backend("reference"):
        expected = evaluate(loss, x, y)
    found = evaluate(loss, x, y)
    close(found[0], expected[0], 1e-12)
    close(found[1], expected[1], 1e-11)
    if mode != "binary" and "average" not in variant.settings and "true_class_only" not in variant.settings:
        assert abs(found[0] - evaluate(variant(mode=mode), x, y)[0]) > 1e-6
    if (
        isinstance(loss, StatsLoss)
        and mode != "binary"
        and loss.average == "macro"
        and variant.name not in ("GeneralizedDiceLoss", "SelfAdjustingDiceLoss")
    ):
        close(
            evaluate(variant(mode=mode, class_weight=[2.0] * 3), x, y)[0], evaluate(variant(mode=mode), x, y)[0], 1e-12
        )
    as_tensor = evaluate(variant(mode=mode, class_weight=torch.tensor(CLASS_WEIGHT[mode], dtype=torch.float64)), x, y)
    assert same(as_tensor[0], found[0])


@every
def test_without_background(variant, mode):
    """Class 0 leaves after the softmax; with one channel there is nothing to leave."""
    x, y = problem(mode)
    loss = variant(mode=mode, include_background=False)
    value, grad = evaluate(loss, x, y)
    assert value.isfinite() and grad.isfinite().all()
    with sf.use_backend("reference"):
        close(evaluate(loss, x, y)[0], value, 1e-12)
    if mode == "binary":
        assert same(evaluate(variant(mode=mode), x, y)[0], value)
    if mode == "multilabel" and not variant.compound:
        rest = evaluate(variant(mode=mode), x[:, 1:], y[:, 1:])
        close(rest[0], value, 1e-12)
        close(grad[:, 1:], rest[1], 1e-11)
        assert not grad[:, 0].any()


# ------------------------------------------------------------------------------------------- as a module


@every
def test_copies_and_pickles(variant, mode):
    x, y = problem(mode)
    loss = variant(mode=mode)
    expected = evaluate(loss, x, y)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), copy.copy(loss)):
        found = evaluate(other, x, y)
        assert same(found[0], expected[0]) and same(found[1], expected[1])
        assert repr(other) == repr(loss)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_repr_shows_the_parameters(variant):
    text = repr(variant(ignore_index=77))
    assert text.startswith(variant.name + "(")
    assert "77" in text
    for name, value in variant.settings.items():
        shown = [str(value), f"{value:g}" if isinstance(value, float) else repr(value)]
        assert any(v in text for v in shown), f"{name}={value} is not in {text}"


@every
def test_function_is_the_module(variant, mode):
    if variant.name in ("CompoundLoss", "DeepSupervisionLoss", "RegionLoss", "TLoss"):
        return
    x, y = problem(mode)
    name = sf.losses._base.snake(variant.name) + "_loss"
    assert name in sf.functional.__all__
    function = getattr(sf.functional, name)
    call = weights(y, variant, mode)
    found = evaluate(lambda x, y, **call: function(x, y, mode=mode, **variant.settings, **call), x, y, **call)
    expected = evaluate(variant(mode=mode), x, y, **call)
    assert same(found[0], expected[0]) and same(found[1], expected[1])


def test_options_of_functions_are_read_at_every_call():
    """What may change is not kept; what has no hash is taken as by the class."""
    x, y = problem("binary")
    criterion = sf.DiceLoss()
    before = sf.functional.blob_loss(x, y, criterion=criterion)
    criterion.smooth = 50.0
    after = sf.functional.blob_loss(x, y, criterion=criterion)
    assert same(after, sf.BlobLoss(criterion)(x, y)) and not same(after, before)
    weight = np.array([2.0])
    assert same(sf.functional.dice_loss(x, y, class_weight=weight), sf.DiceLoss(class_weight=weight)(x, y))


def test_functions_are_named_after_their_losses():
    assert "dice_loss" in sf.functional.__all__
    assert "cross_entropy_loss" in sf.functional.__all__
    assert "top_k_cross_entropy_loss" in sf.functional.__all__ or "topk_cross_entropy_loss" in sf.functional.__all__
    assert len(sf.functional.__all__) == len(sf.losses.__all__) - 3


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_changed_setting_takes_effect(variant):
    """Every keyword is an attribute, and may be changed after the first call."""
    if variant.name in ("CompoundLoss", "RegionLoss", "TLoss"):
        return
    default = Variant(variant.name, FITTING.get(variant.name, {}), variant.modes)
    mode = variant.modes[0] if variant.name == "BalancedCrossEntropyLoss" else variant.modes[-1]
    x, y = problem(mode)
    loss = default(mode=mode) if variant.name != "BalancedCrossEntropyLoss" else default(mode="binary")
    before = evaluate(loss, x, y)
    for name, value in variant.settings.items():
        setattr(loss, name, value)
    expected = evaluate(variant(mode=mode), x, y)
    found = evaluate(loss, x, y)
    close(found[0], expected[0], 1e-13)
    close(found[1], expected[1], 1e-12)
    for name in variant.settings:
        setattr(loss, name, getattr(default(mode=mode), name))
    again = evaluate(loss, x, y)
    assert same(again[0], before[0])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(
    ("name", "value"),
    [("reduction", "sum"), ("ignore_index", 1), ("class_weight", [0.5, 1.0, 2.0]), ("include_background", False)],
)
def test_a_changed_common_setting_takes_effect(variant, name, value):
    if variant.name in ("CompoundLoss", "DeepSupervisionLoss"):
        return
    if "class_weight" in variant.settings and name == "class_weight":
        return
    mode = variant.modes[-1]
    x, y = problem(mode)
    loss = variant(mode=mode)
    evaluate(loss, x, y)
    setattr(loss, name, value)
    expected = evaluate(variant(mode=mode, **{name: value}), x, y)
    found = evaluate(loss, x, y)
    close(found[0], expected[0], 1e-13)


@every
def test_without_gradient(variant, mode):
    x, y = problem(mode)
    value = evaluate(variant(mode=mode), x, y)[0]
    found = variant(mode=mode)(x, y)
    if not list(variant(mode=mode).parameters()):
        assert not found.requires_grad
    close(found.detach(), value, 1e-14)
    with torch.no_grad():
        assert same(variant(mode=mode)(x.clone().requires_grad_(), y), found.detach())


@every
def test_inside_a_larger_graph(variant, mode):
    """Scaled, in a chain, backward twice, and together with another use of the logits."""
    x, y = problem(mode)
    loss = variant(mode=mode)
    _, grad = evaluate(loss, x, y)
    a = ((x - 1) / 2).requires_grad_()
    value = -3 * loss(2 * a + 1, y)
    value.backward(retain_graph=True)
    close(a.grad, -6 * grad, 1e-12)
    value.backward()
    close(a.grad, -12 * grad, 1e-12)
    b = x.clone().requires_grad_()
    (loss(b, y) + b.sum()).backward()
    close(b.grad, grad + 1, 1e-12)


@every
def test_terms(variant, mode):
    """return_terms gives the same value, and what it is made of."""
    x, y = problem(mode)
    loss = variant(mode=mode)
    value, terms = loss(x, y, return_terms=True)
    close(value.detach(), loss(x, y).detach(), 1e-14)
    assert all(term.shape == () and not term.requires_grad for term in terms.values())
    if isinstance(loss, CompoundLoss):
        assert list(terms) == list(loss.terms)
        total = sum(loss.weights_by_name[name] * term for name, term in terms.items())
        offset = 1 - loss.alpha if variant.name == "ComboLoss" and not loss.offset else 0
        close(total - offset, value.detach(), 1e-12)
    elif variant.name == "BlobLoss":
        close(loss.weight_global * terms["global"] + loss.weight_blob * terms["blob"], value.detach(), 1e-12)
    else:
        (term,) = terms.values()
        close(term, value.detach(), 1e-14)


def test_every_mode_was_tried():
    assert {mode for _, mode in ALL} == set(MODES)
