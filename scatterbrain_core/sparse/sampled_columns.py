"""Sampled columns: a few keys, sampled for the whole head, that every query sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scatterbrain_core._checks import set_count, type_name
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.normalization import finite
from scatterbrain_core.norms import norms
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.choosing import highest, listed, rows_at, visible_keys, visible_queries
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.sparse.whole import common_keys, full_rows
from scatterbrain_core.tables import Table

RULES = ("uniform", "weights", "values")
_SHARED = "sampled columns"


@dataclass(frozen=True, repr=False)
class SampledColumns(Support):
    r"""Exact pairs are those of s sampled keys with all queries: column sampling, as Skeinformer does it.

    The keys are sampled without replacement, from all visible keys of a head. By importance, as many pilot
    queries as keys are sampled uniformly first, and key j has probability proportional to
    :math:`\|v_j\| \sqrt{\sum_{i\in\mathrm{pilots}} P_{ij}^2}` with P the softmax weights. What was computed
    for the pilots is used again: they see every key.

    Parameters
    ----------
    n_columns : int, optional
        s. By default the budget of the call chooses it; half of it goes to the pilots, where there are any.
        Of Lq queries s · Lq / Lk are pilots, rounded down, at least one and at most s.
    by : str
        What the probability of a key is taken from. "values": the formula above. "weights": the same without
        :math:`\|v_j\|`. "uniform": nothing; there are no pilots, and it may be causal.

    Notes
    -----
    `attention_matrix` knows no values: it counts their norms as equal.

    References
    ----------
    Chen et al., *Sketching as a Tool for Understanding and Accelerating Self-attention for Long Sequences*,
    arXiv 2112.05359, Algorithm 1 (Skeinformer). There pilots are sampled with replacement.
    """

    n_columns: int | None = None
    by: str = "values"

    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_count(self, "n_columns", at_least=1)
        if not isinstance(self.by, str):
            raise TypeError(f"by must be one of {RULES}, got {type_name(self.by)}")
        if self.by not in RULES:
            raise ValueError(f"by must be one of {RULES}, got {self.by!r}")

    @property
    def has_pilots(self) -> bool:
        """Whether keys are sampled by importance."""
        return self.by != "uniform"

    @property
    def reason_not_causal(self) -> str | None:
        """Pilots look at every key."""
        return "sample keys by their weights for queries from anywhere" if self.has_pilots else None

    @property
    def is_open(self) -> bool:
        """Whether the number of keys is left to the budget."""
        return self.n_columns is None

    @property
    def least_pairs(self) -> int:
        """A key, and a pilot."""
        return 2 if self.has_pilots else 1

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The keys, and what the pilots see beside them shared among all queries."""
        if self.n_columns is None:
            return 0
        n_columns = min(self.n_columns, n_keys)
        n_pilots = self._n_pilots(n_queries, n_keys)
        return n_columns + -(-n_pilots * (n_keys - n_columns) // max(n_queries, 1))

    def planned(self, pairs: int, n_keys: int, dim: int) -> SampledColumns:
        """The same part with as many keys as `pairs` pays for, if it states none."""
        del n_keys, dim
        share = pairs // 2 if self.has_pilots else pairs
        return self if self.n_columns is not None else replace(self, n_columns=max(1, share))

    def draw(self, generator: Any, dim: int, n_queries: int, n_keys: int) -> tuple[Any, ...]:
        """Gumbel noise for the keys, shape (Lk,), and places of the queries in an order drawn, (Lq,)."""
        del dim
        return generator.gumbel(size=n_keys), generator.permutation(n_queries)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """A table of the keys, and one of the pilots."""
        assert self.n_columns is not None
        xp, (noise, place) = problem.xp, draws
        count = min(self.n_columns, problem.n_keys)
        score, pilots = noise[None, :], None
        if self.has_pilots:
            earliest = xp.astype(-place, noise.dtype)[None, :]
            n_pilots = self._n_pilots(problem.n_queries, problem.n_keys)
            pilots = highest(xp, earliest, visible_queries(problem), n_pilots)
            score = self._log_importance(problem, *listed(xp, pilots, n_pilots)) + score
        # The highest of log p + Gumbel noise are a sample without replacement by p (arXiv 1903.06059).
        sampled = highest(xp, score, visible_keys(problem), count)
        problem.once(_SHARED, lambda: listed(xp, sampled, count))
        columns = common_keys(problem, sampled)
        return [columns] if pilots is None else [columns, full_rows(problem, pilots)]

    @staticmethod
    def of_problem(problem: Problem) -> tuple[Array, Array]:
        """Positions of the keys that the first such part sampled, (H, s), and which places are filled."""

        def none() -> tuple[Array, Array]:
            raise RuntimeError("no table of sampled columns was made")

        return problem.once(_SHARED, none)

    def _n_pilots(self, n_queries: int, n_keys: int) -> int:
        """As many as columns where queries are as many as keys; fewer where fewer are, at the same cost."""
        if not self.has_pilots:
            return 0
        n_columns = min(self.n_columns or 1, n_keys)
        return min(max(1, min(n_columns, n_columns * n_queries // max(n_keys, 1))), n_queries)

    def _log_importance(self, problem: Problem, index: Array, is_pilot: Array) -> Array:
        """Log of the probability of each key but for a constant, (H, Lk), from pilots at positions (H, p)."""
        xp, constant = problem.xp, problem.backend.stop_gradient
        query = rows_at(xp, constant(problem.query), index)
        step = max(1, problem.backend.chunk_of(query) // (problem.n_heads * problem.n_keys))
        squares = None
        for first in range(0, index.shape[1], step):
            pilots = slice(first, min(first + step, index.shape[1]))
            part = self._log_squares(problem, query[:, pilots, :], is_pilot[:, pilots])
            squares = part if squares is None else xp.logaddexp(squares, part)
        assert squares is not None
        return _floored(xp, squares / 2 + self._log_norms(problem))

    def _log_squares(self, problem: Problem, query: Array, is_pilot: Array) -> Array:
        """Log of the sum over pilots, rows (H, p, D), of their squared softmax weights: shape (H, Lk)."""
        xp = problem.xp
        key = problem.backend.stop_gradient(problem.key)
        logits = xp.matmul(query, xp.matrix_transpose(key))
        logits = xp.where(visible_keys(problem)[:, None, :], logits, -math.inf)
        logits = logits - finite(problem.backend, _log_sum(xp, logits, axis=2))
        return _log_sum(xp, xp.where(is_pilot[..., None], 2 * logits, -math.inf), axis=1)[:, 0, :]

    def _log_norms(self, problem: Problem) -> Array:
        """Log norms of the values, (H, Lk); zeros where values do not count or have no columns."""
        xp, value = problem.xp, problem.backend.stop_gradient(problem.value)
        if self.by != "values" or value.shape[-1] == 0:
            return xp.zeros_like(problem.backend.stop_gradient(problem.key)[..., 0])
        norm = norms(xp, value)
        return xp.where(norm > 0, xp.log(xp.where(norm > 0, norm, 1.0)), -math.inf)


def _log_sum(xp: Namespace, logits: Array, axis: int) -> Array:
    """Log of the sum of exponentials along an axis, which is kept; -inf where all are."""
    top = xp.max(logits, axis=axis, keepdims=True)
    top = xp.where(top == -math.inf, 0.0, top)
    total = xp.sum(xp.exp(logits - top), axis=axis, keepdims=True)
    return xp.where(total > 0, xp.log(xp.where(total > 0, total, 1.0)), -math.inf) + top


def _floored(xp: Namespace, logs: Array) -> Array:
    """Logs with -inf brought up to a finite one below all: chosen last, but before a hidden key."""
    return xp.where(logs == -math.inf, -1e30, logs)
