"""State of any method: keys, values, codes and feature rows of the past, and a pass over them a token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from scatterbrain_core._typing import Array
from scatterbrain_core.decoding.context import Context, concat_tokens
from scatterbrain_core.decoding.state import State
from scatterbrain_core.normalization import Partial, merge, softmax_partial
from scatterbrain_core.rows import exact_weights, with_weights
from scatterbrain_core.sparse import Hashing
from scatterbrain_core.tiles import integers


class Cache:
    """Hk · n · (D + Dv) numbers, with hashes T codes a key more, with features their m more."""

    def shapes(self, context: Context) -> dict[str, tuple[int | str, ...]]:
        """Shapes with the keys along one axis, "n"."""
        problem, heads = context.problem, context.n_key_heads
        shapes: dict[str, tuple[int | str, ...]] = {
            "key": (heads, "n", problem.key.shape[-1]),
            "value": (heads, "n", problem.value.shape[-1]),
        }
        if isinstance(context.parts.sparse, Hashing):
            shapes["code"] = (context.parts.sparse.n_tables or 1, heads, "n")
        if context.parts.low_rank is not None:
            is_positive = context.parts.low_rank.is_positive
            shapes["feature"] = (heads, "n", context.parts.rank + (0 if is_positive else 1))
        return shapes

    def start(self, context: Context) -> State:
        """Keys, values, codes and feature rows of the new tokens."""
        state = own_rows(context)
        if isinstance(context.parts.sparse, Hashing):
            state["code"] = context.problem.xp.stack([context.once(key) for _, key in context.codes])
        if context.parts.low_rank is not None:
            state["feature"] = context.once(context.features.key)
        return state

    def advance(self, context: Context, state: State) -> tuple[Partial, State]:
        """Each new query over all keys up to its own, a few queries at a time."""
        grown = grow(context, state, self.start(context))
        partial = in_chunks(context, grown["key"].shape[1], lambda rows: self._rows(context, grown, rows))
        return partial, grown

    def _rows(self, context: Context, grown: State, rows: slice) -> Partial:
        problem, backend = context.problem, context.problem.backend
        visible = past_of(context, grown, rows)
        support = self._support(context, grown, rows, visible)
        value = values_of(context, grown)
        key = context.repeat(grown["key"])
        near = softmax_partial(
            backend, exact_weights(backend, problem.query[:, rows, :], key, support)[0], value
        )
        if context.parts.low_rank is None:
            return near
        features = context.features
        logits, factor = features.kernel.pairs(
            backend, features.query[:, rows, :], context.repeat(grown["feature"]), visible & ~support
        )
        return merge(backend, near, softmax_partial(backend, logits, value, factor))

    def _support(self, context: Context, grown: State, rows: slice, visible: Array) -> Array:
        if not isinstance(context.parts.sparse, Hashing):
            return visible
        support = visible & ~visible
        for t, (query, _) in enumerate(context.codes):
            of_key = context.repeat(grown["code"][t, ...])
            in_bucket = visible & (query[:, rows, None] == of_key[:, None, :])
            support = support | latest(context, in_bucket)
        return support


def own_rows(context: Context) -> State:
    """Keys and values of the new tokens, in arrays of their own: a state outlives what the caller does."""
    problem = context.problem
    rows = {"key": problem.key, "value": problem.value}
    return {name: problem.xp.asarray(context.once(x), copy=True) for name, x in rows.items()}


def grow(context: Context, state: State, new: State) -> State:
    """Arrays with the keys along their axis "n", old and new together."""
    axes = {"key": 1, "value": 1, "feature": 1, "code": 2}
    concat = context.problem.xp.concat
    return {name: concat([state[name], x], axis=axes[name]) for name, x in new.items()}


def past_of(context: Context, grown: State, rows: slice) -> Array:
    """Which keys each new query may see, shape (H, r, n)."""
    problem, xp = context.problem, context.problem.xp
    n_keys = grown["key"].shape[1]
    position = integers(xp, problem.n_queries, problem.query)[rows] + (n_keys - problem.n_queries)
    visible = integers(xp, n_keys, problem.query)[None, :] <= position[:, None]
    return xp.broadcast_to(visible[None, ...], (problem.n_heads, *visible.shape))


def latest(context: Context, in_bucket: Array) -> Array:
    """The latest keys of each query's bucket, as many as it may see."""
    hashing, xp = context.parts.sparse, context.problem.xp
    assert isinstance(hashing, Hashing)
    if hashing.max_bucket is None:
        return in_bucket
    counts = xp.cumulative_sum(xp.astype(in_bucket, integers(xp, 1, in_bucket).dtype), axis=-1)
    return in_bucket & (counts[..., -1][..., None] - counts < hashing.max_bucket)


def values_of(context: Context, grown: State) -> Array:
    """Values of all keys for every query head, with their weights as last column."""
    return with_weights(context.problem.xp, context.repeat(grown["value"]), context.repeat(grown["key"]))


def in_chunks(context: Context, n_keys: int, of_rows: Callable[[slice], Partial]) -> Partial:
    """Partial results of all new queries, so many at a time that a temporary of all pairs stays small."""
    problem = context.problem
    step = max(1, problem.backend.chunk_of(problem.query) // (problem.n_heads * n_keys))
    edges = [*range(0, problem.n_queries, step), problem.n_queries]
    return concat_tokens(context, [of_rows(slice(*edge)) for edge in pairwise(edges)])
