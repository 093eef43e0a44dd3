r"""Segments of consecutive keys as one key each: Linformer's mean pooling (arXiv 2006.04768)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scatterbrain_core._typing import Array
from scatterbrain_core.low_rank.indicator import IndicatorKernel, indicator_rows, label_means
from scatterbrain_core.low_rank.low_rank import Features
from scatterbrain_core.low_rank.of_keys import OfKeys
from scatterbrain_core.problem import Problem
from scatterbrain_core.segments import segments


@dataclass(frozen=True, repr=False)
class SegmentMeans(OfKeys):
    r"""Consecutive keys weigh as their mean does: :math:`L_{ij} = e^{q_i\cdot\bar k_c}` for j in segment c.

    The visible keys of a head are cut, by position, into `n_segments` segments whose sizes differ by at most
    one; fewer keys than that make segments of one key each, which is exact. Alone it is attention over the
    mean keys and mean values of the segments, each counted as often as it has keys: with equal segments
    Linformer, with mean pooling as its projection. Linformer's own projections are learned: they cannot be
    had without training.

    Biased: a segment's weight is at most its exact one, :math:`n_c e^{q\cdot\bar k_c} \le \sum_{j\in c}
    e^{q\cdot k_j}` (Jensen).

    Parameters
    ----------
    n_segments : int, optional
        m, the rank, at most the number of keys. By default the budget of the call chooses it.

    References
    ----------
    Wang et al., *Linformer: Self-Attention with Linear Complexity*, arXiv 2006.04768, section 4.
    """

    n_segments: int | None = None

    size_name: ClassVar[str] = "n_segments"

    @property
    def reason_not_causal(self) -> str:
        """Means."""
        return "take means of keys"

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Logits with the mean keys; keys by segment."""
        del drawn
        xp = problem.xp
        label = segments(xp, problem.key, problem.key_mask, self.rank).label
        mean, _ = label_means(problem.backend, label, problem.key, self.rank)
        query = xp.matmul(problem.query, xp.matrix_transpose(mean))
        key = indicator_rows(xp, label, xp.zeros_like(problem.key[..., 0]))
        return Features(query, key, IndicatorKernel(self.rank))
