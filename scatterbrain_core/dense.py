"""The estimator by its definition, entry by entry, in blocks of rows: O(Lq·Lk) time.

It serves `exact`, `attention_matrix` and masks that the caller brought dense, and is what the tiles are
tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from scatterbrain_core._typing import Array
from scatterbrain_core.normalization import Partial, softmax_partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.rows import Features, Rows, exact_weights
from scatterbrain_core.tiles import Table, integers, piece_size


@dataclass(frozen=True)
class Block:
    """Rows [first, last) of some consecutive heads, all their keys.

    Attributes
    ----------
    visible : array of bool, shape (h, r, Lk)
        Pairs that no mask hides.
    support : array of bool, shape (h, r, Lk)
        Those of them that are exact.
    """

    heads: slice
    rows: slice
    visible: Array
    support: Array


def map_blocks(
    problem: Problem, tables: Sequence[Table] | None, function: Callable[[Block], tuple[Array, ...]]
) -> list[Array]:
    """Arrays that `function` gives for every block of rows, shape (h, r, ...), put together as (H, Lq, ...).

    Parameters
    ----------
    tables : sequence of Table, or None
        Support of all heads of `problem`; None stands for all pairs.
    """
    xp = problem.xp
    n_rows = min(problem.n_queries, max(1, problem.backend.chunk_elements // problem.n_keys))
    step = (
        1
        if problem.dense_mask is not None
        else max(1, problem.backend.chunk_elements // (problem.n_queries * problem.n_keys))
    )

    def of_block(heads: slice, rows: slice) -> tuple[Array, ...]:
        visible = _visible(problem, heads, rows)
        support = visible if tables is None else _support(problem, tables, heads, rows, visible)
        return function(Block(heads, rows, visible, support))

    by_heads = []
    for head in range(0, problem.n_heads, step):
        heads = slice(head, min(head + step, problem.n_heads))
        by_rows = []
        for row in range(0, problem.n_queries, n_rows):
            rows = slice(row, min(row + n_rows, problem.n_queries))
            by_rows.append(problem.backend.checkpoint(partial(of_block, heads, rows)))
        by_heads.append([xp.concat(column, axis=1) for column in zip(*by_rows, strict=True)])
    return [xp.concat(column, axis=0) for column in zip(*by_heads, strict=True)]


def near_block(problem: Problem, block: Block) -> tuple[Array, Array | None]:
    """Exact logits of a block, -inf off the support, and no factor."""
    return exact_weights(
        problem.backend,
        problem.query[block.heads, block.rows, :],
        problem.key[block.heads, ...],
        block.support,
    )


def far_block(problem: Problem, features: Features, block: Block) -> tuple[Array, Array | None]:
    """Low-rank weights of a block as exp(logit) * factor, logit -inf on the support."""
    query = features.query[block.heads, block.rows, :]
    key = features.key[block.heads, ...]
    return features.kernel.pairs(problem.backend, query, key, block.visible & ~block.support)


def block_partial(problem: Problem, rows: Rows, block: Block, weights: tuple[Array, Array | None]) -> Partial:
    """Partial result of a block, shape (h, r), from its weights."""
    values = problem.xp.reshape(rows.weighted_value, (problem.n_heads, problem.n_keys, -1))
    logits, factor = weights
    return softmax_partial(problem.backend, logits, values[block.heads, ...], factor)


def _visible(problem: Problem, heads: slice, rows: slice) -> Array:
    xp = problem.xp
    queries = integers(xp, problem.n_queries, problem.query)[rows]
    keys = integers(xp, problem.n_keys, problem.key)
    n_heads = heads.stop - heads.start
    if problem.is_causal:
        visible = (keys[None, :] <= queries[:, None])[None, ...]
    elif problem.dense_mask is not None:
        number = problem.mask_of_head[heads.start]
        visible = problem.dense_mask[number, rows, :][None, ...]
    else:
        visible = ((keys[None, :] >= 0) & (queries[:, None] >= 0))[None, ...]
    if problem.key_mask is not None:
        visible = visible & problem.key_mask[heads, :][:, None, :]
    return xp.broadcast_to(visible, (n_heads, *visible.shape[1:]))


def _support(problem: Problem, tables: Sequence[Table], heads: slice, rows: slice, visible: Array) -> Array:
    """Visible pairs that some table holds."""
    support = visible & ~visible
    for table in tables:
        slot, *per_query = _of_block(problem, table, heads, rows)
        if problem.dense_mask is None or table.limit is None:
            lo, hi = per_query[:2]
            held = (slot >= lo) & (slot < hi)
        else:
            held = _limited_to_visible(problem, table.limit, slot, per_query, visible)
        support = support | (held & visible)
    return support


def _of_block(problem: Problem, table: Table, heads: slice, rows: slice) -> list[Array]:
    """Slots of the keys, shape (h, 1, Lk), and lo, hi, start, stop, rank of the queries, shape (h, r, 1)."""
    xp = problem.xp
    slot = xp.reshape(table.slot, (problem.n_heads, problem.n_keys))[heads, :][:, None, :]
    joint = table.sorted
    by_query = (table.lo, table.hi, joint.start, joint.stop, joint.rank)
    shape = (problem.n_heads, problem.n_queries)
    return [slot, *(xp.reshape(x, shape)[heads, rows][:, :, None] for x in by_query)]


def _limited_to_visible(
    problem: Problem, limit: int, slot: Array, per_query: list[Array], visible: Array
) -> Array:
    """The piece of its bucket that each query falls into, cut from the keys that it may see alone.

    Cut from all keys, as without a mask, a piece would depend on keys that the mask hides.
    """
    xp = problem.xp
    _, _, start, stop, rank = per_query
    in_bucket = visible & (slot >= start) & (slot < stop)
    count = xp.sum(xp.astype(in_bucket, start.dtype), axis=-1)[:, :, None]
    before = xp.sum(xp.astype(in_bucket & (slot < start + rank), start.dtype), axis=-1)[:, :, None]
    size = piece_size(xp, count, limit)
    piece = xp.maximum(xp.minimum(before, count - 1), 0) // size
    # Places of the bucket's visible keys: counted in the order of slots, then brought back to that of keys.
    place = slot - xp.min(slot, axis=-1)[:, :, None]
    order = xp.broadcast_to(xp.argsort(place, axis=-1), in_bucket.shape)
    place = xp.broadcast_to(place, in_bucket.shape)
    in_order = xp.take_along_axis(in_bucket, order, axis=-1)
    nth = xp.cumulative_sum(xp.astype(in_order, start.dtype), axis=-1) - 1
    return in_bucket & (xp.take_along_axis(nth, place, axis=-1) // size == piece)
