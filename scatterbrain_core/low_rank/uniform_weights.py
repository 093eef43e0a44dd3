"""Uniform weights: every key that is not exact counts alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scatterbrain_core._typing import Array
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.low_rank.low_rank import Features, LowRank
from scatterbrain_core.problem import Problem


@dataclass(frozen=True, repr=False)
class UniformWeights(LowRank):
    """Weights of one for every pair, L = 1: of rank one, they give a query the mean of the values it may see.

    Biased: nothing of a query or a key is in it. In a causal call the mean is that of the past.

    References
    ----------
    Zhou et al., *Informer*, arXiv 2012.07436, Algorithm 1: the output of queries that are not selected.
    """

    kernel: ClassVar[PositiveKernel] = PositiveKernel()

    @property
    def rank(self) -> int:
        """One."""
        return 1

    @property
    def is_open(self) -> bool:
        """Nothing is left to the budget."""
        return False

    def planned(self, rank: int, n_keys: int, dim: int) -> UniformWeights:
        """The same part."""
        del rank, n_keys, dim
        return self

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Rows of log weight zero."""
        del drawn
        xp = problem.xp
        query, key = (xp.zeros_like(x[..., :1]) for x in (problem.query, problem.key))
        if problem.key_mask is not None:
            key = self.kernel.hide(xp, key, problem.key_mask)
        return Features(query, key, self.kernel)
