r"""A uniform sample of the keys, with the weight of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from scatterbrain_core._typing import Array
from scatterbrain_core.low_rank.indicator import IndicatorKernel, indicator_rows
from scatterbrain_core.low_rank.low_rank import Features
from scatterbrain_core.low_rank.of_keys import OfKeys
from scatterbrain_core.problem import Problem
from scatterbrain_core.tiles import gather, integers, invert


@dataclass(frozen=True, repr=False)
class ColumnSample(OfKeys):
    r"""A few keys stand for all: :math:`L_{ij} = \tfrac ns e^{q_i\cdot k_j}` for s sampled j, else 0.

    The s = `n_columns` keys are drawn uniformly without replacement among the n visible ones of a head, for
    all queries, and by one draw for all heads. It is unbiased, :math:`E[L_{ij}] = e^{q_i\cdot k_j}`, of
    variance :math:`(\tfrac ns - 1)\,e^{2q_i\cdot k_j}`; a causal query sees the sampled keys up to its own,
    none of them perhaps.

    Parameters
    ----------
    n_columns : int, optional
        s, the rank, at most the number of keys. By default the budget of the call chooses it.

    References
    ----------
    Drineas, Kannan, Mahoney, *Fast Monte Carlo Algorithms for Matrices I*, SIAM J. Comput. 36 (2006), with
    uniform probabilities.
    """

    n_columns: int | None = None

    is_random: ClassVar[bool] = True
    size_name: ClassVar[str] = "n_columns"

    def draw(self, generator: Any, dim: int, n_keys: int) -> tuple[Any, ...]:
        """An order of the keys, on the host: the first that a head does not hide are its sample."""
        del dim
        return (generator.permutation(n_keys),)

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Logits with the sampled keys; keys by their place in the sample."""
        xp, (order,), shape = problem.xp, drawn, problem.key.shape[:2]
        is_visible = xp.ones_like(problem.key[..., 0], dtype=xp.bool)
        if problem.key_mask is not None:
            is_visible = xp.take(problem.key_mask, order, axis=1)
        # The order of each head, its hidden keys last.
        place = xp.argsort(xp.astype(~is_visible, order.dtype), stable=True)[:, : self.rank]
        head = integers(xp, shape[0], order)[:, None]
        sampled = gather(xp, order, place) + head * shape[1]
        sampled = gather(xp, xp.reshape(problem.key, (-1, problem.key.shape[-1])), sampled)
        nth = xp.cumulative_sum(xp.astype(is_visible, order.dtype), axis=1)
        label = xp.where(is_visible & (nth <= self.rank), nth - 1, -1)
        label = xp.take(label, invert(xp, order), axis=1)
        count = xp.astype(nth[:, -1:], problem.key.dtype)
        log_weight = xp.log(xp.maximum(count / self.rank, xp.ones_like(count)))
        key = indicator_rows(xp, label, xp.broadcast_to(log_weight, shape))
        query = xp.matmul(problem.query, xp.matrix_transpose(sampled))
        return Features(query, key, IndicatorKernel(self.rank))
