"""Maps of a fixed target for a data loader: computed once, or in the workers, instead of in every step.

Each is a callable on a label tensor (or array) of one sample, or on a dictionary of them as MONAI passes it, and works
in workers started by ``fork`` and by ``spawn``. The result goes to the loss as ``distance_map=``:
``loss(logits, target, distance_map=batch["label_signed_distance"])``.

Cropping does not commute with a map: a crop of the whole image's map still knows the boundaries outside of the crop,
the map of the crop does not, and near its border the two differ. Both are sound; use one of them throughout. Flips and
rotations by 90 degrees commute; resizing and elastic deformation do not: make the map after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .maps import connected_components, gap_weight, signed_distance
from .ops.distance_transform_edt import distance_transform_edt
from .ops.pixel_stats import check_ignore_index, holds, may_look

__all__ = ["DistanceMap", "SignedDistanceMap", "UNetWeightMap"]


class _Map:
    """What the transforms share.

    Args:
        keys: entries of the dictionary to make maps of; not needed for tensors.
        spatial_dims: number of spatial axes, the last ones of a label; others are channels.
        num_classes: the label holds class numbers, ``(*spatial)`` or ``(1, *spatial)``, and the map gets one channel
            per class. Default: every channel is a mask, nonzero inside, and has a map of its own.
        spacing: size of a pixel, along every spatial axis or one for each. Default: 1.
        ignore_index: label of pixels that do not count; they are background, as for the losses.
        suffix: the map of ``label`` is stored under ``label`` + suffix.
    """

    suffix = "_map"

    def __init__(
        self,
        keys: str | Sequence[str] = (),
        *,
        spatial_dims: int = 2,
        num_classes: int | None = None,
        spacing: float | Sequence[float] | None = None,
        ignore_index: int = -100,
        suffix: str | None = None,
    ) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.spatial_dims = spatial_dims
        self.num_classes = num_classes
        self.spacing = spacing
        self.ignore_index = check_ignore_index(ignore_index)
        if suffix is not None:
            self.suffix = suffix

    def __call__(self, data: Any) -> Any:
        """
        Args:
            data: a label ``(*spatial)`` or ``(channels, *spatial)`` of any integer or bool dtype, tensor or array; or a
                mapping with such labels.
        Returns:
            float32 ``(*spatial)`` or ``(channels, *spatial)``; or a dictionary with the maps added.
        Raises:
            KeyError: the mapping lacks a key.
            ValueError: a label does not have the axes that were announced.
        """
        if not isinstance(data, Mapping):
            return self._checked(data)
        if not self.keys:
            raise ValueError(f"a mapping needs keys; it has {sorted(data)}. Try: {type(self).__name__}(keys='label')")
        return {**data, **{key + self.suffix: self._checked(data[key]) for key in self.keys}}

    def _checked(self, label: Any) -> Tensor:
        label = torch.as_tensor(label).detach()
        if type(label) is not Tensor:
            label = label.as_subclass(Tensor)
        axes = self.spatial_dims
        if label.ndim not in (axes, axes + 1):
            raise ValueError(
                f"label must be (*spatial) or (channels, *spatial) with {axes} spatial axes; got {tuple(label.shape)}. "
                f"Try: spatial_dims={max(1, label.ndim - 1)}"
            )
        if label.dtype.is_floating_point:
            if may_look(label) and bool((label != label.round()).any()):
                raise ValueError("label must hold whole numbers; got fractions. Try: label > 0.5")
            label = label.to(torch.int64)
        if self.num_classes is not None:
            if label.ndim == axes + 1 and label.shape[0] != 1:
                raise ValueError(
                    f"with num_classes a label holds class numbers, (*spatial) or (1, *spatial); "
                    f"got {tuple(label.shape)}. Try: num_classes=None for masks"
                )
            label = label.reshape(label.shape[-axes:])
        if holds(label.dtype, self.ignore_index):
            background = 0 if self.num_classes is None else -1  # of every class, also of class 0
            label = torch.where(label == self.ignore_index, background, label.to(torch.int64))
        return self.map(label)

    def map(self, label: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def _options(self) -> dict[str, Any]:
        classes = None if self.num_classes is None else range(self.num_classes)
        return {"spatial_dims": self.spatial_dims, "spacing": self.spacing, "classes": classes}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class DistanceMap(_Map):
    """Distance of every pixel to the nearest one on the other side of the boundary: for ``HausdorffDTLoss``."""

    suffix = "_distance"

    def map(self, label: Tensor) -> Tensor:
        return distance_transform_edt(label, mode="two_sided", **self._options)


class SignedDistanceMap(_Map):
    """Positive distance outside, ``delta`` minus the distance inside: for ``BoundaryLoss``.

    Args:
        delta: as in :class:`segfuse.BoundaryLoss`.
    """

    suffix = "_signed_distance"

    def __init__(self, keys: str | Sequence[str] = (), *, delta: float = 1.0, **common: Any) -> None:
        super().__init__(keys, **common)
        self.delta = float(delta)

    def map(self, label: Tensor) -> Tensor:
        return signed_distance(label, self.delta, **self._options)


class UNetWeightMap(_Map):
    """The gap term of the U-Net paper's weight map: for ``UNetWeightedCrossEntropyLoss``.

    Args:
        instances: the label holds instance numbers, 0 is background. Default: its connected components are the
            instances.
        w0, sigma, only_background: as in :class:`segfuse.UNetWeightedCrossEntropyLoss`.
    """

    suffix = "_unet_weight"

    def __init__(
        self,
        keys: str | Sequence[str] = (),
        *,
        instances: bool = False,
        w0: float = 10.0,
        sigma: float = 5.0,
        only_background: bool = True,
        **common: Any,
    ) -> None:
        if common.get("num_classes") is not None:
            raise ValueError(
                f"the U-Net weight map is made of one mask; got num_classes={common['num_classes']!r}. "
                "Try: num_classes=None"
            )
        super().__init__(keys, **common)
        self.instances = bool(instances)
        self.w0, self.sigma, self.only_background = float(w0), float(sigma), bool(only_background)

    def map(self, label: Tensor) -> Tensor:
        axes = self.spatial_dims
        instances = label if self.instances else connected_components(label != 0, axes)
        w = gap_weight(instances, axes, self.w0, self.sigma, self.spacing, torch.float32)
        return w.mul_(label == 0) if self.only_background else w
