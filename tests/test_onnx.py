"""ONNX: losses export as torch operations, with the values of eager calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import segfuse as sf
from all_losses import problem
from compare import close

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own


class Net(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x, y):
        return self.loss(2 * x, y)


@pytest.mark.parametrize(
    ("loss", "mode", "dynamo"),
    [
        (0.5 * sf.FocalLoss(ignore_index=0) + sf.TverskyLoss(include_background=False), "multiclass", True),
        (sf.CrossEntropyLoss(mode="multilabel", class_weight=[1, 2, 3], reduction="none"), "multilabel", True),
        (sf.DiceCELoss(), "binary", False),
    ],
    ids=["multiclass", "multilabel", "binary"],
)
def test_export(loss, mode, dynamo, tmp_path):
    x, y = problem(mode, dtype=torch.float32)
    x, path, net = x.detach(), str(tmp_path / "loss.onnx"), Net(loss)
    torch.onnx.export(net, (x, y), path, dynamo=dynamo)
    session = runtime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    for logits in (x, -x):
        (value,) = session.run(None, dict(zip(names, [logits.numpy(), y.numpy()])))
        close(torch.from_numpy(value), net(logits, y).double(), 1e-3)  # its log_sigmoid is log(sigmoid(x))


@pytest.mark.parametrize("loss", [sf.LovaszLoss(), sf.DiceLoss() + sf.BoundaryLoss()], ids=["own pass", "distances"])
def test_what_has_no_form_in_onnx_says_so(loss, tmp_path):
    x, y = problem("binary", dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="no form in ONNX"):
        torch.onnx.export(Net(loss), (x.detach(), y), str(tmp_path / "loss.onnx"), dynamo=False)


def test_a_loss_on_distances_is_exported_with_its_map(tmp_path):
    x, y = problem("binary", dtype=torch.float32)
    x, phi, path = x.detach(), torch.randn(x.shape), str(tmp_path / "loss.onnx")

    class WithMap(nn.Module):
        def forward(self, x, y, phi):
            return sf.BoundaryLoss()(x, y, distance_map=phi)

    torch.onnx.export(WithMap(), (x, y, phi), path, dynamo=False)
    session = runtime.InferenceSession(path)
    given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), (x, y, phi))}
    (value,) = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})
    close(torch.from_numpy(value), sf.BoundaryLoss()(x, y, distance_map=phi).double(), 1e-4)
