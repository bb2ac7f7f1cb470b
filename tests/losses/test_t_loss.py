"""T-Loss."""

from __future__ import annotations

import math

import torch

import segfuse as sf
from all_losses import problem
from by_hand import P, Y
from compare import close, evaluate

SQUARES = 0.2**2 + 0.4**2 + 0.9**2 + 0.3**2


def student(squares: float, valid: int, nu_tilde: float, lam: float = 0.0, eps: float = 1e-8) -> float:
    nu, half = math.exp(nu_tilde) + eps, valid / 2
    constant = -math.lgamma(nu / 2 + half) + math.lgamma(nu / 2) + half * math.log(math.pi * nu) - half * lam
    return constant + (nu / 2 + half) * math.log(1 + math.exp(lam) * squares / nu)


def test_by_hand(backend):
    loss = sf.TLoss(nu_tilde=0.5, lam=0.25, eps=1e-3, from_logits=False).double()
    close(loss(P, Y), student(SQUARES, 4, 0.5, 0.25, 1e-3), 1e-13)


def test_mean_over_images_counts_valid_pixels(backend):
    p, y = torch.cat([P, P]), torch.cat([Y, Y])
    y[1, 0, 2] = -100
    loss = sf.TLoss(from_logits=False).double()
    parts = student(SQUARES, 4, 1.0), student(SQUARES - 0.81, 3, 1.0)
    close(loss(p, y), sum(parts) / 2, 1e-13)
    alone = sf.TLoss(from_logits=False, reduction="none").double()(p, y)
    close(alone, torch.tensor(parts, dtype=torch.float64), 1e-13)
    y[1] = -100
    close(loss(p, y), parts[0] / 2, 1e-13)


def test_channels_of_an_image_count_together(backend):
    x, y = problem("multiclass")
    hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
    squares = (torch.softmax(x, 1) - hot).square().sum((1, 2, 3))
    expected = sum(student(float(s), 90, 1.0) for s in squares) / 2
    close(sf.TLoss().double()(x, y), expected, 1e-13)


def test_parameter_learns(backend):
    loss = sf.TLoss(nu_tilde=0.3, lam=0.2, from_logits=False).double()
    loss(P, Y).backward()
    h = 1e-5
    slope = (student(SQUARES, 4, 0.3 + h, 0.2) - student(SQUARES, 4, 0.3 - h, 0.2)) / (2 * h)
    close(loss.nu_tilde.grad, slope, 1e-8)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    before = loss(P, Y).item()
    optimizer.step()
    assert loss(P, Y).item() < before


def test_large_images_keep_their_digits(backend):
    """The terms grow with the number of pixels and cancel: they are added in float64."""
    x = torch.randn(1, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    y = (x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) > 0).long()
    squares = float((torch.sigmoid(x.double()) - y).square().sum())
    nu_tilde = float(torch.tensor(0.4))
    close(sf.TLoss(nu_tilde=0.4)(x, y), student(squares, 512 * 512, nu_tilde), 1e-7)


def test_an_outlier_counts_less_than_in_a_sum_of_squares(backend):
    """The slope per error falls as the errors of the image grow."""
    small = evaluate(sf.TLoss(from_logits=False).double(), torch.full((1, 1, 4), 0.1).double(), torch.zeros(1, 1, 4))[1]
    large = evaluate(sf.TLoss(from_logits=False).double(), torch.full((1, 1, 4), 0.9).double(), torch.zeros(1, 1, 4))[1]
    assert (large / 0.9 < small / 0.1).all()
