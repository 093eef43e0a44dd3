"""The keys of largest weight of each query: what every other support is measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array
from scatterbrain_core.norms import rounding
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.choosing import highest
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import ListedPairs, Table, by_position
from scatterbrain_core.tiles import integers
from scatterbrain_core.visibility import map_row_blocks, visible_pairs


@dataclass(frozen=True, repr=False)
class TopKeys(Support):
    """Exact pairs are those of each query with the keys of largest weight that it may see.

    An oracle: it computes every weight to find them, O(Lq·Lk) time and memory. Of equal weights the first
    keys count.

    Parameters
    ----------
    n_keys : int, optional
        k. By default the budget of the call chooses it.

    References
    ----------
    Gupta et al., *Memory-efficient Transformers via Top-k Attention*, arXiv 2106.06899.
    """

    n_keys: int | None = None

    def __post_init__(self) -> None:
        set_count(self, "n_keys", at_least=1)

    @property
    def is_open(self) -> bool:
        """Whether the number of keys is left to the budget."""
        return self.n_keys is None

    @property
    def is_matrix(self) -> bool:
        """An oracle: it ranks all pairs."""
        return True

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The keys."""
        del n_queries
        return min(self.n_keys or 0, n_keys)

    def planned(self, pairs: int, n_keys: int, dim: int) -> TopKeys:
        """The same part with `pairs` keys, if it states none."""
        del n_keys, dim
        return self if self.n_keys is not None else replace(self, n_keys=pairs)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """One table, of pairs one by one."""
        del draws
        xp, n_keys = problem.xp, problem.n_keys
        (held,) = map_row_blocks(problem, lambda heads, rows: (self._held(problem, heads, rows),))
        keys = by_position(xp, problem.n_heads, n_keys, problem.key_mask, problem.query)
        position = integers(xp, problem.n_queries, problem.query)
        end = xp.minimum(position + 1, n_keys) if problem.is_causal else xp.full_like(position, n_keys)
        lo, hi = (keys.slots(xp, edge)[:, None] for edge in (xp.zeros_like(position), end))
        return [ListedPairs(keys.key_order, lo, hi, keys.slot, (64, 64), xp.reshape(held, (-1, n_keys)))]

    def _held(self, problem: Problem, heads: slice, rows: slice) -> Array:
        """Which keys each query of a block sees: bool, shape (h, r, Lk)."""
        assert self.n_keys is not None
        xp, constant = problem.xp, problem.backend.stop_gradient
        query, key = constant(problem.query[heads, rows, :]), constant(problem.key[heads, ...])
        visible = visible_pairs(problem, heads, rows)
        logits = xp.matmul(query, xp.matrix_transpose(key))
        return highest(xp, logits, visible, self.n_keys, rounding(xp, query, key))
