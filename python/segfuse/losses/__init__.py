"""Every loss: a formula on what one pass over memory returns."""

from ._base import CompoundLoss, RegionLoss
from .combo import *
from .cross_entropy import *
from .dice import *
from .exponential_logarithmic import *
from .focal import *
from .jaccard import *
from .mcc import *
from .sensitivity_specificity import *
from .structural_similarity import *
from .t_loss import *
from .tversky import *
from .unified_focal import *

# Written out, so that type checkers see it. Tables keep this order.
__all__ = [
    "CompoundLoss",
    "RegionLoss",
    "BalancedCrossEntropyLoss",
    "CrossEntropyLoss",
    "TopKCrossEntropyLoss",
    "FocalLoss",
    "TLoss",
    "DiceLoss",
    "GeneralizedDiceLoss",
    "LogCoshDiceLoss",
    "SelfAdjustingDiceLoss",
    "JaccardLoss",
    "FocalTverskyLoss",
    "TverskyLoss",
    "SensitivitySpecificityLoss",
    "MCCLoss",
    "CMSSLLoss",
    "SSIMLoss",
    "ComboLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "ExponentialLogarithmicLoss",
    "UnifiedFocalLoss",
]
