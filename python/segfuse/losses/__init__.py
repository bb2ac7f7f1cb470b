"""Every loss: a formula on what one pass over memory returns."""

from . import (
    combo,
    cross_entropy,
    dice,
    exponential_logarithmic,
    focal,
    jaccard,
    mcc,
    sensitivity_specificity,
    t_loss,
    tversky,
    unified_focal,
)
from ._base import CompoundLoss, RegionLoss
from .combo import *
from .cross_entropy import *
from .dice import *
from .exponential_logarithmic import *
from .focal import *
from .jaccard import *
from .mcc import *
from .sensitivity_specificity import *
from .t_loss import *
from .tversky import *
from .unified_focal import *

_NOUNS = (
    cross_entropy,
    focal,
    t_loss,
    dice,
    jaccard,
    tversky,
    sensitivity_specificity,
    mcc,
    combo,
    exponential_logarithmic,
    unified_focal,
)
__all__ = ["CompoundLoss", "RegionLoss", *(name for noun in _NOUNS for name in noun.__all__)]
