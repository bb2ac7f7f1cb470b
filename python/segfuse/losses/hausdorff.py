"""Surrogates of the Hausdorff distance between prediction and target."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops import erosion
from ..ops._hard_pair import HardPair
from ._boundary import HardLoss, HardOptions

__all__ = ["HausdorffERLoss"]


class HausdorffERLoss(HardLoss):
    """How deep the regions of error are: the squared error, eroded again and again.

    The mean over pixels of ``sum_k k^alpha b_k`` with ``b_0 = (p - y)^2`` and ``b_k`` its k-th erosion: an average with
    the face neighbours, less 1/2, not below 0. Pixels far from the region's rim survive longest and count most.

    Args:
        alpha: exponent of the number of the erosion.
        erosions: how many; deeper errors than that many pixels are not told apart.
        norm: what follows an erosion: ``"minmax"`` stretches each (sample, class) to [0, 1], ``"double"`` is 2 b,
            ``"none"`` leaves nothing after the second erosion.

    Source: Karimi and Salcudean 2019 (arXiv 1904.10030), its section on morphological erosion.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        erosions: int = 10,
        norm: Literal["minmax", "double", "none"] = "minmax",
        **common: Unpack[HardOptions],
    ) -> None:
        super().__init__(**common)
        self.alpha, self.erosions, self.norm = alpha, erosions, norm
        erosion.check(erosions, alpha, norm)

    def sums(self, pair: HardPair) -> Tensor:
        return erosion.erosion(pair, steps=self.erosions, alpha=self.alpha, norm=self.norm)
