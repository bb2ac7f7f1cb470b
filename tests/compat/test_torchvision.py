"""``segfuse.compat.torchvision`` against the installed torchvision."""

from __future__ import annotations

import itertools

import pytest
import torch
from against import Data, agree, both_raise, peer, same_signature

from segfuse.compat import torchvision as ours

theirs = peer("torchvision", "ops.focal_loss")

pytestmark = pytest.mark.filterwarnings("ignore")

D = Data()


def test_signature():
    same_signature(theirs.sigmoid_focal_loss, ours.sigmoid_focal_loss)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values(reduction):
    flat = (D.x.flatten(), D.multi.flatten())
    strided = (D.x.transpose(1, 3), D.multi.transpose(1, 3))
    targets = ((D.x, D.hot), (D.x, D.soft), (D.x1, D.mask), (D.x, 2 * D.soft - 0.5), flat, strided)
    for alpha, gamma, (x, y) in itertools.product((0.25, -1, 0.0, 1.0), (2, 0, 0.5), targets):
        agree(
            lambda x, y, a=alpha, g=gamma: theirs.sigmoid_focal_loss(x, y, a, g, reduction),
            lambda x, y, a=alpha, g=gamma: ours.sigmoid_focal_loss(x, y, a, g, reduction),
            x,
            y,
            tol=1e-9,
        )


def test_errors():
    for options in ({"alpha": 2.0}, {"alpha": -0.5}, {"reduction": "other"}):
        both_raise(
            lambda o=options: theirs.sigmoid_focal_loss(D.x, D.hot, **o),
            lambda o=options: ours.sigmoid_focal_loss(D.x, D.hot, **o),
        )


def test_alpha_none():
    with pytest.raises(TypeError):
        theirs.sigmoid_focal_loss(D.x, D.hot, alpha=None)
    found = ours.sigmoid_focal_loss(D.x, D.hot, alpha=None)
    torch.testing.assert_close(found, theirs.sigmoid_focal_loss(D.x, D.hot, alpha=-1))
