"""The sparse correction on tiles: sums over the pairs of a support, each pair once.

A pair is on the support when some table holds it, and is counted in the first that does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import (
    Partial,
    merge,
    merge_one_by_one,
    nothing_seen,
    softmax_partial,
)
from scatterbrain_core.rows import Pairs, Rows
from scatterbrain_core.tiles import Blocks, Table, cut, gather, integers, invert, unblock, zeros


def interval_partial(
    backend: Backend,
    blocks: Blocks,
    key_order: Array,
    lo: Array,
    hi: Array,
    pairs: Pairs,
    weighted_value: Array,
    tile_keys: int,
    excluded: Sequence[Table] = (),
) -> Partial:
    """Partial results of queries that each see one interval of the sorted keys.

    Parameters
    ----------
    blocks : Blocks
        Of the query rows; the intervals of a block should nearly coincide.
    key_order : array of int, shape (n_keys,)
        Key row at each slot.
    lo, hi : array of int, shape (n_queries,)
        Interval of each query row.
    excluded : sequence of Table
        Pairs on the support of these are left out.

    Returns
    -------
    Partial
        `ref` of shape (n_blocks, size).
    """
    xp = backend.xp
    block_lo, block_hi = gather(xp, lo, blocks.rows), gather(xp, hi, blocks.rows)
    block_hi = xp.where(blocks.filled, block_hi, block_lo)
    n_slots = key_order.shape[0]
    start = xp.min(xp.where(block_lo < block_hi, block_lo, n_slots), axis=1)
    width = xp.maximum(xp.max(xp.where(block_lo < block_hi, block_hi, 0), axis=1) - start, 0)
    by_width = xp.argsort(width, descending=True)
    parts = []
    for chunk in _chunks(blocks, pairs, weighted_value, tile_keys, backend.chunk_elements):
        chosen = by_width[chunk]
        tile = _Tile(
            gather(xp, blocks.rows, chosen), gather(xp, block_lo, chosen), gather(xp, block_hi, chosen)
        )
        origin = xp.take(start, chosen)
        steps = -(-int(xp.max(xp.take(width, chosen))) // tile_keys)
        parts.append(
            _stream(backend, tile, origin, steps, key_order, pairs, weighted_value, tile_keys, excluded)
        )
    back = invert(xp, by_width)
    return Partial(
        gather(xp, xp.concat([part.ref for part in parts]), back),
        gather(xp, xp.concat([part.acc for part in parts]), back),
    )


@dataclass(frozen=True)
class _Tile:
    rows: Array
    lo: Array
    hi: Array


def _chunks(blocks: Blocks, pairs: Pairs, weighted_value: Array, tile_keys: int, limit: int) -> list[slice]:
    widest = max(pairs.query.shape[1], tile_keys, weighted_value.shape[1])
    per_block = max(blocks.size, tile_keys) * widest
    n = max(1, limit // per_block)
    return [slice(i, min(i + n, blocks.count)) for i in range(0, blocks.count, n)]


def _stream(
    backend: Backend,
    tile: _Tile,
    origin: Array,
    steps: int,
    key_order: Array,
    pairs: Pairs,
    weighted_value: Array,
    tile_keys: int,
    excluded: Sequence[Table],
) -> Partial:
    """Merge a chunk of query blocks over their keys, `tile_keys` at a time."""
    xp = backend.xp
    query = gather(xp, pairs.query, tile.rows)

    def part(step: int) -> Partial:
        slots = (origin + step * tile_keys)[:, None] + integers(xp, tile_keys, origin)[None, :]
        key_rows = gather(xp, key_order, xp.clip(slots, 0, key_order.shape[0] - 1))
        visible = (slots[:, None, :] >= tile.lo[:, :, None]) & (slots[:, None, :] < tile.hi[:, :, None])
        for table in excluded:
            visible = visible & ~_on_support(xp, table, tile.rows, key_rows)
        logits, factor = pairs.weights(backend, query, gather(xp, pairs.key, key_rows), visible)
        return softmax_partial(backend, logits, gather(xp, weighted_value, key_rows), factor)

    return merge_one_by_one(backend, nothing_seen(backend, query[..., 0], weighted_value), part, steps)


def _on_support(xp: Namespace, table: Table, query_rows: Array, key_rows: Array) -> Array:
    slot = gather(xp, table.slot, key_rows)[:, None, :]
    lo, hi = gather(xp, table.lo, query_rows), gather(xp, table.hi, query_rows)
    return (slot >= lo[:, :, None]) & (slot < hi[:, :, None])


def near_field(backend: Backend, rows: Rows, tables: Sequence[Table]) -> Partial:
    """Exact partial result of every query row on its support."""
    return first_occurrences(backend, rows, tables, 0, rows.exact())


def first_occurrences(
    backend: Backend, rows: Rows, tables: Sequence[Table], skip: int, pairs: Pairs
) -> Partial:
    """Pairs of all tables but the first `skip`, less those that an earlier table holds."""
    parts = []
    for t in range(skip, len(tables)):
        table = tables[t]
        order = table.sorted.query_order
        blocks = cut(backend.xp, order, interval_group(backend.xp, table), rows.tile[0])
        part = interval_partial(
            backend,
            blocks,
            table.sorted.key_order,
            table.lo,
            table.hi,
            pairs,
            rows.weighted_value,
            rows.tile[1],
            tables[:t],
        )
        parts.append(unblock_partial(backend, blocks, order, part))
    return merge(backend, *parts)


def interval_group(xp: Namespace, table: Table) -> Array:
    """Ascending number of each sorted query's group: its bucket, or its piece of one."""
    if table.run is table.sorted.key_bucket:
        return table.sorted.query_bucket
    lo = xp.take(table.lo, table.sorted.query_order)
    bucket = table.sorted.query_bucket
    change = (lo[1:] != lo[:-1]) | (bucket[1:] != bucket[:-1])
    return xp.concat([xp.zeros_like(lo[:1]), xp.cumulative_sum(xp.astype(change, lo.dtype))])


def unblock_partial(backend: Backend, blocks: Blocks, order: Array, part: Partial) -> Partial:
    """A blocked partial result back in row order."""
    xp = backend.xp
    return Partial(unblock(xp, blocks, order, part.ref), unblock(xp, blocks, order, part.acc))


def pairs_per_query(backend: Backend, rows: Rows, tables: Sequence[Table]) -> Array:
    """How many keys are on the support of each query row: the near field of weights and values one."""
    ones = replace(rows, weighted_value=rows.weighted_value[:, -1:])
    pairs = Pairs(rows.query[:, :1], rows.key[:, :1], _unit_weights)
    return first_occurrences(backend, ones, tables, 0, pairs).acc[:, 0]


def _unit_weights(backend: Backend, query: Array, _: Array, visible: Array) -> tuple[Array, None]:
    xp = backend.xp
    return xp.where(visible, zeros(xp, visible.shape, query), -math.inf), None
