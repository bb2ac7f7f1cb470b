"""Other libraries' losses computed here, without a change of the code that uses them: ``segfuse.patch("monai")``.

A class keeps its identity and gets another ``forward``: objects made before and after, names imported elsewhere and
``isinstance`` checks go on as they were. A function is replaced in every module that holds it. Nothing happens on
import, and torch itself is never touched.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.metadata
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from .backends import pick

__all__ = ["patch", "patched", "unpatch"]


@dataclass(frozen=True)
class _Peer:
    modules: tuple[str, ...]  # where its losses are
    distribution: str
    verified: tuple[str, ...]  # the versions that the tests compare with, as prefixes
    names: tuple[str, ...]


_MONAI = """DiceLoss MaskedDiceLoss GeneralizedDiceLoss FocalLoss TverskyLoss MCCLoss DiceCELoss DiceFocalLoss
GeneralizedDiceFocalLoss HausdorffDTLoss LogHausdorffDTLoss BoundaryLoss AsymmetricFocalTverskyLoss AsymmetricFocalLoss
AsymmetricUnifiedFocalLoss SSIMLoss"""
_SMP = """DiceLoss JaccardLoss TverskyLoss FocalLoss LovaszLoss SoftBCEWithLogitsLoss SoftCrossEntropyLoss MCCLoss"""
_KORNIA = """DiceLoss TverskyLoss FocalLoss BinaryFocalLossWithLogits LovaszHingeLoss LovaszSoftmaxLoss HausdorffERLoss
HausdorffERLoss3D SSIMLoss SSIM3DLoss MS_SSIMLoss dice_loss tversky_loss focal_loss binary_focal_loss_with_logits
lovasz_hinge_loss lovasz_softmax_loss ssim_loss ssim3d_loss"""
_NNUNET = """SoftDiceLoss MemoryEfficientSoftDiceLoss DC_and_CE_loss DC_and_BCE_loss DC_and_topk_loss
RobustCrossEntropyLoss TopKLoss"""

#: Losses that gain nothing (wrappers, and those made of torch operations here too) are left as they are.
_PEERS = {
    "monai": _Peer(("monai.losses", "monai.losses.unified_focal_loss"), "monai", ("1.6.",), tuple(_MONAI.split())),
    "smp": _Peer(
        ("segmentation_models_pytorch.losses",), "segmentation-models-pytorch", ("0.6.",), tuple(_SMP.split())
    ),
    "kornia": _Peer(("kornia.losses",), "kornia", ("0.9.",), tuple(_KORNIA.split())),
    "torchvision": _Peer(
        ("torchvision.ops", "torchvision.ops.focal_loss"), "torchvision", ("0.28.", "0.29."), ("sigmoid_focal_loss",)
    ),
    "nnunet": _Peer(
        (
            "nnunetv2.training.loss.dice",
            "nnunetv2.training.loss.compound_losses",
            "nnunetv2.training.loss.robust_ce_loss",
        ),
        "nnunetv2",
        ("2.8.",),
        tuple(_NNUNET.split()),
    ),
}

_lock = threading.RLock()


@dataclass
class _Replacement:
    """One class or function that is replaced now, and how often that was asked for."""

    peer: str
    name: str
    undo: Callable[[], None]
    count: int = 1


_active: dict[int, _Replacement] = {}  # by id of the peer's class or function


@dataclass
class Patch:
    """What one call of :func:`patch` replaced; a context manager that puts it back."""

    peer: str
    names: tuple[str, ...]
    _targets: list[int] = field(repr=False, default_factory=list)

    def undo(self) -> None:
        """Puts back what was replaced, unless another call asked for it too."""
        with _lock:
            targets, self._targets = self._targets, []
            for target in targets:
                _release(target)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def patch(peer: str, *, only: Iterable[str] | None = None, exclude: Iterable[str] | None = None) -> Patch:
    """Computes the losses of an installed library here, with its values.

    Args:
        peer: ``"monai"``, ``"smp"``, ``"kornia"``, ``"torchvision"`` or ``"nnunet"``.
        only: names of its classes and functions. Default: all that gain from it.
        exclude: names to leave as they are.
    Returns:
        what was replaced, with ``undo()``; also a context manager.
    Raises:
        ValueError: an unknown library or name.
        ImportError: the library is not installed.

    A call goes to the library's own code where a subclass overrides a method that takes part, where the device has no
    kernel, under ``torch.compile`` and under functorch transforms. A class whose signature is not the known one stays
    as it is, with a warning; so does nothing else. Another version than those of the tests gets a warning.
    """
    if peer not in _PEERS:
        raise ValueError(f"peer must be one of {', '.join(map(repr, _PEERS))}; got {peer!r}. Try: patch('monai')")
    known = _PEERS[peer]
    chosen = tuple(known.names if only is None else only)
    left_out = set(exclude or ())
    unknown = sorted({*chosen, *left_out} - set(known.names))
    if unknown:
        raise ValueError(
            f"patch({peer!r}) knows no {', '.join(unknown)}; it knows {', '.join(known.names)}. Try: patch({peer!r})"
        )
    modules = [importlib.import_module(name) for name in known.modules]
    _check_version(peer, known)
    ours = importlib.import_module(f"segfuse.compat.{peer}")
    done: list[str] = []
    targets: list[int] = []
    with _lock:
        for name in chosen:
            theirs = next((getattr(m, name) for m in modules if hasattr(m, name)), None)
            if name in left_out or theirs is None:
                continue
            if _replace(peer, name, theirs, getattr(ours, name)):
                done.append(name)
                targets.append(_identity(theirs))
    return Patch(peer, tuple(done), targets)


def unpatch(peer: str | None = None) -> None:
    """Puts back everything of one library, or of all, whoever asked for it."""
    if peer is not None and peer not in _PEERS:
        raise ValueError(f"peer must be one of {', '.join(map(repr, _PEERS))}; got {peer!r}. Try: unpatch()")
    with _lock:
        for target in [key for key, found in _active.items() if peer in (None, found.peer)]:
            _active[target].count = 1
            _release(target)


def patched() -> dict[str, tuple[str, ...]]:
    """The names that are replaced now, by library."""
    with _lock:
        found: dict[str, list[str]] = {}
        for replacement in _active.values():
            found.setdefault(replacement.peer, []).append(replacement.name)
    return {peer: tuple(names) for peer, names in found.items()}


def _check_version(peer: str, known: _Peer) -> None:
    try:
        version = importlib.metadata.version(known.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    if not version.startswith(known.verified):
        versions = ", ".join(f"{v}*" for v in known.verified)
        warnings.warn(
            f"segfuse.patch({peer!r}) was verified with {known.distribution} {versions}; this is {version}. "
            "Compare a loss before and after",
            stacklevel=3,
        )


def _identity(theirs: Any) -> int:
    """A function that is replaced already stands for the one it replaced."""
    return id(getattr(theirs, "_segfuse_original", theirs))


def _replace(peer: str, name: str, theirs: Any, ours: Any) -> bool:
    key = _identity(theirs)
    if key in _active:
        _active[key].count += 1
        return True
    if not _alike(theirs, ours):
        warnings.warn(f"{peer} has a {name} with another signature than the known one; it stays as it is", stacklevel=4)
        return False
    undo = _replace_forward(theirs, ours) if inspect.isclass(theirs) else _replace_function(theirs, ours)
    _active[key] = _Replacement(peer, name, undo)
    return True


def _release(target: int) -> None:
    found = _active.get(target)
    if found is None:
        return
    found.count -= 1
    if found.count == 0:
        del _active[target]
        found.undo()


def _alike(theirs: Any, ours: Any) -> bool:
    """Whether constructor and call take the same arguments."""

    def names(function: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]

    if not inspect.isclass(theirs):
        return names(theirs) == names(ours)
    return all(names(getattr(theirs, method)) == names(getattr(ours, method)) for method in ("__init__", "forward"))


def _replace_forward(owner: type, ours: type[Any]) -> Callable[[], None]:
    original = owner.forward  # type: ignore[attr-defined]
    own = vars(owner).get("forward")
    hooks = _hooks(owner)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        changed = type(self) is not owner and any(getattr(type(self), name) is not hook for name, hook in hooks)
        if changed or not _runs_here(args, kwargs):
            return original(self, *args, **kwargs)
        return ours.forward(self, *args, **kwargs)

    def prepare(self: Any) -> Any:
        """What torch.jit.script takes: the same with the library's own source."""
        if type(self).forward is not forward:
            return self
        plain = copy.copy(self)
        plain._modules = plain._modules.copy()  # it is written to
        plain.__class__ = type(type(self).__name__, (type(self),), {"forward": original})
        return plain

    owner.forward = forward  # type: ignore[attr-defined]
    owner.__prepare_scriptable__ = prepare  # type: ignore[attr-defined]

    def undo() -> None:
        del owner.__prepare_scriptable__  # type: ignore[attr-defined]
        if own is None:
            del owner.forward  # type: ignore[attr-defined]
        else:
            owner.forward = own  # type: ignore[attr-defined]

    return undo


def _hooks(owner: type) -> list[tuple[str, Any]]:
    """The methods of the library's own class that a subclass may override."""
    package = owner.__module__.split(".")[0]
    names = {
        name
        for cls in owner.__mro__
        if cls.__module__.split(".")[0] == package
        for name, x in vars(cls).items()
        if inspect.isfunction(x) and not name.startswith("__") and name != "forward"
    }
    return [(name, getattr(owner, name)) for name in sorted(names)]


def _replace_function(original: Any, ours: Any) -> Callable[[], None]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return (ours if _runs_here(args, kwargs) else original)(*args, **kwargs)

    function._segfuse_original = original  # type: ignore[attr-defined]
    _swap(original, function)
    return lambda: _swap(function, original)


def _swap(old: Any, new: Any) -> None:
    """In every module that holds it."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, x in list(vars(module).items()):
                if x is old:
                    setattr(module, name, new)


def _runs_here(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a kernel takes these tensors in this situation."""
    tensors = [x for x in _leaves((*args, *kwargs.values())) if isinstance(x, Tensor)]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    probe = next((x for x in tensors if x.dtype.is_floating_point), None)
    if probe is None or any(x.device != probe.device for x in tensors):
        return False
    return not pick("pixel_stats", probe).__name__.endswith("reference.pixel_stats")


def _leaves(xs: Iterable[Any]) -> Iterator[Any]:
    for x in xs:
        if isinstance(x, list | tuple):
            yield from _leaves(x)
        else:
            yield x
