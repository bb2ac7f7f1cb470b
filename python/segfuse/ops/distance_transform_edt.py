"""distance_transform_edt: exact Euclidean distances of a batch of masks or label maps in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor

from .._traced import traceable_function
from ..backends import pick

DistanceMode = Literal["inside", "two_sided", "signed", "labels", "nearest_two"]
#: In the order of ``enum DistanceMode`` in csrc/segfuse.h.
MODES = ("inside", "two_sided", "signed", "labels", "nearest_two")
MASK_MODES = MODES[:3]
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
)
MAX_RATIO = 1e100  # between spacings: their squares must stay in the range of a double


@dataclass(frozen=True, slots=True)
class Request:
    """What a call asks for once its arguments are checked."""

    spatial: int  # number of spatial axes, the last ones
    spacing: tuple[float, ...]
    mode: str
    threshold: float | None
    classes: tuple[int, ...] | None
    squared: bool
    indices: bool
    dtype: torch.dtype

    def output_shape(self, input: Tensor) -> tuple[int, ...]:
        """Leading axes, one axis for the classes if they were given, spatial axes."""
        leading, spatial = tuple(input.shape[: -self.spatial]), tuple(input.shape[-self.spatial :])
        return (*leading, *(() if self.classes is None else (len(self.classes),)), *spatial)


def _fail(text: str, call: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{text}. Try: {call}")


def _spacing(spacing: Sequence[float] | float | None, spatial: int) -> tuple[float, ...]:
    if spacing is None:
        return (1.0,) * spatial
    if isinstance(spacing, (int, float)):
        spacing = (spacing,) * spatial
    elif isinstance(spacing, (str, bytes)) or not hasattr(spacing, "__len__"):
        _fail(f"spacing must be a number or a sequence of numbers; got {spacing!r}", "spacing=(1.0, 0.5)", TypeError)
    try:
        sizes = tuple(float(size) for size in spacing)
    except (TypeError, ValueError):
        _fail(f"spacing must hold numbers; got {spacing!r}", "spacing=(1.0, 0.5)", TypeError)
    if len(sizes) != spatial:
        _fail(
            f"spacing must have one value for each of the {spatial} spatial axes; got {len(sizes)}: {sizes}",
            f"spacing={(1.0,) * spatial}",
        )
    if not all(isfinite(size) and size > 0 for size in sizes) or max(sizes) > MAX_RATIO * min(sizes):
        _fail(
            f"spacing must be finite, > 0 and of comparable size (a ratio up to {MAX_RATIO:g}); got {sizes}",
            f"spacing={(1.0,) * spatial}",
        )
    return sizes


def check(
    input: Tensor,
    *,
    spacing: Sequence[float] | float | None,
    spatial_dims: int | None,
    mode: str,
    squared: bool,
    return_indices: bool,
    threshold: float | None,
    classes: Sequence[int] | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Request]:
    """Checks every argument of a call; what comes out may be passed to a kernel as raw pointers."""
    if not isinstance(input, Tensor):
        _fail(f"input must be a torch.Tensor; got {type(input).__name__}", "torch.as_tensor(input)", TypeError)
    if input.layout is not torch.strided:
        _fail(f"input must be a dense tensor; got layout {input.layout}", "input.to_dense()", TypeError)
    if mode not in MODES:
        _fail(f"mode must be one of {', '.join(MODES)}; got {mode!r}", 'mode="inside"')
    if dtype not in (torch.float32, torch.float64):
        _fail(f"dtype of the distances must be float32 or float64; got {dtype}", "dtype=torch.float32", TypeError)

    if spatial_dims is None:
        if not 1 <= input.ndim - 1 <= 3:
            _fail(
                f"input must be (N, *spatial) with 1 to 3 spatial axes; got {tuple(input.shape)}",
                "spatial_dims=2 for images and 3 for volumes, whatever axes lead",
            )
        spatial_dims = input.ndim - 1
    elif isinstance(spatial_dims, bool) or not isinstance(spatial_dims, int) or not 1 <= spatial_dims <= 3:
        _fail(f"spatial_dims must be 1, 2 or 3; got {spatial_dims!r}", "spatial_dims=2")
    elif input.ndim < spatial_dims:
        _fail(
            f"input must have at least spatial_dims={spatial_dims} axes; got {tuple(input.shape)}",
            f"spatial_dims={max(input.ndim, 1)}",
        )
    if any(side >= 2**31 for side in input.shape[input.ndim - spatial_dims :]):
        _fail(f"a spatial axis must be shorter than 2^31; got {tuple(input.shape)}", "crops of the input")

    if input.dtype in FLOATING:
        if mode not in MASK_MODES:
            _fail(
                f"mode={mode!r} needs a label map of integers; got {input.dtype}",
                f'distance_transform_edt(labels.long(), mode="{mode}")',
                TypeError,
            )
        if threshold is None:
            _fail(
                f"input must be bool or an integer; got {input.dtype}",
                "threshold=0.5, which makes input > 0.5 the foreground",
                TypeError,
            )
        if classes is not None:
            _fail(f"classes need an input of integers; got {input.dtype}", "classes=None with threshold", TypeError)
    elif input.dtype not in INTEGERS:
        _fail(f"input must be bool, an integer or floating point; got {input.dtype}", "input != 0", TypeError)
    elif threshold is not None:
        _fail(
            f"threshold is for floating-point input; got {input.dtype}",
            f"distance_transform_edt(input > {threshold!r})",
            TypeError,
        )
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
        _fail(f"threshold must be a number; got {threshold!r}", "threshold=0.5", TypeError)
    if threshold is not None and threshold != threshold:
        _fail("threshold must be a number; got nan", "threshold=0.5")

    if classes is not None:
        if mode not in MASK_MODES:
            _fail(f"mode={mode!r} looks at all labels at once and takes no classes; got {classes!r}", "classes=None")
        if (
            isinstance(classes, (str, bytes))
            or not isinstance(classes, Iterable)
            or not all(isinstance(c, int) and not isinstance(c, bool) and -(2**63) <= c < 2**63 for c in classes)
        ):
            _fail(f"classes must be a sequence of int of 64 bits; got {classes!r}", "classes=(0, 1, 2)", TypeError)
    if mode == "nearest_two" and return_indices:
        _fail("mode='nearest_two' returns no indices; got return_indices=True", "return_indices=False")

    request = Request(
        spatial=spatial_dims,
        spacing=_spacing(spacing, spatial_dims),
        mode=mode,
        threshold=None if threshold is None else _rounded(threshold, input.dtype),
        classes=None if classes is None else tuple(classes),
        squared=bool(squared),
        indices=bool(return_indices),
        dtype=dtype,
    )
    plain = input.detach().resolve_neg()
    return plain if type(plain) is Tensor else plain.as_subclass(Tensor), request


def _rounded(threshold: float, dtype: torch.dtype) -> float:
    """The threshold as ``input > threshold`` sees it: in the dtype of the input."""
    return float(torch.tensor(threshold, dtype=torch.float64).to(dtype)) if abs(threshold) != inf else threshold


def instances(input: Tensor) -> Tensor:
    """An instance map as int64, 0 where there is none; a uint64 above 2^63 becomes a negative number of its own."""
    wide = input.to(torch.int64)
    return wide if input.dtype == torch.uint64 else wide.clamp(min=0)


def transform(input: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    """Distances and indices, or both distances of ``nearest_two``, of checked arguments."""
    with torch.no_grad():
        first, second = pick("distance_transform_edt", input).forward(input, request)
        return first, second


@overload
def distance_transform_edt(
    input: Tensor,
    *,
    spacing: Sequence[float] | float | None = ...,
    spatial_dims: int | None = ...,
    mode: Literal["inside", "two_sided", "signed", "labels"] = ...,
    squared: bool = ...,
    return_indices: Literal[False] = ...,
    threshold: float | None = ...,
    classes: Sequence[int] | None = ...,
    dtype: torch.dtype = ...,
) -> Tensor: ...
@overload
def distance_transform_edt(
    input: Tensor,
    *,
    spacing: Sequence[float] | float | None = ...,
    spatial_dims: int | None = ...,
    mode: DistanceMode = ...,
    squared: bool = ...,
    return_indices: bool = ...,
    threshold: float | None = ...,
    classes: Sequence[int] | None = ...,
    dtype: torch.dtype = ...,
) -> Any: ...
@traceable_function
def distance_transform_edt(
    input: Tensor,
    *,
    spacing: Sequence[float] | float | None = None,
    spatial_dims: int | None = None,
    mode: DistanceMode = "inside",
    squared: bool = False,
    return_indices: bool = False,
    threshold: float | None = None,
    classes: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact Euclidean distances in every sample of a batch, between the centres of pixels.

    The first axis is the batch: one image is ``mask[None]``, or ``mask`` with ``spatial_dims=2``.

    A sample without what is measured to (no background, one single label) is 0 everywhere: it has no distance (SciPy
    1.17 measures to a pixel just outside the image there).

    Args:
        input: ``(N, *spatial)`` with 1 to 3 spatial axes, bool or integer; nonzero is foreground. Floating point only
            with ``threshold``. Strides are free.
        spacing: size of a pixel along each spatial axis, in the order of ``input`` (for example mm). Default: 1.
        spatial_dims: number of spatial axes, the last ones, where it is not ``input.ndim - 1``.
        mode: what is measured.

            - ``"inside"``: from a foreground pixel to the nearest background pixel, 0 in the background.
            - ``"two_sided"``: from any pixel to the nearest one of the other kind.
            - ``"signed"``: the same, negative in the foreground.
            - ``"labels"``: from any pixel to the nearest one with another label.
            - ``"nearest_two"``: ``input`` holds instances (> 0; all else is background): from any pixel to the
              nearest and to the second nearest instance, 0 inside the nearest. Infinite where there is none.
        squared: return squared distances (with the sign of ``"signed"``).
        return_indices: return the nearest pixel as well; a pixel without a distance is its own.
        threshold: foreground of a floating-point ``input`` is ``input > threshold``; NaN is background.
        classes: class numbers; one field for each mask ``input == c``.
        dtype: float32, or float64.
    Returns:
        ``(N, *spatial)`` in the unit of ``spacing``, or ``(N, len(classes), *spatial)`` with ``classes``. With
        ``return_indices`` also an int32 tensor ``(len(spatial), *output.shape)``. ``"nearest_two"``: two tensors.
    Raises:
        TypeError: a dtype does not fit; floating-point ``input`` without ``threshold``.
        ValueError: no 1 to 3 spatial axes; ``spacing`` has the wrong length or a value <= 0; options that exclude
            each other.

    Carries no gradient. Source: Felzenszwalb and Huttenlocher 2012, doi:10.4086/toc.2012.v008a019.
    """
    x, request = check(
        input,
        spacing=spacing,
        spatial_dims=spatial_dims,
        mode=mode,
        squared=squared,
        return_indices=return_indices,
        threshold=threshold,
        classes=classes,
        dtype=dtype,
    )
    first, second = transform(x, request)
    return first if second is None else (first, second)
