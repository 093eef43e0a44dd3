"""The sparse correction on tiles: sums over the pairs of a support, each pair once.

A pair is on the support when some table holds it, and is counted in the first that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import (
    Partial,
    merge,
    merge_along,
    merge_one_by_one,
    nothing_seen,
    softmax_partial,
)
from scatterbrain_core.rows import Pairs, Rows
from scatterbrain_core.tables import Intervals, Table
from scatterbrain_core.tiles import Blocks, cut, gather, integers, invert, unblock


@dataclass(frozen=True)
class Visits:
    """Visits of query rows to intervals of the ordered keys, in blocks: what a backend's kernel runs on.

    Attributes
    ----------
    blocks : Blocks
        Of the visits, query_row * R + r.
    intervals : Intervals
    pairs : Pairs
    weighted_value : array, shape (n_keys, Dv + 1)
    tile_keys : int
        Slots of a tile that suit the intervals.
    excluded : tuple of Table
        Pairs on the support of these are left out.
    """

    blocks: Blocks
    intervals: Intervals
    pairs: Pairs
    weighted_value: Array
    tile_keys: int
    excluded: tuple[Table, ...]


def interval_partial(
    backend: Backend,
    blocks: Blocks,
    intervals: Intervals,
    pairs: Pairs,
    weighted_value: Array,
    tile_keys: int,
    excluded: Sequence[Table] = (),
) -> Partial:
    """Partial results of visits: of each query row to each of its intervals of the ordered keys.

    Parameters
    ----------
    blocks : Blocks
        Of the visits, query_row * R + r; the intervals of a block should nearly coincide.
    excluded : sequence of Table
        Pairs on the support of these are left out.

    Returns
    -------
    Partial
        `ref` of shape (n_blocks, size).
    """
    visits = Visits(blocks, intervals, pairs, weighted_value, tile_keys, tuple(excluded))

    def generic() -> tuple[Array, Array]:
        part = _by_chunks(backend, visits)
        return part.ref, part.acc

    ref, acc = backend.tile_partial(visits, generic)
    return Partial(ref, acc)


def _by_chunks(backend: Backend, visits: Visits) -> Partial:
    """The same in array-API code, a chunk of blocks at a time."""
    xp, blocks, intervals = backend.xp, visits.blocks, visits.intervals
    pairs, weighted_value, tile_keys = visits.pairs, visits.weighted_value, visits.tile_keys
    lo, hi = (gather(xp, xp.reshape(x, (-1,)), blocks.rows) for x in (intervals.lo, intervals.hi))
    hi = xp.where(blocks.filled, hi, lo)
    n_slots = intervals.key_order.shape[0]
    start = xp.min(xp.where(lo < hi, lo, n_slots), axis=1)
    width = xp.maximum(xp.max(xp.where(lo < hi, hi, 0), axis=1) - start, 0)
    by_width = xp.argsort(width, descending=True)
    query_rows = blocks.rows if intervals.n_visits == 1 else blocks.rows // intervals.n_visits
    parts = []
    for chunk in _chunks(blocks, pairs, weighted_value, tile_keys, backend.chunk_of(pairs.query)):
        chosen = by_width[chunk]
        of_chunk = [gather(xp, x, chosen) for x in (query_rows, lo, hi)]
        tile = _Tile(of_chunk[0], of_chunk[1], of_chunk[2], xp.take(start, chosen))
        steps = -(-int(xp.max(xp.take(width, chosen))) // tile_keys)
        parts.append(_stream(backend, tile, steps, visits))
    back = invert(xp, by_width)
    return Partial(
        gather(xp, xp.concat([part.ref for part in parts]), back),
        gather(xp, xp.concat([part.acc for part in parts]), back),
    )


@dataclass(frozen=True)
class _Tile:
    """Query rows of some blocks and their intervals, (blocks, size), and the first slot of each block."""

    rows: Array
    lo: Array
    hi: Array
    origin: Array


def _chunks(blocks: Blocks, pairs: Pairs, weighted_value: Array, tile_keys: int, limit: int) -> list[slice]:
    widest = max(pairs.query.shape[1], tile_keys, weighted_value.shape[1])
    per_block = max(blocks.size, tile_keys) * widest
    n = max(1, limit // per_block)
    return [slice(i, min(i + n, blocks.count)) for i in range(0, blocks.count, n)]


def _stream(
    backend: Backend,
    tile: _Tile,
    steps: int,
    visits: Visits,
) -> Partial:
    """Merge a chunk of query blocks over their keys, `tile_keys` at a time."""
    xp, intervals, pairs = backend.xp, visits.intervals, visits.pairs
    weighted_value, tile_keys = visits.weighted_value, visits.tile_keys
    if steps == 0:
        return nothing_seen(backend, gather(xp, pairs.query[:, 0], tile.rows), weighted_value)
    query = gather(xp, pairs.query, tile.rows)

    def part(step: int) -> Partial:
        slots = (tile.origin + step * tile_keys)[:, None] + integers(xp, tile_keys, tile.origin)[None, :]
        key_rows = gather(xp, intervals.key_order, xp.clip(slots, 0, intervals.key_order.shape[0] - 1))
        visible = (slots[:, None, :] >= tile.lo[:, :, None]) & (slots[:, None, :] < tile.hi[:, :, None])
        visible = intervals.counted(xp, tile.rows, key_rows, visible)
        for table in visits.excluded:
            visible = visible & ~table.holds(xp, tile.rows, key_rows)
        logits, factor = pairs.weights(backend, query, gather(xp, pairs.key, key_rows), visible)
        return softmax_partial(backend, logits, gather(xp, weighted_value, key_rows), factor)

    return merge_one_by_one(backend, nothing_seen(backend, query[..., 0], weighted_value), part, steps)


def near_field(backend: Backend, rows: Rows, tables: Sequence[Table]) -> Partial:
    """Exact partial result of every query row on its support."""
    return first_occurrences(backend, rows, tables, 0, rows.exact())


def first_occurrences(
    backend: Backend, rows: Rows, tables: Sequence[Table], skip: int, pairs: Pairs
) -> Partial:
    """Pairs of all tables but the first `skip`, less those that an earlier table holds."""
    parts = []
    for t in range(skip, len(tables)):
        order, group = tables[t].visits(backend.xp)
        tile_queries, tile_keys = tables[t].tile
        blocks = cut(backend.xp, order, group, tile_queries)
        part = interval_partial(
            backend,
            blocks,
            tables[t],
            pairs,
            rows.weighted_value,
            tile_keys,
            tables[:t],
        )
        parts.append(_by_query(backend, tables[t], unblock_partial(backend, blocks, order, part)))
    return merge(backend, *parts)


def _by_query(backend: Backend, table: Table, visits: Partial) -> Partial:
    """Partial results of the visits, shape (n_query_rows * R,), merged to those of the query rows."""
    if table.n_visits == 1:
        return visits
    xp, shape = backend.xp, (-1, table.n_visits)
    ref, acc = xp.reshape(visits.ref, shape), xp.reshape(visits.acc, (*shape, visits.acc.shape[-1]))
    return merge_along(backend, Partial(ref, acc))


def unblock_partial(backend: Backend, blocks: Blocks, order: Array, part: Partial) -> Partial:
    """A blocked partial result back in row order."""
    xp = backend.xp
    return Partial(unblock(xp, blocks, order, part.ref), unblock(xp, blocks, order, part.acc))


def pairs_per_query(backend: Backend, rows: Rows, tables: Sequence[Table]) -> Array:
    """How many keys are on the support of each query row."""
    ones = rows.counting()
    return first_occurrences(backend, ones, tables, 0, ones.units()).acc[:, 0]
