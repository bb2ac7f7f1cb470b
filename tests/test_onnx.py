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
