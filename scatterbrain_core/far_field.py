"""The far field: low-rank weights off the support, summed directly.

It is never a total minus a part: with features c as virtual keys, the logit of c for query i is
log φ_c(q_i) + log Σ_{j∉S(i)} φ_c(k_j) and its value the φ_c-weighted mean of those v_j. With several
tables the keys of the later ones alone are subtracted, and a row in which that would lose digits is
summed again pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, merge, running_merge, scaled, select
from scatterbrain_core.rows import Rows
from scatterbrain_core.sparse_correction import first_occurrences, interval_partial, unblock_partial
from scatterbrain_core.tables import Intervals, Runs, Table
from scatterbrain_core.tiles import Blocks, cut, gather, integers, longest_run

# Queries and keys in a block where no table says its own.
PLAIN_TILE = (64, 64)
# A row keeps its difference only if what was subtracted is at most this many times what is left in all.
MAX_CANCELLATION = 4.0


def feature_states(backend: Backend, rows: Rows, blocks: Blocks) -> Partial:
    """For every block of keys and feature c, the sum of φ_c(k_j) (v_j, 1): `ref` of shape (n_blocks, m)."""
    xp, features = backend.xp, rows.low_rank()
    key = features.kernel.hide(xp, gather(xp, features.key, blocks.rows), blocks.filled)
    return features.kernel.states(backend, key, gather(xp, rows.weighted_value, blocks.rows))


def apply_states(backend: Backend, rows: Rows, blocks: Blocks, states: Partial) -> Partial:
    """Blocks of queries against virtual keys, one a feature: `ref` of shape (n_blocks, size)."""
    features = rows.low_rank()
    return features.kernel.apply(backend, gather(backend.xp, features.query, blocks.rows), states)


def far_field_of_all(backend: Backend, rows: Rows) -> Partial:
    """Low-rank partial result of every query row over all keys of its head (an empty support)."""
    xp = backend.xp
    features = rows.low_rank()
    query, key, weighted_value = (
        xp.reshape(x, (rows.n_heads, -1, x.shape[-1]))
        for x in (features.query, features.key, rows.weighted_value)
    )
    part = features.kernel.apply(backend, query, features.kernel.states(backend, key, weighted_value))
    return Partial(xp.reshape(part.ref, (-1,)), xp.reshape(part.acc, (-1, part.acc.shape[-1])))


def far_field_of_runs(backend: Backend, rows: Rows, table: Runs) -> Partial:
    """Low-rank partial result off the support of one table of runs, not causal, without any subtraction.

    The keys of a head outside a query's runs are those before them and those after them.
    """
    xp = backend.xp
    keys = cut(xp, table.key_order, table.run, table.tile[1])
    states = feature_states(backend, rows, keys)
    head = keys.rows[:, 0] // rows.n_keys
    longest = longest_run(xp, head)
    before = running_merge(backend, states, head, longest)
    after = _reverse(backend, running_merge(backend, _reverse(backend, states), xp.flip(head), longest))

    order, group = table.visits(xp)
    blocks = cut(xp, order, group, table.tile[0])
    first = blocks.rows[:, 0]
    lo, hi = xp.take(table.lo[:, 0], first), xp.take(table.hi[:, 0], first)
    query_head = first // rows.n_queries
    far = merge(
        backend,
        state_at(backend, before, keys, lo - 1, lo > query_head * rows.n_keys),
        state_at(backend, after, keys, hi, hi < (query_head + 1) * rows.n_keys),
    )
    return unblock_partial(backend, blocks, order, apply_states(backend, rows, blocks, far))


def _reverse(backend: Backend, part: Partial) -> Partial:
    return Partial(backend.xp.flip(part.ref, axis=0), backend.xp.flip(part.acc, axis=0))


def state_at(backend: Backend, states: Partial, keys: Blocks, slot: Array, exists: Array) -> Partial:
    """Running states of the blocks that hold the slots; nothing seen where `exists` is False."""
    xp = backend.xp
    block = xp.take(keys.of_slot, xp.clip(slot, 0, keys.of_slot.shape[0] - 1))
    chosen = Partial(gather(xp, states.ref, block), gather(xp, states.acc, block))
    return select(backend, xp.broadcast_to(exists[:, None], chosen.ref.shape), chosen)


def less_later_tables(
    backend: Backend,
    rows: Rows,
    tables: Sequence[Table],
    skip: int,
    near: Partial,
    far: Partial,
    seen: Array,
) -> Partial:
    """Far field of several tables, from that of the first or from that of all keys.

    Parameters
    ----------
    near : Partial
        On the support of all tables; it bounds what rounding may cost.
    far : Partial
        Off the support of the first `skip` tables, none or one.
    seen : array of int, shape (n_queries,)
        How many keys of its head, by position, each query row may see.
    """
    xp = backend.xp
    extra = first_occurrences(backend, rows, tables, skip, rows.low_rank_pairs())
    ref = xp.maximum(xp.maximum(near.ref, far.ref), extra.ref)
    near_acc, far_acc, extra_acc = (scaled(backend, part, ref) for part in (near, far, extra))
    rest = Partial(ref, far_acc - extra_acc)
    kept = near_acc[:, -1] + rest.acc[:, -1]
    unsafe = backend.stop_gradient(extra_acc[:, -1] > MAX_CANCELLATION * kept)
    if not rows.low_rank().kernel.is_positive:
        unsafe = unsafe | ~unsafe  # signed sums say nothing of what they lose
    count = int(xp.sum(xp.astype(unsafe, integers(xp, 1, ref).dtype)))
    if count == 0:
        return rest
    chosen = xp.argsort(xp.astype(unsafe, xp.int8), descending=True, stable=True)[:count]
    direct = _far_field_of_rows(backend, rows, tables, chosen, seen)
    place = xp.maximum(xp.cumulative_sum(xp.astype(unsafe, chosen.dtype)) - 1, 0)
    return Partial(
        xp.where(unsafe, gather(xp, direct.ref, place), rest.ref),
        xp.where(unsafe[:, None], gather(xp, direct.acc, place), rest.acc),
    )


def _far_field_of_rows(
    backend: Backend, rows: Rows, tables: Sequence[Table], chosen: Array, seen: Array
) -> Partial:
    """Far field of a few query rows (ascending), pair by pair: O(Lk·m) a row."""
    xp = backend.xp
    head = chosen // rows.n_queries
    tile_queries, tile_keys = PLAIN_TILE
    blocks = cut(xp, chosen, head, tile_queries)
    first = (integers(xp, rows.query.shape[0], chosen) // rows.n_queries) * rows.n_keys
    every = Intervals(integers(xp, rows.key.shape[0], chosen), first[:, None], (first + seen)[:, None])
    pairs = rows.low_rank_pairs()
    part = interval_partial(backend, blocks, every, pairs, rows.weighted_value, tile_keys, tables)
    # `chosen` is no permutation: its own order is 0, 1, ...
    return unblock_partial(backend, blocks, integers(xp, chosen.shape[0], chosen), part)
