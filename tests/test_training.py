"""What training code does with a loss: autocast, checkpointing, tensor subclasses, worker processes, threads."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import segfuse as sf
from all_losses import ALL, IDS, problem
from compare import close, same

every_loss = pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
_seed = torch.Generator().manual_seed(0)
IMAGE, LABELS = torch.randn(2, 1, 8, 9, generator=_seed), torch.randint(0, 3, (2, 8, 9), generator=_seed)


class Marked(torch.Tensor):
    """Data with a note, as MONAI's MetaTensor; whatever is computed from it stays marked."""


@every_loss
def test_subclasses_of_tensor(variant, mode):
    loss = variant(mode=mode)
    x, y = problem(mode, dtype=torch.float32)
    marked = x.detach().as_subclass(Marked).requires_grad_()
    value = loss(marked, y.as_subclass(Marked))
    assert type(value) is torch.Tensor
    value.sum().backward()
    assert same(value.detach(), loss(x.detach(), y))
    x = x.detach().requires_grad_()
    loss(x, y).sum().backward()
    assert same(marked.grad.as_subclass(torch.Tensor), x.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Half logits, a float32 loss; the scaled gradient comes back in half and loses nothing but its last bits."""
    torch.manual_seed(0)
    net, loss = nn.Conv2d(1, 3, 3, padding=1), sf.DiceCELoss()
    exact = copy.deepcopy(net)
    loss(exact(IMAGE), LABELS).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    with torch.autocast("cpu", dtype=dtype):
        logits = net(IMAGE)
        logits.retain_grad()
        value = loss(logits, LABELS)
    assert logits.dtype == dtype and value.dtype == torch.float32
    scaler.scale(value).backward()
    assert logits.grad.dtype == dtype and bool(logits.grad.isfinite().all())
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    scaler.unscale_(optimizer)
    for found, expected in zip(net.parameters(), exact.parameters()):
        close(found.grad, expected.grad.double(), 0.02)


@pytest.mark.parametrize("loss", [sf.CrossEntropyLoss(), sf.DiceCELoss(), sf.LovaszLoss(), sf.HausdorffDTLoss()])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["", "reentrant"])
def test_checkpointing(loss, use_reentrant):
    net = nn.Conv2d(1, 3, 1)
    gradients = []
    for run in (
        lambda image: loss(net(image), LABELS),
        lambda image: checkpoint(lambda image: loss(net(image), LABELS), image, use_reentrant=use_reentrant),
    ):
        net.zero_grad()
        run(IMAGE.clone().requires_grad_()).backward()
        gradients.append(net.weight.grad.clone())
    assert same(*gradients)


def test_several_losses_of_the_same_logits():
    x, y = problem("multiclass", dtype=torch.float64)
    losses = [sf.DiceLoss(), sf.CrossEntropyLoss(), sf.LovaszLoss(), sf.BoundaryLoss()]
    x = x.detach().requires_grad_()
    expected = sum(torch.autograd.grad(loss(x, y), x)[0] for loss in losses)
    sum(loss(x, y) for loss in losses).backward()
    close(x.grad, expected, 1e-12)


def test_logits_changed_before_the_backward_pass():
    """The gradient would be that of other logits: torch says so."""
    x, y = problem("multiclass", dtype=torch.float32)
    logits = x.detach().requires_grad_() * 1.0
    value = (sf.DiceLoss() + sf.FocalLoss(gamma=3.0))(logits, y)
    with torch.no_grad():
        logits += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_state_of_a_model_that_holds_its_loss():
    model = nn.ModuleDict({"net": nn.Conv2d(1, 3, 1), "loss": sf.DiceCELoss() + 0.1 * sf.TLoss(mode="multilabel")})
    assert [name for name in model.state_dict() if name.startswith("loss")] == ["loss.terms.t.nu_tilde"]
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    other.load_state_dict(model.state_dict())
    hot = nn.functional.one_hot(LABELS, 3).movedim(-1, 1)
    term = model["loss"].terms["t"]
    assert same(term(model["net"](IMAGE), hot).detach(), other["loss"].terms["t"](other["net"](IMAGE), hot).detach())
    model.half().double().to("cpu")


class Scored(Dataset):
    """A data set that measures how hard its samples are: losses run in the workers."""

    loss = sf.DiceLoss() + sf.BoundaryLoss()

    def __len__(self):
        return 4

    def __getitem__(self, i):
        x = torch.randn(1, 3, 16, 17, generator=torch.Generator().manual_seed(i))
        return self.loss(x, LABELS[:1].repeat(1, 2, 2)[..., :17])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(start):
    here = torch.stack([Scored()[i] for i in range(4)])
    torch.randn(4, 4)  # threads of the parent are at work before the fork
    (there,) = DataLoader(Scored(), batch_size=4, num_workers=2, multiprocessing_context=start)
    assert same(there, here)


def test_backward_in_another_thread():
    x, y = problem("multiclass", dtype=torch.float32)
    x = x.detach().requires_grad_()
    value = sf.DiceCELoss()(x, y)
    worker = threading.Thread(target=value.backward)
    worker.start()
    worker.join()
    assert x.grad is not None
