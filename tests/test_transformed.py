"""``torch.func``: every loss under ``grad``, ``vmap`` and both has the values and derivatives of eager calls."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, vjp, vmap

import segfuse as sf
from all_losses import ALL, IDS, problem
from compare import close

every_loss = pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)


def gradient(loss, x, y):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x, y).sum(), x)[0]


@every_loss
def test_every_loss(variant, mode):
    loss = variant(mode=mode)
    x, y = problem(mode, dtype=torch.float64)
    x = x.detach()
    close(grad(lambda x: loss(x, y).sum())(x), gradient(loss, x, y), 1e-12)
    alone = list(zip(x[:, None], y[:, None]))
    one = lambda x, y: loss(x[None], y[None]).sum()  # noqa: E731
    close(vmap(one)(x, y), torch.stack([loss(a, b).sum() for a, b in alone]), 1e-12)
    close(vmap(grad(one))(x, y), torch.cat([gradient(loss, a, b) for a, b in alone]), 1e-12)


@pytest.mark.parametrize(
    "loss",
    [sf.DiceLoss(), sf.CrossEntropyLoss(), sf.LovaszLoss(), sf.DiceCELoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_second_derivatives(loss):
    x, y = problem("multiclass", (3, 4), torch.float64)
    x = x.detach()
    v = torch.randn_like(x)
    expected = torch.autograd.functional.hvp(lambda x: loss(x, y), x, v)[1]
    close(grad(lambda x: (grad(lambda x: loss(x, y))(x) * v).sum())(x), expected, 1e-10)


def test_other_arguments():
    loss = sf.DiceLoss() + 0.5 * sf.FocalLoss()
    x, y = problem("multiclass", dtype=torch.float64)
    x, w, m = x.detach(), torch.rand(y.shape), torch.rand(y.shape) > 0.3
    value, terms = vmap(lambda x, w: loss(x, y, weight_map=w, mask=m, return_terms=True), (0, 0))(
        torch.stack([x, 2 * x]), torch.stack([w, 1 - w])
    )
    for i, (a, b) in enumerate([(x, w), (2 * x, 1 - w)]):
        expected, known = loss(a, y, weight_map=b, mask=m, return_terms=True)
        close(value[i], expected, 1e-12)
        assert {name: float(t[i]) for name, t in terms.items()} == {name: float(t) for name, t in known.items()}
    _, pull = vjp(lambda x: loss(x, y), x)
    close(pull(torch.tensor(2.0, dtype=torch.float64))[0], 2 * gradient(loss, x, y), 1e-12)


def test_a_list_of_outputs():
    loss = sf.DeepSupervisionLoss()
    x, y = problem("multiclass", (8, 8), torch.float64)
    x = x.detach()
    outputs = lambda x: [x, x[..., ::2, ::2]]  # noqa: E731
    close(grad(lambda x: loss(outputs(x), y))(x), gradient(lambda x, y: loss(outputs(x), y), x, y), 1e-12)


def test_learnable_parameters():
    loss = sf.TLoss()
    parameters = {name: p.detach() + 0.5 for name, p in loss.named_parameters()}
    x, y = problem("binary", dtype=torch.float64)
    call = lambda p: functional_call(loss, p, (x.detach(), y))  # noqa: E731
    other = sf.TLoss()
    other.load_state_dict(parameters)
    close(call(parameters), other(x, y).detach(), 1e-6)
    expected = torch.autograd.grad(other(x, y), list(other.parameters()))
    for found, known in zip(grad(call)(parameters).values(), expected):
        close(found, known.double(), 1e-5)
