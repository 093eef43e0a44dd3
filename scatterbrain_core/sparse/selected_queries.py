"""Selected queries: those that sampled keys tell apart see every key."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array
from scatterbrain_core.norms import rounding
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.choosing import (
    highest,
    listed,
    rows_at,
    visible_keys,
    visible_queries,
)
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.sparse.whole import full_rows
from scatterbrain_core.tables import Table


@dataclass(frozen=True, repr=False)
class SelectedQueries(Support):
    r"""Exact pairs are those of a few queries with all keys: of the queries that are farthest from uniform.

    How far one is, its sparsity measure :math:`\max_j q\cdot k_j - \mathrm{mean}_j\, q\cdot k_j`, is taken
    over s keys sampled without replacement, the same for all queries of a head (Informer's Algorithm 1). The
    others see no key exactly: `UniformWeights` beside it gives them the mean of the values. It cannot be
    causal: all queries are compared, by keys from everywhere.

    Parameters
    ----------
    n_selected : int, optional
        u, the queries selected where there are as many as keys; of other Lq in proportion, u · Lq / Lk
        rounded down, at least one. It costs u exact keys a query on average. By default the budget of the
        call chooses it; the paper takes u = c ln Lq with c = 5.
    n_sampled : int, optional
        s, by default ⌈5 ln Lk⌉, the paper's. Each costs a product a query, which is in no budget.

    References
    ----------
    Zhou et al., *Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting*, arXiv
    2012.07436, Algorithm 1 (ProbSparse).
    """

    n_selected: int | None = None
    n_sampled: int | None = None

    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("n_selected", "n_sampled"):
            set_count(self, name, at_least=1)

    @property
    def reason_not_causal(self) -> str | None:
        """It compares all queries."""
        return "compare all queries by keys sampled from all"

    @property
    def is_open(self) -> bool:
        """Whether the number of queries is left to the budget."""
        return self.n_selected is None

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """What the queries see, shared among all queries."""
        if self.n_selected is None:
            return 0
        return -(-self._count(n_queries, n_keys) * n_keys // max(n_queries, 1))

    def planned(self, pairs: int, n_keys: int, dim: int) -> SelectedQueries:
        """The same part, which selects as many queries as `pairs` pays for, if it states none."""
        del dim
        n_sampled = self.n_sampled or max(1, math.ceil(5 * math.log(max(n_keys, 1))))
        return replace(self, n_selected=self.n_selected or pairs, n_sampled=n_sampled)

    def draw(self, generator: Any, dim: int, n_queries: int, n_keys: int) -> tuple[Any, ...]:
        """Places of the keys in an order drawn, shape (Lk,): the first s of those visible are sampled."""
        del dim, n_queries
        return (generator.permutation(n_keys),)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """One table, of whole rows."""
        score, slack = self._measure(problem, draws[0])
        count = self._count(problem.n_queries, problem.n_keys)
        return [full_rows(problem, highest(problem.xp, score, visible_queries(problem), count, slack))]

    def _count(self, n_queries: int, n_keys: int) -> int:
        assert self.n_selected is not None
        return min(max(1, self.n_selected * n_queries // max(n_keys, 1)), n_queries)

    def _measure(self, problem: Problem, place: Array) -> tuple[Array, Array]:
        """Sparsity measure of every query, and what rounding may add to it: shape (H, Lq)."""
        assert self.n_sampled is not None
        xp, constant = problem.xp, problem.backend.stop_gradient
        query, key = constant(problem.query), constant(problem.key)
        count = min(self.n_sampled, problem.n_keys)
        earliest = xp.astype(-place, query.dtype)[None, :]
        sampled = highest(xp, earliest, visible_keys(problem), count)
        index, is_sampled = listed(xp, sampled, count)
        key = rows_at(xp, key, index)
        logits = xp.matmul(query, xp.matrix_transpose(key))
        is_sampled = is_sampled[:, None, :]
        top = xp.max(xp.where(is_sampled, logits, -math.inf), axis=-1)
        # The mean of what is below the top: of equal logits it is zero, whatever they are.
        below = xp.sum(xp.where(is_sampled, top[..., None] - logits, 0.0), axis=-1)
        n_sampled = xp.sum(xp.astype(is_sampled, logits.dtype), axis=-1)
        measure = below / xp.where(n_sampled > 0, n_sampled, 1.0)
        return measure, xp.max(rounding(xp, query, key), axis=-1)
