"""The definition of pixel_stats: every sum, written for reading, and its derivative in closed form.

Both are plain torch, run on any device and can be differentiated again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...ops.pixel_stats import Geometry, Plan, Row, Segments, Tensors, Term, ignored, negative

CLAMP = 1e-7  # probabilities enter a logarithm no smaller than this
BIG = 1e30  # stands in for an infinite loss where it meets a factor 0


def refuses(input: Tensor, device: str | None = None) -> str | None:
    return None


@dataclass
class Pixels:
    """All tensors are ``(N, C, S)``; p, q = 1 - p and their negative logarithms."""

    p: Tensor
    q: Tensor
    lp: Tensor
    lq: Tensor
    y: Tensor
    m: Tensor  # 1 valid, 0 not
    u: Tensor  # m times the weight map
    d: Tensor  # distance map, 0 where not valid; 1 without one
    broken: Tensor  # how many targets and weights are out of range

    @property
    def invalid(self) -> int:
        """The same as a number: waits for a GPU. An exported graph has no such check."""
        return 0 if torch.onnx.is_in_onnx_export() else int(self.broken)


def _expand(x: Tensor, g: Geometry) -> Tensor:
    if x.ndim == len(g.spatial) + 1:
        x = x.unsqueeze(1)
    return x.expand(g.shape).reshape(*g.shape[:2], g.pixels)


def pixels(x: Tensors, g: Geometry) -> Pixels:
    N, C, S = *g.shape[:2], g.pixels
    z = x.input.reshape(N, C, S)
    z = z if z.dtype == torch.float64 else z.float()
    labels = x.target.reshape(N, 1 if g.index_target else C, S)
    labels = labels if labels.dtype.is_floating_point else labels.to(torch.int64)
    kept = ~ignored(x.target, g.ignore_index).reshape(labels.shape)
    if g.exclusive and not g.index_target:
        kept = kept.all(1, keepdim=True).expand_as(kept)
    if x.mask is not None:
        kept = kept & _expand(x.mask != 0, g)[:, : labels.shape[1]]
    fits = (labels >= 0) & (labels <= (C - 1 if g.index_target else 1))
    if g.index_target and labels.dtype.is_floating_point:
        fits = fits & (labels == labels.round())
    broken = (kept & ~fits).sum()
    if x.weight is not None:
        broken = broken + negative(x.weight).sum()
    m = (kept & fits).expand(N, C, S)
    if g.index_target:
        y = labels == torch.arange(C, device=z.device).reshape(1, C, 1).to(labels.dtype)
    else:
        y = labels.to(z.dtype)
    y = torch.where(m, y.to(z.dtype), 0)
    z = torch.where(m, z, 0)  # selected out: a NaN under an ignored pixel goes nowhere
    u = m.to(z.dtype)
    if x.weight is not None:
        u = torch.where(m, _expand(x.weight, g).to(z.dtype), 0)
    d = torch.ones_like(u)
    if x.distance is not None:
        d = torch.where(m, _expand(x.distance, g).to(z.dtype), 0)

    if g.activation == "identity":
        p, q = z, 1 - z
        lp, lq = -p.clamp(min=CLAMP).log(), -q.clamp(min=CLAMP).log()
    elif g.activation == "sigmoid":
        p, q = torch.sigmoid(z), torch.sigmoid(-z)
        lp, lq = _softplus(-z), _softplus(z)
    else:
        top, largest = z.max(1, keepdim=True)
        e = torch.exp(z - top.detach())
        is_top = torch.zeros_like(z, dtype=torch.bool).scatter(1, largest, True)
        others = torch.where(is_top, 0, e).sum(
            1, keepdim=True
        )  # without the largest, which would swallow the small ones
        one = torch.where(is_top, e, 0).sum(1, keepdim=True)  # 1, with its derivative
        p = e / (one + others)
        q = torch.where(is_top, others / (one + others), 1 - p)
        lp = (top.detach() - z) + torch.log1p(others + (one - 1))
        lq = -torch.log(q)
    return Pixels(p, q, lp, lq, y, m, u, d, broken)


def _softplus(x: Tensor) -> Tensor:
    return -logsigmoid(-x)  # has its derivatives at 0 too, unlike max(x, 0) + log(1 + exp(-|x|))


def _where_positive(weight: Tensor, value: Tensor) -> Tensor:
    """weight * value, 0 where the weight is 0 even if the value is infinite; NaN stays."""
    return torch.where((weight == 0) & (value == torch.inf), 0, weight * value)


def _modulate(q: Tensor, lq: Tensor, a: float) -> Tensor:
    return torch.ones_like(q) if a == 0 else q if a == 1 else q * q if a == 2 else torch.exp(-a * lq)


def _power(x: Tensor, a: float) -> Tensor:
    """x^a for x >= 0, with a finite derivative of 0 at x = 0 for every a."""
    if a in (0, 1):
        return torch.ones_like(x) if a == 0 else x
    return torch.where(x == 0, 0, torch.where(x == 0, 1, x) ** a)


def _entropy(x: Pixels, g: Geometry) -> Tensor:
    """Cross-entropy of every element; of every pixel, ``(N, 1, S)``, when classes exclude each other."""
    if g.exclusive:
        return _where_positive(x.y, x.lp).sum(1, keepdim=True)
    return _where_positive(x.y, x.lp) + _where_positive(1 - x.y, x.lq)


def _parts(x: Pixels, g: Geometry, term: Term) -> tuple[Tensor, Tensor]:
    """What one term adds up: the parts of y and of 1 - y, without the weight u."""
    if term.mapped:
        one, zero = _parts(x, g, term._replace(mapped=False))
        return _where_positive(x.d, one), _where_positive(x.d, zero)
    a = term.a
    none = torch.zeros_like(x.p)
    if term.kind in ("focal", "focal_all"):
        one, zero = _modulate(x.q, x.lq, a) * x.lp, _modulate(x.p, x.lp, a) * x.lq
        if term.kind == "focal_all":
            return one, none if g.exclusive else zero
        return _where_positive(x.y, one), none if g.exclusive else _where_positive(1 - x.y, zero)
    if term.kind == "power":
        f = _power(_entropy(x, g), a)
        return _where_positive(x.y, f), none if g.exclusive else _where_positive(1 - x.y, f)
    q = _power(1 - x.p, a) * x.p
    f = q if term.kind == "dsc" else 1 - (2 * q * x.y + term.b) / (q + x.y + term.b)
    return x.y * f, (1 - x.y) * f


def forward(x: Tensors, g: Geometry, plan: Plan, segments: Segments | None = None) -> tuple[Tensor, int]:
    s = pixels(x, g)
    u, p, y = s.u, s.p, s.y
    moments = {
        "count": lambda: s.m,
        "true_count": lambda: y,
        "n": lambda: u,
        "true": lambda: u * y,
        "true2": lambda: u * y * y,
        "pred": lambda: u * p,
        "pred2": lambda: u * p * p,
        "tp": lambda: u * p * y,
        "tp2": lambda: u * p * p * y,
        "l1": lambda: u * (p - y).abs(),
        "sq_true": lambda: u * y * (p - y) ** 2,
        "sq_false": lambda: u * (1 - y) * (p - y) ** 2,
        "distance_pred": lambda: u * s.d * p,
        "distance_sq": lambda: u * s.d * (p - y) ** 2,
    }
    rows = [moments[name]() for name in plan.moments]
    for term in plan.terms:
        rows += [_where_positive(u, part) for part in _parts(s, g, term)]
    if segments is not None:
        none = p.new_zeros((segments.groups, 1), dtype=torch.float64)
        index = segments.of_pixel.reshape(-1)
        sums = [none.index_add(0, index, row.reshape(-1, 1).double()) for row in rows]
    else:
        none = p.new_zeros(g.shape[:2], dtype=torch.float64)
        sums = [row.sum(-1, dtype=torch.float64) for row in rows]
    return torch.stack(sums) if sums else none.new_zeros((0, *none.shape)), s.invalid


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> tuple[Tensor, int]:
    s = pixels(x, g)
    total = torch.zeros_like(s.p)
    for term in plan.terms:
        for part, value in enumerate(_parts(s, g, term)):
            k = coefficient[plan.row((term, part))][..., None].to(s.p.dtype)
            total = total + _where_positive(k * s.u, value)
    return (total.sum(1) if g.exclusive else total).reshape(g.map_shape), s.invalid


def _slopes(x: Pixels, g: Geometry, a: float) -> tuple[Tensor, Tensor]:
    """d f(p) / dz of the two focal parts of a sigmoid; with probabilities d / dp."""

    def slope(p: Tensor, q: Tensor, lp: Tensor, lq: Tensor) -> Tensor:
        if g.activation == "sigmoid":
            return -_modulate(q, lq, a) * (q + a * p * lp.clamp(max=BIG))
        first = torch.where(p >= CLAMP, -_modulate(q, lq, a) / torch.where(p >= CLAMP, p, 1), 0 * p)
        return first if a == 0 else first - torch.where(q > 0, a * torch.exp(-(a - 1) * lq) * lp, 0)

    return slope(x.p, x.q, x.lp, x.lq), -slope(x.q, x.p, x.lq, x.lp)


def backward(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    coefficient: Tensor,
    upstream: Tensor | None = None,
    segments: Segments | None = None,
) -> Tensor:
    s = pixels(x, g)
    p, q, y, u = s.p, s.q, s.y, s.u
    if upstream is not None:
        up = upstream.reshape(g.shape[0], 1 if g.exclusive else g.shape[1], g.pixels).to(p.dtype)
        u = u * up

    def k(row: Row) -> Tensor:
        found = coefficient[plan.row(row)].to(p.dtype)
        return found[..., None] if segments is None else found[segments.of_pixel.long()].reshape(p.shape)

    by_p = {
        "pred": lambda: torch.ones_like(p),
        "pred2": lambda: 2 * p,
        "tp": lambda: y,
        "tp2": lambda: 2 * p * y,
        "l1": lambda: torch.sign(p - y),
        "sq_true": lambda: 2 * y * (p - y),
        "sq_false": lambda: 2 * (1 - y) * (p - y),
        "distance_pred": lambda: s.d,
        "distance_sq": lambda: 2 * s.d * (p - y),
    }
    dp = torch.zeros_like(p)  # d loss / dp
    dz = torch.zeros_like(p)  # d loss / dz of the logarithmic terms of a sigmoid (d / dp of probabilities)
    dl = torch.zeros_like(p)  # d loss / d(-log p) of the logarithmic terms of a softmax
    coupled = torch.zeros_like(p)  # the same for a power of a pixel's entropy, which joins the weights of its classes
    softmax = g.activation == "softmax"
    for name in plan.moments:
        if name in by_p:
            dp = dp + k(name) * by_p[name]()
    for term in plan.terms:
        one, zero = k((term, 0)), k((term, 1))
        if term.mapped:
            one, zero = one * s.d, zero * s.d
        a, b = term.a, term.b
        if term.kind in ("dsc", "dsc_pixel"):
            r = 1 - p
            dq = torch.ones_like(p) if a == 0 else _power(r, a - 1) * (r - a * p)
            dsc, by = _power(r, a) * p, _power(r, a) * p + y + b
            slope = 1 if term.kind == "dsc" else (-2 * y * by + 2 * dsc * y + b) / (by * by)
            dp = dp + (one * y + zero * (1 - y)) * slope * dq
        elif term.kind == "power":
            entropy = _entropy(s, g)
            slope = a * _power(entropy, a - 1) if a != 1 else torch.ones_like(entropy)
            if g.exclusive:
                coupled = coupled + (one * y * u).sum(1, keepdim=True) * slope * y
            else:
                if g.activation == "sigmoid":
                    de = (1 - y) * p - y * q
                else:
                    de = torch.where(q >= CLAMP, (1 - y) / torch.where(q >= CLAMP, q, 1), 0 * p)
                    de = de - torch.where(p >= CLAMP, y / torch.where(p >= CLAMP, p, 1), 0 * p)
                dz = dz + torch.where(entropy == 0, 0, (one * y + zero * (1 - y)) * slope * de)
        else:
            weight_one, weight_zero = (1, 1) if term.kind == "focal_all" else (y, 1 - y)
            if softmax:
                ratio = torch.where(q > 0, s.lp.clamp(max=BIG) / torch.where(q > 0, q, 1), 1)  # -log p / (1 - p) -> 1
                slope = torch.ones_like(p) if a == 0 else _modulate(q, s.lq, a) * (1 + a * p * ratio)
                dl = dl + one * weight_one * slope
            else:
                slope_one, slope_zero = _slopes(s, g, a)
                dz = dz + one * weight_one * slope_one
                if not g.exclusive:
                    dz = dz + zero * weight_zero * slope_zero
    dp, dz, dl = u * dp, u * dz, u * dl + coupled
    if softmax:
        # d(-log p_c) / dz_k = p_k - [c = k];  dp_c / dz_k = p_k ([c = k] - p_c)
        # The target class is kept apart: its part may be so large that the others would vanish in the sum.
        at, off = dl * y, dl * (1 - y)
        others = (off.sum(1, keepdim=True) - off) + (at.sum(1, keepdim=True) - at)
        out = p * (dp - (dp * p).sum(1, keepdim=True)) + p * others - q * dl
    elif g.activation == "sigmoid":
        out = p * q * dp + dz
    else:
        out = dp + dz - torch.where(p >= CLAMP, coupled / torch.where(p >= CLAMP, p, 1), 0 * p)
    return out.reshape(x.input.shape).to(x.input.dtype)
