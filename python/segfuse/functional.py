"""Every loss as a function: ``dice_loss(input, target, *, weight_map=None, mask=None, **options)``.

The options are those of the class, and so is the value. The losses are kept and used again, so a call costs no more
than that of a module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import losses
from .losses._base import Loss, snake

CALL_OPTIONS = ("distance_map", "instances", "return_terms")  # the rest belongs to the class


@lru_cache(maxsize=256)
def _kept(name: str, options: tuple[tuple[str, Any, type], ...]) -> Loss:
    loss: Loss = getattr(losses, name)(**{key: value for key, value, _ in options})
    return loss


def _function(cls: type[Loss]) -> Callable[..., Any]:
    def loss(
        input: Tensor, target: Tensor, *, weight_map: Tensor | None = None, mask: Tensor | None = None, **options: Any
    ) -> Any:
        call = {name: options.pop(name) for name in CALL_OPTIONS if name in options}
        key = tuple((name, tuple(v) if isinstance(v, list) else v, type(v)) for name, v in options.items())
        # What may change later is not kept: tensors, arrays, losses.
        fixed = all(isinstance(v, Hashable) and not isinstance(v, Tensor | nn.Module) for _, v, _ in key)
        module = _kept(cls.__name__, key) if fixed else cls(**options)
        return module(input, target, weight_map=weight_map, mask=mask, **call)

    loss.__name__ = loss.__qualname__ = snake(cls.__name__) + "_loss"
    loss.__module__ = __name__
    loss.__doc__ = (
        f"Function form of :class:`segfuse.{cls.__name__}`; ``options`` are its arguments.\n\n    {inspect.getdoc(cls)}"
    )
    return loss


if TYPE_CHECKING:  # the functions are made below

    def __getattr__(name: str) -> Callable[..., Any]: ...


__all__ = []
for _name in losses.__all__:
    _cls = getattr(losses, _name)
    if _name in ("CompoundLoss", "RegionLoss", "TLoss"):  # these hold losses, a function or a parameter
        continue
    _made = _function(_cls)
    globals()[_made.__name__] = _made
    __all__.append(_made.__name__)
