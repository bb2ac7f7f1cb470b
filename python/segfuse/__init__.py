"""Every loss function for semantic segmentation, in one pass over memory."""

import typing as _typing

__version__ = "0.1.0"

try:
    import torch as _torch  # noqa: F401
except Exception as error:  # `segfuse doctor` still runs, and says what is wrong
    _message = f"segfuse needs torch, which does not import: {type(error).__name__}: {error}"

    if not _typing.TYPE_CHECKING:

        def __getattr__(name: str) -> object:
            raise AttributeError(_message)
else:
    from . import backends, functional, losses, transforms
    from .backends import use_backend
    from .explain import explain
    from .losses import *
    from .ops.distance_transform_edt import distance_transform_edt
    from .ops.local_moments import local_moments
    from .ops.lovasz_extension import lovasz_extension
    from .ops.pixel_stats import pixel_stats
    from .patch import patch, patched, unpatch

    __all__ = [
        "backends",
        "distance_transform_edt",
        "explain",
        "functional",
        "local_moments",
        "losses",
        "lovasz_extension",
        "patch",
        "patched",
        "pixel_stats",
        "transforms",
        "unpatch",
        "use_backend",
        *losses.__all__,
    ]
