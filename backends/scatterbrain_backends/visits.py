"""What loops and kernels over tiles read of visits: plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scatterbrain_core.rows import unit_weights
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.tables import Intervals, Table


def is_of_intervals(visits: Visits) -> bool:
    """Whether all pairs within intervals count, less those within others, and no array is empty."""
    listed = (visits.intervals, *visits.excluded)
    return (
        all(type(table).counted is Intervals.counted for table in listed)
        and all(type(table).holds is Table.holds for table in visits.excluded)
        and 0 not in (*visits.pairs.key.shape, *visits.intervals.lo.shape, *visits.blocks.rows.shape)
    )


def inputs(xp: Any, visits: Visits) -> list[Any]:
    """Input arrays, in the order of the kernel's parameters; those of indices as 64-bit integers."""
    blocks, intervals = visits.blocks, visits.intervals
    integers = (
        intervals.key_order,
        *(xp.reshape(x, (-1,)) for x in (intervals.lo, intervals.hi)),
        blocks.rows,
    )
    key_order, lo, hi, rows = (xp.astype(x, xp.int64, copy=False) for x in integers)
    query, key = visits.pairs.query, visits.pairs.key
    if visits.pairs.weights is unit_weights:
        query, key = xp.zeros_like(query), xp.zeros_like(key)  # all logits are zero
    arrays = (query, key, visits.weighted_value, key_order, lo, hi)
    return [*arrays, rows, blocks.filled, *_excluded(xp, visits.excluded, lo)]


def _excluded(xp: Any, tables: Sequence[Table], like: Any) -> list[Any]:
    """Slots (T, n_keys) and intervals (n_query_rows, T, R) of tables; any array stands for none."""
    if not tables:
        return [like, like, like]
    most = max(table.n_visits for table in tables)

    def intervals(x: Any) -> Any:
        nothing = xp.zeros_like(x[:, :1])
        return xp.concat([x] + [nothing] * (most - x.shape[1]), axis=1)

    arrays = (
        xp.stack([table.slot for table in tables]),
        *(xp.stack([intervals(x) for x in xs], axis=1) for xs in _bounds(tables)),
    )
    return [xp.astype(x, xp.int64, copy=False) for x in arrays]


def _bounds(tables: Sequence[Table]) -> tuple[list[Any], list[Any]]:
    return [table.lo for table in tables], [table.hi for table in tables]
