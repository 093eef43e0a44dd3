"""The estimator by its definition, entry by entry, in blocks of rows: O(Lq·Lk) time.

It serves `exact`, `attention_matrix` and masks that the caller brought dense, and is what the tiles are
tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scatterbrain_core._typing import Array
from scatterbrain_core.debiasing import sampled_times
from scatterbrain_core.layout import Layout
from scatterbrain_core.low_rank import Features
from scatterbrain_core.normalization import Partial, softmax_partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.rows import Rows, exact_weights
from scatterbrain_core.tables import HashTable, ListedPairs, Table, contains
from scatterbrain_core.tiles import piece_size
from scatterbrain_core.visibility import map_row_blocks, visible_pairs


@dataclass(frozen=True)
class Block:
    """Rows [first, last) of some consecutive heads, all their keys.

    Attributes
    ----------
    visible : array of bool, shape (h, r, Lk)
        Pairs that no mask hides.
    support : array of bool, shape (h, r, Lk)
        Those of them that are exact.
    far : array of bool, shape (h, r, Lk)
        Those of them that have a low-rank weight.
    times : array, shape (Lk,), or None
        How often each key was sampled.
    unit : float
        n/s: off the support a sampled key's exact weight counts as often, and its low-rank weight less so.
    """

    heads: slice
    rows: slice
    visible: Array
    support: Array
    far: Array
    times: Array | None
    unit: float


def map_blocks(
    problem: Problem, layout: Layout, function: Callable[[Block], tuple[Array, ...]]
) -> list[Array]:
    """Arrays that `function` gives for every block of rows, shape (h, r, ...), put together as (H, Lq, ...).

    Parameters
    ----------
    layout : Layout
        Of all heads of `problem`.
    """
    tables, columns = layout.tables, layout.columns
    times = None if columns is None else sampled_times(problem, columns)
    unit = 1.0 if columns is None else problem.n_keys / columns.shape[0]

    def of_block(heads: slice, rows: slice) -> tuple[Array, ...]:
        visible = visible_pairs(problem, heads, rows)
        support = visible if tables is None else _support(problem, tables, heads, rows, visible)
        far = visible if layout.double_counting else visible & ~support
        return function(Block(heads, rows, visible, support, far, times, unit))

    return map_row_blocks(problem, of_block)


def near_block(problem: Problem, block: Block) -> tuple[Array, Array | None]:
    """Exact weights of a block as exp(logit) * factor: on the support, and at sampled keys off it."""
    query, key = problem.query[block.heads, block.rows, :], problem.key[block.heads, ...]
    if block.times is None:
        return exact_weights(problem.backend, query, key, block.support)
    held = block.support | (block.far & (block.times > 0))
    logits, _ = exact_weights(problem.backend, query, key, held)
    return logits, problem.xp.where(block.support, 1.0, block.times * block.unit)


def far_block(problem: Problem, features: Features, block: Block) -> tuple[Array, Array | None]:
    """Low-rank weights of a block as exp(logit) * factor, logit -inf where there are none."""
    query = features.query[block.heads, block.rows, :]
    key = features.key[block.heads, ...]
    logits, factor = features.kernel.pairs(problem.backend, query, key, block.far)
    if block.times is None:
        return logits, factor
    left = 1 - block.times * block.unit
    return logits, left if factor is None else left * factor


def pairs_of_block(problem: Problem, block: Block) -> Array:
    """How many exact pairs each query of a block has, shape (h, r)."""
    xp, like = problem.xp, problem.query
    pairs = xp.astype(block.support, like.dtype)
    if block.times is not None:
        pairs = pairs + xp.where(block.far, block.times, 0.0)
    return xp.sum(pairs, axis=-1)


def block_partial(problem: Problem, rows: Rows, block: Block, weights: tuple[Array, Array | None]) -> Partial:
    """Partial result of a block, shape (h, r), from its weights."""
    values = problem.xp.reshape(rows.weighted_value, (problem.n_heads, problem.n_keys, -1))
    logits, factor = weights
    return softmax_partial(problem.backend, logits, values[block.heads, ...], factor)


def _support(problem: Problem, tables: Sequence[Table], heads: slice, rows: slice, visible: Array) -> Array:
    """Visible pairs that some table holds."""
    xp = problem.xp
    support = visible & ~visible

    def of_queries(x: Array) -> Array:
        return xp.reshape(x, (problem.n_heads, problem.n_queries, -1))[heads, rows, :]

    for table in tables:
        slot = xp.reshape(table.slot, (problem.n_heads, problem.n_keys))[heads, :][:, None, :]
        if problem.dense_mask is not None and isinstance(table, HashTable) and table.limit is not None:
            joint = table.sorted
            of_bucket = [of_queries(x) for x in (joint.start, joint.stop, joint.rank)]
            held = _limited_to_visible(problem, table.limit, slot, of_bucket, visible)
        elif isinstance(table, ListedPairs):
            held = of_queries(table.held)
        else:
            held = contains(slot, of_queries(table.lo), of_queries(table.hi))
        support = support | (held & visible)
    return support


def _limited_to_visible(
    problem: Problem, limit: int, slot: Array, of_bucket: list[Array], visible: Array
) -> Array:
    """The piece of its bucket that each query falls into, cut from the keys that it may see alone.

    Cut from all keys, as without a mask, a piece would depend on keys that the mask hides.
    """
    xp = problem.xp
    start, stop, rank = of_bucket
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
