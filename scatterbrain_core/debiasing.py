"""The sampled residual: at a few keys, drawn uniformly, A - L is added off the support, times n/s.

Each of the n keys of a head is expected s/n times among the s sampled ones, so that the sums over all keys
are unbiased before the division, whatever L is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.far_field import PLAIN_TILE
from scatterbrain_core.normalization import Partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.rows import Pairs, Rows
from scatterbrain_core.sparse_correction import interval_partial, unblock_partial
from scatterbrain_core.tables import Intervals, Table
from scatterbrain_core.tiles import cut, integers, power_of_two


@dataclass(frozen=True)
class Sample:
    """The sampled keys that each query sees, off the support.

    Attributes
    ----------
    intervals : Intervals
        Of the sampled keys of all heads, those of each query's head that it may see.
    excluded : sequence of Table
        The support.
    """

    intervals: Intervals
    excluded: Sequence[Table]

    def partial(self, backend: Backend, rows: Rows, pairs: Pairs, sign: int = 1) -> Partial:
        """Sums of weights over the sampled keys of every query row, times sign · n/s."""
        xp, n_sampled = backend.xp, self.intervals.key_order.shape[0] // rows.n_heads
        queries = integers(xp, rows.query.shape[0], rows.query)
        blocks = cut(xp, queries, queries // rows.n_queries, PLAIN_TILE[0])
        tile_keys = power_of_two(n_sampled, 16, PLAIN_TILE[1])
        part = interval_partial(
            backend, blocks, self.intervals, pairs, rows.weighted_value, tile_keys, self.excluded
        )
        part = unblock_partial(backend, blocks, queries, part)
        return Partial(part.ref + math.log(rows.n_keys / n_sampled), sign * part.acc)

    def pairs_per_query(self, backend: Backend, rows: Rows) -> Array:
        """How many sampled keys each query row sees."""
        ones = rows.counting()
        return self.partial(backend, ones, ones.units()).acc[:, 0]


def sample(problem: Problem, columns: Array, tables: Sequence[Table]) -> Sample:
    """The sample of all heads.

    Parameters
    ----------
    columns : array of int, shape (s,)
        Ascending positions of the sampled keys, which may repeat.
    tables : sequence of Table
        The support.
    """
    xp, n_keys, n_sampled = problem.xp, problem.n_keys, columns.shape[0]
    head = integers(xp, problem.n_heads, columns)[:, None]
    rows = xp.reshape(head * n_keys + columns[None, :], (-1,))
    position = integers(xp, problem.n_queries, columns)
    count = xp.full_like(position, n_sampled)
    if problem.is_causal:
        count = xp.searchsorted(columns, position, side="right")
    if problem.key_mask is not None:
        seen = xp.take(problem.key_mask, columns, axis=1)
        # Hidden ones last in their head, where no query looks.
        place = xp.reshape(2 * head + xp.astype(~seen, head.dtype), (-1,))
        rows = xp.take(rows, xp.argsort(place, stable=True))
        n_seen = xp.cumulative_sum(xp.astype(seen, head.dtype), axis=1, include_initial=True)
        count = xp.take(n_seen, count, axis=1)
    lo = xp.broadcast_to(head * n_sampled, (problem.n_heads, problem.n_queries))
    lo, hi = (xp.reshape(x, (-1, 1)) for x in (lo, lo + count))
    return Sample(Intervals(rows, lo, hi), tables)


def sampled_times(problem: Problem, columns: Array) -> Array:
    """How often each position is among the sampled ones, shape (Lk,)."""
    keys = integers(problem.xp, problem.n_keys, columns)
    behind, before = (problem.xp.searchsorted(columns, keys, side=side) for side in ("right", "left"))
    return problem.xp.astype(behind - before, problem.query.dtype)
