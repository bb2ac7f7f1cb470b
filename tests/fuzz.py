"""Random calls of every op and loss: nothing crashes, no input changes, the kernel is the reference.

    make fuzz ARGS="--count 100000 --seed 0"

Call number i is made from the seed + i alone, so ``--seed 1234 --count 1 --show`` repeats one. Shapes have 0 to 9
pixels along each axis (rarely many), tensors any strides and offset, labels any dtype and any value, logits may be
infinite or NaN. Either every backend gives the value and gradient of the float64 reference within the shared
tolerance, or all raise the same error. Memory around the tensors is guarded where AddressSanitizer is loaded
(``make sanitize``).
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import segfuse as sf
from all_losses import CHANNELS, MODES, VARIANTS, Variant
from cases import LABELS, LAYOUTS, holds, lay_out
from compare import FLOOR, largest, max_diff
from segfuse.backends import available, use_backend
from segfuse.ops import disk_sums, erosion, pairwise_hausdorff, pixel_stats, top_k
from segfuse.ops._hard_pair import hard_pair
from segfuse.ops.distance_transform_edt import MODES as DISTANCE_MODES
from segfuse.ops.distance_transform_edt import distance_transform_edt

DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: Times what ``compare.within_rounding`` allows: in 10^5 calls rounding is lucky on one side and unlucky on the other.
SLACK = 20

Results = Sequence[Tensor]


@dataclass
class Call:
    """A function of tensors; its results do not depend on anything else."""

    name: str
    function: Callable[[dict[str, Tensor]], Results]
    tensors: dict[str, Tensor]
    widened: tuple[str, ...] = ("input",)  # what the exact reference gets in float64
    dtype: torch.dtype = torch.float64  # of computation: float32 even where sums are added up in float64
    choice: bool = False  # a tie or a threshold may fall to the other side: the gradient may be that of another choice
    windowed: bool = False
    loss: bool = False  # a value, and its gradient
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.widened:
            self.dtype = min(self.dtype, self.tensors[name].dtype, key=lambda d: d.itemsize)

    def __str__(self) -> str:
        tensors = [f"{k}: {t.dtype} {tuple(t.shape)} strides {t.stride()}" for k, t in self.tensors.items()]
        return "\n  ".join([self.name, *(f"{k}={v}" for k, v in self.about.items()), *tensors])


class Source:
    """Random choices and tensors."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.one_of = self.random.choice

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def spatial(self, axes: int, large: float = 0.02) -> tuple[int, ...]:
        if self.chance(large):  # several tiles, threads
            return tuple(self.random.randint(1, (20_000, 140, 27)[axes - 1]) for _ in range(axes))
        return tuple(self.one_of((1, self.random.randint(0, 9), self.random.randint(2, 9))) for _ in range(axes))

    def rand(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.torch, dtype=torch.float64)

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values, or the first sample's, with other strides."""
        layout = self.one_of(LAYOUTS) if self.chance(0.6) else "contiguous"
        return lay_out(x, layout) if x.ndim else x

    def logits(self, shape: Sequence[int], dtype: torch.dtype, certain: float = 0.25) -> Tensor:
        """Normal, with a chance of large, infinite and NaN ones."""
        x = torch.randn(tuple(shape), generator=self.torch, dtype=torch.float64)
        kind = self.one_of(("large", "huge", "infinite", "NaN")) if self.chance(certain) else "normal"
        if kind == "large":
            x *= 40
        elif kind != "normal":
            special = {"huge": (3e4, -3e4), "infinite": (math.inf, -math.inf), "NaN": (math.nan, math.inf)}[kind]
            values = torch.tensor(special, dtype=torch.float64)
            some = values[torch.randint(0, len(values), x.shape, generator=self.torch)]
            x = torch.where(self.rand(x.shape) < self.one_of((0.02, 0.3)), some, x)
        return self.laid_out(x.to(dtype))

    def labels(self, shape: Sequence[int], top: int, ignore_index: int, dtype: torch.dtype | None = None) -> Tensor:
        """0 to ``top``, ignored ones, and in one call of eight values that do not belong."""
        dtype = dtype or self.one_of(LABELS)
        y = torch.randint(0, max(top, 0) + 1, tuple(shape), generator=self.torch).to(torch.float64)
        if self.chance(0.1):
            y[:] = self.random.randint(0, top)
        extra = [ignore_index] if self.chance(0.5) else []
        if self.chance(0.12):
            extra += [top + 1, -1, 255, 127, -128, 2**31, -(2**31), 2**62, -(2**62)]
            extra += [0.5, math.nan, math.inf, -math.inf] if dtype.is_floating_point else []
        extra = [v for v in extra if holds(dtype, int(v) if math.isfinite(v) else 0)]
        if extra:
            some = torch.tensor(extra, dtype=torch.float64)[torch.randint(0, len(extra), y.shape, generator=self.torch)]
            y = torch.where(self.rand(y.shape) < self.one_of((0.01, 0.2, 1.0)), some, y)
        if not dtype.is_floating_point and dtype != torch.bool:
            y = y.to(torch.int64)
        return self.laid_out(y.to(dtype))

    def weight(self, shape: Sequence[int]) -> Tensor:
        w = 2 * self.rand(shape) * (self.rand(shape) < 0.9)
        if self.chance(0.1):
            w = torch.where(self.rand(shape) < 0.1, self.one_of((-0.5, 1e4)), w)
        return self.laid_out(w.to(self.one_of(LABELS) if self.chance(0.2) else self.one_of(DTYPES)))

    def mask(self, shape: Sequence[int]) -> Tensor:
        return self.laid_out((self.rand(shape) < self.one_of((0.0, 0.5, 0.9))).to(self.one_of(LABELS)))


def problem(r: Source, mode: str, large: float = 0.02) -> tuple[dict[str, Tensor], int, bool]:
    """Tensors of a loss, the label that is ignored, and whether ``input`` holds logits."""
    C = 1 if mode == "binary" else CHANNELS[mode] if r.chance(0.7) else r.random.randint(2, r.one_of((5, 40)))
    spatial = r.spatial(r.random.randint(1, 3), large)
    N = r.random.randint(0, 3)
    flat, single, full = (N, *spatial), (N, 1, *spatial), (N, C, *spatial)
    ignore_index = r.one_of((-100, -100, 255, 0, -1, 2**40))
    from_logits = r.chance(0.85)
    x = r.logits(full, r.one_of(DTYPES))
    if not from_logits:
        p = r.rand(full)
        p = p / p.sum(1, keepdim=True) if mode == "multiclass" else p
        x = r.laid_out(torch.where(r.rand(full) < 0.05, p.round(), p).to(x.dtype))
    if mode == "multiclass":
        kind = r.one_of(("index", "index", "index1", "hot", "soft"))
    else:
        kind = r.one_of(("hard", "hard", "flat", "soft")) if mode == "binary" else r.one_of(("hard", "soft"))
    if kind == "soft":
        y = r.rand(full)
        y = r.laid_out((y / y.sum(1, keepdim=True) if mode == "multiclass" else y).to(r.one_of(DTYPES)))
    elif kind == "hot":
        y = torch.nn.functional.one_hot(torch.randint(0, C, flat, generator=r.torch), C).movedim(-1, 1)
        y = r.laid_out(y.to(r.one_of(LABELS)))
    else:
        shape = {"index": flat, "index1": single, "hard": full, "flat": flat}[kind]
        y = r.labels(shape, C - 1 if mode == "multiclass" else 1, ignore_index)
    found = {"input": x, "target": y}
    if r.chance(0.3):
        found["weight_map"] = r.weight(r.one_of((flat, single, full)))
    if r.chance(0.3):
        found["mask"] = r.mask(r.one_of((flat, single, full) if mode == "multilabel" else (flat, single)))
    return found, ignore_index, from_logits


def settle(t: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``input`` as a leaf on the same memory, target, and the rest."""
    rest = {name: x for name, x in t.items() if name not in ("input", "target")}
    return t["input"].detach().requires_grad_(), t["target"], rest


# ------------------------------------------------------------------------------------------------ calls


#: Losses that compare, sort or select: what is equal up to rounding may be chosen differently.
CHOOSING = {
    "TopKCrossEntropyLoss",
    "LovaszLoss",
    "HausdorffERLoss",
    "HausdorffCVLoss",
    "HausdorffDTLoss",
    "ShapeAwareLoss",
    "WeightedHausdorffLoss",
    "CMSSLLoss",
    "BalancedCrossEntropyLoss",
    "MCCLoss",  # a square root of differences, 0 where a class fills its sample
}


def a_loss(r: Source) -> Call:
    variant: Variant = r.one_of(VARIANTS)
    mode = r.one_of(variant.modes)
    tensors, ignore_index, from_logits = problem(r, mode, 0 if variant.positional or variant.windowed else 0.02)
    C = 1 if mode == "binary" else tensors["input"].shape[1]
    common: dict[str, Any] = {"mode": mode, "ignore_index": ignore_index, "from_logits": from_logits}
    if r.chance(0.3):
        common["reduction"] = r.one_of(("sum", "none"))
    if r.chance(0.2):
        common["class_weight"] = [r.one_of((0.0, 0.5, 2.0)) for _ in range(C)]
    if r.chance(0.2):
        common["include_background"] = False
    if r.chance(0.05):
        tensors["target"] = tensors["target"].to(torch.uint8 if r.chance(0.5) else torch.bool)

    def evaluate(t: dict[str, Tensor]) -> Results:
        x, y, rest = settle(t)
        loss = variant(**common)
        value = loss(x, y, **rest)
        (grad,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        return [value.detach(), torch.zeros(()) if grad is None else grad]

    return Call(
        str(variant),
        evaluate,
        tensors,
        choice=variant.name in CHOOSING,
        windowed=variant.windowed,
        loss=True,
        about=common,
    )


def sums(r: Source) -> Call:
    mode = r.one_of(MODES)
    tensors, ignore_index, from_logits = problem(r, mode)
    wanted = list({*r.random.sample(list(pixel_stats.MOMENTS), r.random.randint(1, 6)), "tp"})
    wanted.sort()
    if any(name.startswith("distance") for name in wanted):
        shape = tensors["input"].shape
        tensors["distance_map"] = r.laid_out((4 * r.rand(shape) - 2).to(r.one_of(DTYPES)))
    about = {"mode": mode, "ignore_index": ignore_index, "from_logits": from_logits}

    def evaluate(t: dict[str, Tensor]) -> Results:
        x, y, rest = settle(t)
        found = torch.stack(list(sf.pixel_stats(x, y, wanted, **about, **rest).values()))
        factors = torch.linspace(0.5, 2, found.numel(), dtype=torch.float64).reshape(found.shape)
        (grad,) = torch.autograd.grad((found * factors).sum(), x)
        return [*found.detach(), grad]

    return Call("pixel_stats", evaluate, tensors, about={**about, "wanted": wanted})


def distances(r: Source) -> Call:
    axes = r.random.randint(1, 3)
    mode = r.one_of(DISTANCE_MODES)
    shape = (
        *(r.random.randint(0, 3) for _ in range(r.random.randint(0, 2))),
        *r.spatial(axes, 0.02 if axes > 1 else 0),
    )
    about: dict[str, Any] = {"mode": mode, "spatial_dims": axes, "dtype": r.one_of((torch.float32, torch.float64))}
    if r.chance(0.5):
        about["spacing"] = tuple(r.one_of((1.0, 0.5, 3.7, 1e-3, 100.0)) for _ in range(axes))
    about["squared"] = r.chance(0.3)
    if r.chance(0.2):
        x = r.logits(shape, r.one_of(DTYPES))
        about["threshold"] = r.one_of((0.0, 0.5, -math.inf))
    else:
        x = r.labels(shape, r.one_of((1, 1, 3)), 0, r.one_of([d for d in LABELS if not d.is_floating_point]))
        if r.chance(0.3):
            about["classes"] = [r.one_of((0, 1, 2, 255, -1, 2**40)) for _ in range(r.random.randint(0, 3))]
    indices = mode != "nearest_two" and r.chance(0.3)

    def evaluate(t: dict[str, Tensor]) -> Results:
        found = distance_transform_edt(t["input"], return_indices=indices, **about)
        if not indices:
            return list(found) if isinstance(found, tuple) else [found]
        size = torch.tensor(about.get("spacing", (1.0,) * axes), dtype=torch.float64)
        grid = torch.meshgrid(*(torch.arange(n) for n in found[0].shape[found[0].ndim - axes :]), indexing="ij")
        steps = [(i - own) * s for i, own, s in zip(found[1], grid, size)]
        return [found[0], torch.stack(steps).square().sum(0)]  # which of the nearest is free

    return Call(
        "distance_transform_edt", evaluate, {"input": x}, (), about["dtype"], about={**about, "indices": indices}
    )


def moments(r: Source) -> Call:
    axes = r.random.randint(1, 3)
    shape = (r.random.randint(0, 3), r.random.randint(1, 3), *r.spatial(axes))
    dtype = r.one_of(DTYPES)
    tensors = {"a": r.logits(shape, dtype)}
    if r.chance(0.6):
        other = dtype if dtype == torch.float64 else r.one_of(DTYPES)
        tensors["b"] = r.logits(shape, other)
    about: dict[str, Any] = {
        "window": r.one_of((1, 3, 5, 7, 11, 33)),
        "sigma": r.one_of((0.5, 1.5, 6.0)),
        "kernel": r.one_of(("gaussian", "box")),
        "padding": r.one_of(("zeros", "zeros", "valid")),
    }

    def evaluate(t: dict[str, Tensor]) -> Results:
        images = [x.detach().requires_grad_() for x in t.values()]
        rows = [row for row in sf.local_moments(*images, **about) if row is not None]
        total = sum((k * row.double()).sum() for k, row in enumerate(rows, 1))
        return [*(row.detach() for row in rows), *torch.autograd.grad(total, images)]

    return Call("local_moments", evaluate, tensors, tuple(tensors), windowed=True, about=about)


def sorted_errors(r: Source) -> Call:
    mode = r.one_of(MODES)
    tensors, ignore_index, from_logits = problem(r, mode)
    tensors.pop("weight_map", None)
    C = tensors["input"].shape[1]
    about: dict[str, Any] = {
        "mode": mode,
        "ignore_index": ignore_index,
        "from_logits": from_logits,
        "per_image": r.one_of((None, True, False)),
        "classes": r.one_of(("present", "all", (0,), (C - 1, 0), (C,))),
    }

    def evaluate(t: dict[str, Tensor]) -> Results:
        x, y, rest = settle(t)
        found = sf.lovasz_extension(x, y, **about, **rest)
        (grad,) = torch.autograd.grad(found.sum(), x)
        return [found.detach(), grad]

    return Call("lovasz_extension", evaluate, tensors, choice=True, loss=True, about=about)


def largest_values(r: Source) -> Call:
    shape = (r.random.randint(0, 3), r.one_of((0, 1, r.random.randint(2, 300), 40_000)))
    x = r.logits(shape, r.one_of((torch.float32, torch.float64))).contiguous()
    if r.chance(0.3):
        x = x.round()
    tensors = {"input": x}
    if r.chance(0.5):
        tensors["valid"] = r.rand(shape) < r.one_of((0.0, 0.1, 0.9))
    percent = r.one_of((1e-9, 1.0, 33.3, 99.9, 100.0))

    def evaluate(t: dict[str, Tensor]) -> Results:
        found = top_k.select(t["input"], t.get("valid"), percent)
        return [found.chosen, found.total, found.number]

    return Call("top_k", evaluate, tensors, about={"percent": percent})


def on_pairs(r: Source) -> Call:
    mode = r.one_of(MODES)
    tensors, ignore_index, from_logits = problem(r, mode, 0)
    options: dict[str, Any]
    op, options = r.one_of(
        (
            (erosion.erosion, {"steps": r.one_of((1, 3, 10)), "norm": r.one_of(erosion.NORMS), "alpha": 1.5}),
            (
                disk_sums.disk_sums,
                {"radii": r.one_of(((1,), (2, 5), (3, 12))), "hard": r.one_of(("threshold", "argmax"))},
            ),
            (
                pairwise_hausdorff.pairwise_hausdorff,
                {"alpha": r.one_of((-1.0, -2.5, -math.inf)), "form": r.one_of(pairwise_hausdorff.FORMS), "eps": 1e-4},
            ),
        )
    )
    background = r.chance(0.7)
    about = {"mode": mode, "ignore_index": ignore_index, "from_logits": from_logits}

    def evaluate(t: dict[str, Tensor]) -> Results:
        x, y, rest = settle(t)
        pair = hard_pair(*pixel_stats.check(x, y, **about, **rest), include_background=background)
        value = op(pair, **options)
        factors = torch.linspace(0.5, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
        (grad,) = torch.autograd.grad((value * factors).sum(), x)
        return [value.detach(), grad]

    return Call(
        op.__name__, evaluate, tensors, choice=True, loss=True, about={**about, **options, "background": background}
    )


CALLS = (a_loss,) * 6 + (sums, distances, distances, moments, sorted_errors, largest_values, on_pairs)


def make(seed: int) -> Call:
    r = Source(seed)
    return r.one_of(CALLS)(r)


# ------------------------------------------------------------------------------------------------ checks


def memory(x: Tensor) -> Tensor:
    """All bytes of a tensor's storage, also those between its elements."""
    return torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())


def outcome(call: Call, backend: str | None, exact: bool = False) -> Results | Exception:
    tensors = {k: x.double() if exact and k in call.widened else x for k, x in call.tensors.items()}
    try:
        if backend is None:
            return call.function(tensors)
        with use_backend(backend):
            return call.function(tensors)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return error


def differ(
    call: Call, found: Tensor, plain: Callable[[], Tensor], exact: Tensor, slack: float, may_lack_nan: bool
) -> str | None:
    if found.shape != exact.shape:
        return f"shape {tuple(found.shape)}, not {tuple(exact.shape)}"
    if call.windowed:  # NaN or infinite: which one follows from the order of the additions
        found, exact = (torch.where(x.isfinite(), x, torch.nan) for x in (found, exact))
    if may_lack_nan:
        exact = torch.where(exact.isnan(), found, exact)
    error, scale = max_diff(found, exact), largest(exact)
    allowed = slack * FLOOR[call.dtype] * max(scale, 0.01)  # differences of numbers near 1 may be tiny
    if error > allowed:
        allowed += slack * max_diff(plain(), exact)
    return None if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}, largest entry {scale:.6g}"


def check(call: Call, backends: Sequence[str | None], slack: float = SLACK) -> str:
    """What went wrong, or an empty text."""
    before = {name: memory(x).clone() for name, x in call.tensors.items()}
    exact = outcome(call, "reference", exact=True)
    plain: list[Results | Exception] = []

    def reference(i: int) -> Tensor:
        if not plain:
            plain.append(outcome(call, "reference"))
        assert not isinstance(plain[0], Exception), plain[0]
        return plain[0][i]

    for backend in backends:
        found = outcome(call, backend)
        for name, x in call.tensors.items():
            if not torch.equal(memory(x), before[name]):
                return f"{backend}: {name} was changed"
        if isinstance(found, Exception) or isinstance(exact, Exception):
            expected = outcome(call, "reference")
            if type(found) is not type(expected) or str(found) != str(expected):
                return f"{backend}: {found!r}, reference: {expected!r}"
            continue
        for i, (f, e) in enumerate(zip(found, exact, strict=True)):
            gradient = i == len(found) - 1 > 0
            if gradient and call.loss and not exact[0].isfinite().all():
                continue  # it means nothing
            # A sum may leave out a NaN at a pixel of another class, and the gradient of a finite loss with it.
            may_lack_nan = call.name == "pixel_stats" or (call.loss and gradient)
            wrong = differ(call, f, partial(reference, i), e, slack, may_lack_nan)
            if wrong and not (call.choice and gradient):
                return f"{backend}: result {i} is {wrong}"
    return ""


def run(seed: int, count: int, progress: bool = False, show: bool = False, most: int = 20) -> list[str]:
    """Makes and checks calls; returns what went wrong."""
    backends: list[str | None] = [name for name in available("pixel_stats") if name not in ("reference", "cuda")]
    wrong: list[str] = []
    took: Counter[str] = Counter()
    begin = last = time.monotonic()
    for i in range(seed, seed + count):
        torch.set_num_threads(1 + i % 3)
        now = time.monotonic()
        call = make(i)
        if show:
            print(i, call, flush=True)
        try:
            text = check(call, backends)
        except Exception:
            text = traceback.format_exc()
        took[call.name.split(",")[0]] += time.monotonic() - now
        if text:
            wrong.append(f"--seed {i}: {call}\n  {text}")
            if progress:
                print(f"\n{wrong[-1]}", flush=True)
        now = time.monotonic()
        if progress and (now - last > 5 or i == seed + count - 1):
            print(f"{i - seed + 1} calls, {len(wrong)} wrong, {now - begin:.0f} s; next is --seed {i + 1}", flush=True)
            last = now
            if show:
                print(took.most_common(8))
        if len(wrong) >= most:
            break
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--show", action="store_true", help="print every call before it is made")
    arguments = parser.parse_args()
    faulthandler.enable()
    sys.exit(bool(run(arguments.seed, arguments.count, True, arguments.show)))
