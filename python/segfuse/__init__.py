"""Every loss function for semantic segmentation, in one pass over memory."""

from . import backends, functional, losses
from .backends import use_backend
from .explain import explain
from .losses import *
from .ops.pixel_stats import pixel_stats

__version__ = "0.1.0"
__all__ = ["backends", "explain", "functional", "losses", "pixel_stats", "use_backend", *losses.__all__]
