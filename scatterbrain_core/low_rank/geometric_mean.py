"""The geometric mean of a query's sampled weights in the place of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scatterbrain_core._typing import Array
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.low_rank.low_rank import Features, LowRank
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse import SampledColumns, Support
from scatterbrain_core.sparse.choosing import rows_at


@dataclass(frozen=True, repr=False)
class GeometricMean(LowRank):
    r"""One weight a query, the geometric mean of its weights on the keys that `SampledColumns` sampled.

    With S the sampled keys of the head,
    :math:`L_{ij} = \prod_{s\in S} A_{is}^{1/|S|} = \exp(q_i\cdot\mathrm{mean}_{s\in S}\,k_s)`, of rank one:
    Skeinformer's adaptive row normalization. It takes its keys from the one `SampledColumns`
    that it must stand beside.

    Biased: it is below the mean weight of S, and S is no fair sample where keys are chosen by importance.

    References
    ----------
    Chen et al., *Sketching as a Tool for Understanding and Accelerating Self-attention for Long Sequences*,
    arXiv 2112.05359, section 4.2.
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

    @property
    def reason_not_causal(self) -> str | None:
        """The sampled keys are anywhere."""
        return "take the mean of keys sampled from all"

    def reason_not_beside(self, supports: tuple[Support, ...]) -> str | None:
        """Unless one part samples columns."""
        n_parts = sum(isinstance(part, SampledColumns) for part in supports)
        return None if n_parts == 1 else f"stand beside {n_parts} SampledColumns, as it takes the keys of one"

    def planned(self, rank: int, n_keys: int, dim: int) -> GeometricMean:
        """The same part."""
        del rank, n_keys, dim
        return self

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """The mean logit of each query, and rows of log weight zero for the keys."""
        del drawn
        xp = problem.xp
        index, is_sampled = SampledColumns.of_problem(problem)
        weight = xp.astype(is_sampled, problem.key.dtype)
        count = xp.sum(weight, axis=1)
        total = xp.sum(rows_at(xp, problem.key, index) * weight[..., None], axis=1)
        mean = total / xp.where(count > 0, count, 1.0)[:, None]
        query = xp.matmul(problem.query, mean[..., None])
        key = xp.zeros_like(problem.key[..., :1])
        if problem.key_mask is not None:
            key = self.kernel.hide(xp, key, problem.key_mask)
        return Features(query, key, self.kernel)
