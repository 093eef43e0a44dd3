"""State of features beside one hash table: the cache, and feature states of its buckets.

The far field of a query is the states of all buckets but its own, and that of the keys of its own which are
older than the latest `max_bucket`: no subtraction, and no pass over the features of the past.
"""

from __future__ import annotations

import math

from scatterbrain_core._typing import Array
from scatterbrain_core.decoding.cache import grow, in_chunks, latest, own_rows, past_of, values_of
from scatterbrain_core.decoding.context import Context, concat_tokens
from scatterbrain_core.decoding.state import State
from scatterbrain_core.estimator import lay_out
from scatterbrain_core.far_field import feature_states
from scatterbrain_core.low_rank import FeatureMap
from scatterbrain_core.normalization import (
    Partial,
    finite,
    last_of_segments,
    merge,
    running_merge,
    softmax_partial,
)
from scatterbrain_core.rows import Rows, exact_weights, make_rows, with_weights
from scatterbrain_core.sparse import Hashing
from scatterbrain_core.tables import HashTable
from scatterbrain_core.tiles import cut, gather, integers, longest_run


class Leaves:
    """Hk · n · (D + Dv) numbers and a code a key; Hk · W · m · (Dv + 2) for W states of buckets.

    W is the number of buckets, twice it with `max_bucket`: the states of all keys of each bucket, then those
    of its older ones.
    """

    def shapes(self, context: Context) -> dict[str, tuple[int | str, ...]]:
        """Shapes of the cache and of the states."""
        problem, heads = context.problem, context.n_key_heads
        states = (heads, _n_states(context), context.parts.rank)
        return {
            "key": (heads, "n", problem.key.shape[-1]),
            "value": (heads, "n", problem.value.shape[-1]),
            "code": (1, heads, "n"),
            "leaf_ref": states,
            "leaf_acc": (*states, context.columns),
        }

    def start(self, context: Context) -> State:
        """Cache of the tokens, and states of the buckets they fall into."""
        layout = lay_out(context.problem, context.parts, context.projections)
        table = None if layout.tables is None else layout.tables[0]
        assert isinstance(table, HashTable)
        states = _bucket_states(context, table)
        return self._cache(context) | {"leaf_ref": states.ref, "leaf_acc": states.acc}

    def advance(self, context: Context, state: State) -> tuple[Partial, State]:
        """One token after the other."""
        problem = context.problem
        features, new = context.features, self._cache(context)
        query_code, key_code = context.codes[0]
        grown = grow(context, {name: state[name] for name in new}, new)
        past = grown["key"].shape[1] - problem.n_queries
        states, far = Partial(state["leaf_ref"], state["leaf_acc"]), []
        own = features.kernel.states
        key, value = context.once(features.key), context.weighted_value()
        for i in range(problem.n_queries):
            one = slice(i, i + 1)
            arrived = own(problem.backend, key[:, one, :], value[:, one, :])
            states = _added(context, states, context.once(key_code)[:, i], arrived)
            states = _aged(context, states, grown, past + i)
            outside = _outside(context, states, query_code[:, i])
            far.append(features.kernel.apply(problem.backend, features.query[:, one, :], outside))
        far_field = concat_tokens(context, far)
        total = merge(problem.backend, self._near(context, grown, query_code), far_field)
        return total, grown | {"leaf_ref": states.ref, "leaf_acc": states.acc}

    def _cache(self, context: Context) -> State:
        return own_rows(context) | {"code": context.once(context.codes[0][1])[None, ...]}

    def _near(self, context: Context, grown: State, query_code: Array) -> Partial:
        problem, backend = context.problem, context.problem.backend
        of_key = context.repeat(grown["code"][0, ...])[:, None, :]
        key, value = context.repeat(grown["key"]), values_of(context, grown)

        def of_rows(rows: slice) -> Partial:
            in_bucket = past_of(context, grown, rows) & (query_code[:, rows][:, :, None] == of_key)
            support = latest(context, in_bucket)
            logits, _ = exact_weights(backend, problem.query[:, rows, :], key, support)
            return softmax_partial(backend, logits, value)

        return in_chunks(context, key.shape[1], of_rows)


def _hashing(context: Context) -> Hashing:
    assert isinstance(context.parts.sparse, Hashing)
    return context.parts.sparse


def _n_states(context: Context) -> int:
    hashing = _hashing(context)
    return hashing.n_buckets * (1 if hashing.max_bucket is None else 2)


def _bucket_states(context: Context, table: HashTable) -> Partial:
    """States of all buckets of a first call, shape (Hk, W, m)."""
    problem, xp = context.problem, context.problem.xp
    limit, bucket = _hashing(context).max_bucket, table.sorted.key_bucket
    rows = make_rows(problem, context.features)
    if limit is None:
        return _by_head(context, _states_of(context, rows, table, bucket, 1))
    stop = xp.searchsorted(bucket, bucket, side="right")
    is_recent = integers(xp, bucket.shape[0], bucket) >= stop - limit
    halves = _states_of(context, rows, table, 2 * bucket + xp.astype(is_recent, bucket.dtype), 2)
    old, recent = (Partial(halves.ref[i::2, ...], halves.acc[i::2, ...]) for i in range(2))
    every = _by_head(context, merge(problem.backend, old, recent))
    old = _by_head(context, old)
    return Partial(xp.concat([every.ref, old.ref], axis=1), xp.concat([every.acc, old.acc], axis=1))


def _states_of(context: Context, rows: Rows, table: HashTable, group: Array, per_bucket: int) -> Partial:
    """States of groups of sorted keys, ascending numbers `group` by slot: shape (H * buckets * groups, m)."""
    problem, xp = context.problem, context.problem.xp
    blocks = cut(xp, table.key_order, group, table.tile[1])
    segment = xp.take(group, blocks.first)
    states = feature_states(problem.backend, rows, blocks)
    running = running_merge(problem.backend, states, segment, longest_run(xp, segment))
    n_groups = problem.n_heads * _hashing(context).n_buckets * per_bucket
    return last_of_segments(problem.backend, running, segment, n_groups)


def _by_head(context: Context, states: Partial) -> Partial:
    xp, shape = context.problem.xp, (context.problem.n_heads, _hashing(context).n_buckets)
    ref, acc = (xp.reshape(x, (*shape, *x.shape[1:])) for x in (states.ref, states.acc))
    return Partial(context.once(ref), context.once(acc))


def _added(
    context: Context, states: Partial, number: Array, part: Partial, exists: Array | None = None
) -> Partial:
    """States with a partial result (Hk, m) added to one of them in each head, where it exists."""
    xp, backend = context.problem.xp, context.problem.backend
    here = integers(xp, states.ref.shape[1], states.ref)[None, :] == number[:, None]
    here = here if exists is None else here & exists[:, None]
    row = integers(xp, number.shape[0], number) * states.ref.shape[1] + number
    ref, acc = (xp.reshape(x, (-1, *x.shape[2:])) for x in (states.ref, states.acc))
    both = merge(backend, Partial(gather(xp, ref, row), gather(xp, acc, row)), part)
    return Partial(
        xp.where(here[..., None], both.ref[:, None, :], states.ref),
        xp.where(here[..., None, None], both.acc[:, None, :, :], states.acc),
    )


def _aged(context: Context, states: Partial, grown: State, last: int) -> Partial:
    """States after key `last` arrived: the key that it pushed out of its bucket's window is an older one."""
    hashing, xp = _hashing(context), context.problem.xp
    if hashing.max_bucket is None:
        return states
    code = grown["code"][0, :, : last + 1]
    in_bucket = code == code[:, -1:]
    counts = xp.cumulative_sum(xp.astype(in_bucket, code.dtype), axis=-1)
    pushed = in_bucket & (counts[:, -1:] - counts == hashing.max_bucket)
    place = xp.argmax(xp.astype(pushed, xp.int8), axis=-1)
    heads, n_keys = code.shape[0], grown["key"].shape[1]
    row = integers(xp, heads, place) * n_keys + place
    key, value = (
        xp.take(xp.reshape(x, (heads * n_keys, x.shape[-1])), row, axis=0)[:, None, :]
        for x in (grown["key"], grown["value"])
    )
    value = with_weights(xp, value, key)
    low_rank = context.parts.low_rank
    assert isinstance(low_rank, FeatureMap)
    feature = low_rank.key_rows(xp, context.projections.features, None, key)
    part = low_rank.kernel.states(context.problem.backend, feature, value)
    return _added(context, states, code[:, -1] + hashing.n_buckets, part, xp.any(pushed, axis=-1))


def _outside(context: Context, states: Partial, query_code: Array) -> Partial:
    """States (H, m) of all that is off the bucket or window of each query head's code."""
    xp, n_buckets = context.problem.xp, _hashing(context).n_buckets
    number = integers(xp, states.ref.shape[1], states.ref)[None, :]
    # All keys of other buckets, the older ones of its own.
    own = query_code[:, None]
    kept = xp.where(number < n_buckets, number != own, number - n_buckets == own)
    shape = (context.n_key_heads, context.group, number.shape[1])
    logs = xp.where(xp.reshape(kept, shape)[..., None], states.ref[:, None, :, :], -math.inf)
    ref = xp.max(context.problem.backend.stop_gradient(logs), axis=2)
    weights = xp.exp(logs - finite(context.problem.backend, ref)[:, :, None, :])
    # For each feature a product (group, W) @ (W, Dv + 1).
    acc = xp.matmul(xp.permute_dims(weights, (0, 3, 1, 2)), xp.permute_dims(states.acc, (0, 2, 1, 3)))
    acc = xp.permute_dims(acc, (0, 2, 1, 3))
    heads = context.problem.n_heads
    return Partial(xp.reshape(ref, (heads, -1)), xp.reshape(acc, (heads, *acc.shape[2:])))
