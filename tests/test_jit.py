"""``torch.jit``: every loss as one operator of a trace and of a script, for other shapes than the traced one too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import segfuse as sf
from all_losses import ALL, IDS, problem
from compare import close, same

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own: torch.jit is deprecated

GRAPHS = {
    "trace": lambda loss, x, y: torch.jit.trace(loss, (x, y)),
    "script": lambda loss, x, y: torch.jit.script(loss),
}
graphs = pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)


def agree(graph, loss, x, y):
    x = x.clone().requires_grad_()
    value, expected = graph(x, y), loss(x, y)
    assert same(value.detach(), expected.detach())
    wanted = [x, *loss.parameters()]
    for found, known in zip(torch.autograd.grad(value.sum(), wanted), torch.autograd.grad(expected.sum(), wanted)):
        close(found, known.double(), 1e-6)


@graphs
@pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
def test_every_loss(variant, mode, make):
    loss = variant(mode=mode)
    x, y = problem(mode, dtype=torch.float32)
    if make is GRAPHS["script"] and list(loss.parameters()):
        with pytest.raises(TypeError, match="learns a parameter"):
            make(loss, x, y)
        return
    graph = make(loss, x.detach(), y)
    agree(graph, loss, x.detach(), y)
    agree(graph, loss, x.detach()[..., 1:], y[..., 1:])


class Net(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.head, self.loss = nn.Conv2d(1, 3, 1), loss

    def forward(self, image, target):
        return self.loss(self.head(image), target)


@graphs
def test_inside_a_module(make):
    image, target = torch.randn(2, 1, 8, 9), torch.randint(0, 3, (2, 8, 9))
    net = Net(0.5 * sf.DiceLoss() + sf.CrossEntropyLoss())
    graph = make(net, image, target)
    graph(image, target).backward()
    found, net.head.weight.grad = net.head.weight.grad, None
    net(image, target).backward()
    assert same(found, net.head.weight.grad)


def test_keywords_and_lists_are_traced():
    x, y, m = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8)), torch.rand(2, 8, 8)
    loss, deep = sf.DiceCELoss(), sf.DeepSupervisionLoss()
    graph = torch.jit.trace(lambda x, y, m: loss(x, y, weight_map=m), (x, y, m))
    assert same(graph(2 * x, y, m), loss(2 * x, y, weight_map=m))
    graph = torch.jit.trace(lambda a, b, y: deep([a, b], y), (x, x[..., ::2, ::2], y))
    assert same(graph(2 * x, x[..., ::2, ::2], y), deep([2 * x, x[..., ::2, ::2]], y))


def test_another_process_has_no_such_loss(tmp_path):
    path = str(tmp_path / "loss.pt")
    torch.jit.script(sf.DiceLoss()).save(path)
    code = f"import segfuse, torch; torch.jit.load({path!r})(torch.zeros(1, 2, 3), torch.zeros(1, 3))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=120)
    assert "lives in the process that made it" in run.stderr
