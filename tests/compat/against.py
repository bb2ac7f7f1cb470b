"""Comparing a loss with that of an installed library: signature, value, gradient, shape, errors."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def peer(package: str, name: str) -> Any:
    """``package.name``, or skips the tests of this module.

    If need be without running ``package/__init__.py``: that of SMP imports models, and a torchvision built for another
    torch cannot load its operators. The losses need neither.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"{package}.{name}")
        except (ImportError, RuntimeError):
            found = importlib.util.find_spec(package)
        if found is None or found.submodule_search_locations is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)
        for key in [key for key in sys.modules if key == package or key.startswith(package + ".")]:
            del sys.modules[key]
        stub = types.ModuleType(package)
        stub.__path__ = list(found.submodule_search_locations)
        sys.modules[package] = stub
        try:
            return importlib.import_module(f"{package}.{name}")
        except ImportError as error:
            pytest.skip(f"{package}.{name} does not import: {error}", allow_module_level=True)


def _parameters(function: Any) -> list[tuple[str, Any, Any]]:
    def default(value: Any) -> Any:
        value = getattr(value, "value", value)
        return value.__name__ if inspect.isclass(value) else value

    return [(p.name, p.kind, default(p.default)) for p in inspect.signature(function).parameters.values()]


def same_signature(theirs: Any, ours: Any) -> None:
    """Names, order, kinds and defaults."""
    if not inspect.isclass(theirs):
        assert _parameters(theirs) == _parameters(ours)
        return
    assert _parameters(theirs.__init__) == _parameters(ours.__init__)
    names = [[p[:2] for p in _parameters(cls.forward)] for cls in (theirs, ours)]
    assert names[0] == names[1]


def outcome(loss: Callable[..., Tensor], x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Value, and gradient of its sum."""
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = loss(x, *rest)
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def agree(theirs: Callable[..., Tensor], ours: Callable[..., Tensor], x: Tensor, *rest: Any, tol: float = 1e-6) -> None:
    """The same value, shape and gradient; where the library has nothing finite, ours need only run."""
    expected, slope = outcome(theirs, x, *rest)
    found, grad = outcome(ours, x, *rest)
    assert found.shape == expected.shape
    if not (expected.isfinite().all() and slope.isfinite().all()):
        return
    largest = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-3)
    torch.testing.assert_close(found.double(), expected.double(), rtol=tol, atol=tol * largest)
    scale = float(slope.abs().max()) if slope.numel() else 0.0
    torch.testing.assert_close(grad.double(), slope.double(), rtol=10 * tol, atol=10 * tol * max(scale, 1e-30))


def both_raise(theirs: Callable[[], Any], ours: Callable[[], Any], *, kind: type[Exception] | None = None) -> None:
    """An error of the same type; of ``kind``, where theirs cannot be named without the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:
            theirs()
        with pytest.raises(kind or caught.type):
            ours()


class Data:
    """Logits and targets of every kind, the same each time."""

    def __init__(self, n: int = 2, classes: int = 3, spatial: tuple[int, ...] = (6, 7), seed: int = 0) -> None:
        r = torch.Generator().manual_seed(seed)
        self.x = torch.randn((n, classes, *spatial), generator=r, dtype=torch.float64)
        self.labels = torch.randint(0, classes, (n, *spatial), generator=r)
        self.hot = torch.nn.functional.one_hot(self.labels, classes).movedim(-1, 1).double()
        self.soft = torch.rand((n, classes, *spatial), generator=r, dtype=torch.float64)
        self.shares = self.soft / self.soft.sum(1, keepdim=True)
        self.multi = (torch.rand((n, classes, *spatial), generator=r) < 0.4).double()
        self.x1 = self.x[:, :1]
        self.mask = self.multi[:, :1]
        self.soft1 = self.soft[:, :1]
        self.without_last = self.labels.clamp(max=classes - 2)  # a class is absent
        self.ignored = self.labels.clone()
        self.ignored[0, :2] = 255
