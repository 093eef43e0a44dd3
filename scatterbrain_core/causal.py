"""The causal far field: low-rank sums over the past, off the support, without any subtraction.

The buckets of a table are the leaves of a binary tree. What is off a query's bucket is the disjoint union
of the sibling subtrees along its path, one a level; in each, the keys up to the query's position are a
prefix in order of time, summed as running states of whole blocks and the pairs of the last one. No sum
depends on what comes later, not even in its rounding.
"""

from __future__ import annotations

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.far_field import PLAIN_TILE, apply_states, feature_states, state_at
from scatterbrain_core.normalization import Partial, merge, nothing_seen, running_merge
from scatterbrain_core.rows import Rows
from scatterbrain_core.sparse_correction import interval_partial, unblock_partial
from scatterbrain_core.tables import HashTable, Intervals
from scatterbrain_core.tiles import Joint, cut, integers, jointly_sorted, longest_run, positions, unblock


def prefix_partial(backend: Backend, rows: Rows, joint: Joint, hi: Array, tile: tuple[int, int]) -> Partial:
    """Low-rank partial result of queries that each see a prefix of a bucket's keys in order of time.

    Parameters
    ----------
    joint : Joint
        Each query in the bucket that it looks into.
    hi : array of int, shape (n_queries,)
        Slot behind the last key each query row sees; it ascends along the queries of a bucket.
    tile : tuple of int
        Queries and keys in a block.
    """
    xp = backend.xp
    tile_queries, tile_keys = tile
    keys = cut(xp, joint.key_order, joint.key_bucket, tile_keys)
    segment = xp.take(joint.key_bucket, keys.first)
    states = running_merge(backend, feature_states(backend, rows, keys), segment, longest_run(xp, segment))

    order = joint.query_order
    blocks = cut(xp, order, joint.query_bucket, tile_queries)
    first = blocks.rows[:, 0]
    start = xp.searchsorted(joint.key_bucket, xp.take(joint.query_bucket, blocks.first), side="left")
    n_full = (xp.take(hi, first) - start) // tile_keys  # blocks that the first query sees whole, so all do
    edge = start + n_full * tile_keys
    past = state_at(backend, states, keys, edge - 1, n_full > 0)
    whole = apply_states(backend, rows, blocks, past)

    lo = unblock(xp, blocks, order, xp.broadcast_to(edge[:, None], blocks.rows.shape))
    rest = Intervals(joint.key_order, lo[:, None], hi[:, None])
    last = interval_partial(backend, blocks, rest, rows.low_rank_pairs(), rows.weighted_value, tile_keys)
    return unblock_partial(backend, blocks, order, merge(backend, whole, last))


def causal_far_field_of_all(backend: Backend, rows: Rows) -> Partial:
    """Low-rank partial result of every query row over its past (an empty support)."""
    xp = backend.xp
    key_head = integers(xp, rows.key.shape[0], rows.key) // rows.n_keys
    query_head = integers(xp, rows.query.shape[0], rows.query) // rows.n_queries
    return _prefixes(backend, rows, key_head, query_head, PLAIN_TILE)


def causal_far_field_of_hashes(backend: Backend, rows: Rows, table: HashTable) -> Partial:
    """Low-rank partial result over the past, off the support of one table of hashes."""
    parts = []
    if table.limit is not None:
        # A query sees the latest keys of its bucket alone: the older ones are off the support too.
        parts.append(prefix_partial(backend, rows, table.sorted, table.lo[:, 0], table.tile))
    for level in range(1, table.depth + 1):
        up = table.depth - level
        sibling = (table.query_bucket >> up) ^ 1
        parts.append(_prefixes(backend, rows, table.key_bucket >> up, sibling, table.tile))
    return merge(backend, *parts) if parts else nothing_seen(backend, rows.query[:, 0], rows.weighted_value)


def _prefixes(
    backend: Backend, rows: Rows, key_bucket: Array, query_bucket: Array, tile: tuple[int, int]
) -> Partial:
    xp = backend.xp
    key_position = positions(xp, rows.n_heads, rows.n_keys, rows.key)
    query_position = positions(xp, rows.n_heads, rows.n_queries, rows.query)
    joint = jointly_sorted(backend, key_bucket, query_bucket, key_position, query_position)
    return prefix_partial(backend, rows, joint, joint.start + joint.rank, tile)
