"""Tiles: sorted rows, and blocks of them of one size.

Heads are flattened into rows: row = head * L + position. `Blocks` cuts sorted rows into blocks of one size,
so that tiles run as batched matrix products whose shapes, and with them the rounding of a row, do not depend
on what the other rows hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from array_api_compat import device

from scatterbrain_core._typing import Array, Namespace

if TYPE_CHECKING:
    from scatterbrain_core.backend import Backend


@dataclass(frozen=True)
class Joint:
    """Queries and keys, both in order of the groups that they share.

    Attributes
    ----------
    key_order : array of int, shape (n_keys,)
        Key row at each slot.
    key_bucket : array of int, shape (n_keys,)
        Group at each slot, ascending.
    query_order, query_bucket : array of int, shape (n_queries,)
        The same for the queries.
    """

    key_order: Array
    key_bucket: Array
    query_order: Array
    query_bucket: Array


@dataclass(frozen=True)
class Sorted(Joint):
    """Queries and keys sorted by bucket, then by a second number shared by both.

    Attributes
    ----------
    start, stop : array of int, shape (n_queries,)
        For each query row, the slots of its bucket: [start, stop).
    rank : array of int, shape (n_queries,)
        For each query row, how many keys of its bucket do not come after it.
    """

    start: Array
    stop: Array
    rank: Array


@dataclass(frozen=True)
class Blocks:
    """Sorted rows cut into blocks of one size, none across the edge of a group.

    Attributes
    ----------
    rows : array of int, shape (n_blocks, size)
        Row at each place; where `filled` is False, some row of no meaning.
    filled : array of bool, shape (n_blocks, size)
    first : array of int, shape (n_blocks,)
        Slot of each block's first row.
    of_slot : array of int, shape (n_rows,)
        Block of each slot.
    """

    rows: Array
    filled: Array
    first: Array
    of_slot: Array

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.rows.shape[0]

    @property
    def size(self) -> int:
        """Places in a block."""
        return self.rows.shape[1]


def integers(xp: Namespace, n: int, like: Array) -> Array:
    """0, 1, ..., n - 1 in the default integer dtype, on the device of `like`."""
    return xp.arange(n, device=device(like))


def positions(xp: Namespace, n_heads: int, length: int, like: Array) -> Array:
    """Position of every row in its head's sequence, shape (n_heads * length,)."""
    return xp.tile(integers(xp, length, like), (n_heads,))


def piece_size(xp: Namespace, count: Array, limit: int) -> Array:
    """Size of the nearly equal pieces, of at most `limit`, into which `count` keys are cut; at least 1."""
    n_pieces = xp.maximum((count + limit - 1) // limit, 1)
    return xp.maximum((count + n_pieces - 1) // n_pieces, 1)


def zeros(xp: Namespace, shape: tuple[int, ...], like: Array) -> Array:
    """Zeros in the dtype and on the device of `like`."""
    return xp.zeros(shape, dtype=like.dtype, device=device(like))


def gather(xp: Namespace, x: Array, index: Array) -> Array:
    """Rows of `x` at an index array of any shape: shape index.shape + x.shape[1:]."""
    rows = xp.take(x, xp.reshape(index, (-1,)), axis=0)
    return xp.reshape(rows, index.shape + x.shape[1:])


def padded(xp: Namespace, x: Array, length: int) -> Array:
    """Rows (H, L, ...) with zeros, or False, behind them up to a length."""
    missing = length - x.shape[1]
    if missing <= 0:
        return x
    return xp.concat([x, zeros(xp, (x.shape[0], missing, *x.shape[2:]), x)], axis=1)


def where_true(xp: Namespace, mask: Array) -> tuple[Array, Array]:
    """Places of a flat mask that are True, ascending, and at every place how many are up to it."""
    number = xp.cumulative_sum(xp.astype(mask, integers(xp, 1, mask).dtype))
    return xp.searchsorted(number, integers(xp, int(number[-1]), number) + 1), number


def longest_run(xp: Namespace, group: Array) -> int:
    """Length of the longest run of equal numbers in an ascending array."""
    return int(
        xp.max(xp.searchsorted(group, group, side="right") - xp.searchsorted(group, group, side="left"))
    )


def combined(
    xp: Namespace, x: Array, index: Array, n: int, combine: Callable[[Array, Array], Array], nothing: float
) -> Array:
    """Rows of equal index combined, shape (n, ...); `nothing` at an index that no row has.

    Parameters
    ----------
    x : array, shape (r, ...)
        At least one row.
    index : array of int, shape (r,)
    combine : callable
        Of two arrays, associative and with `nothing` as its unit.
    """
    order = xp.argsort(index, stable=True)
    index, x = xp.take(index, order), xp.take(x, order, axis=0)
    ones = (1,) * (x.ndim - 1)
    # Runs of equal indices by doubling: differences of running sums would lose digits.
    for step in (2**i for i in range((longest_run(xp, index) - 1).bit_length())):
        same = xp.reshape(index[step:] == index[:-step], (-1, *ones))
        more = combine(x[step:, ...], xp.where(same, x[:-step, ...], nothing))
        x = xp.concat([x[:step, ...], more], axis=0)
    numbers = integers(xp, n, index)
    end = xp.searchsorted(index, numbers, side="right")
    is_named = xp.reshape(xp.searchsorted(index, numbers, side="left") < end, (-1, *ones))
    return xp.where(is_named, xp.take(x, xp.maximum(end - 1, xp.zeros_like(end)), axis=0), nothing)


def invert(xp: Namespace, order: Array) -> Array:
    """Inverse of a permutation."""
    return xp.argsort(order, stable=False)


def sort_jointly(
    xp: Namespace,
    key_bucket: Array,
    query_bucket: Array,
    key_rank: Array,
    query_rank: Array,
    argsort: Callable[[Array], Array] | None = None,
) -> Sorted:
    """Sort queries and keys by bucket, then by rank, a key before a query of its own rank.

    Parameters
    ----------
    key_bucket, key_rank : array, shape (n_keys,)
        By key row. Buckets of different heads must differ.
    query_bucket, query_rank : array, shape (n_queries,)
    argsort : callable, optional
        A stable argsort of one axis.
    """
    argsort = argsort or partial(xp.argsort, stable=True)
    n_keys, n_queries = key_bucket.shape[0], query_bucket.shape[0]
    bucket = xp.concat([key_bucket, query_bucket])
    order = argsort(xp.concat([key_rank, query_rank]))
    order = xp.take(order, argsort(xp.take(bucket, order)))
    # Stable sort by kind: the joint order of the keys, then that of the queries.
    by_kind = argsort(xp.astype(order >= n_keys, xp.int8))
    key_order = xp.take(order, by_kind[:n_keys])
    query_order = xp.take(order, by_kind[n_keys:]) - n_keys
    sorted_keys, sorted_queries = xp.take(key_bucket, key_order), xp.take(query_bucket, query_order)
    # A query's place in the joint order, less the queries before it, counts the keys not after it.
    keys_before = by_kind[n_keys:] - integers(xp, n_queries, order)
    # Searched for in order, buckets are found faster.
    start = xp.searchsorted(sorted_keys, sorted_queries, side="left")
    stop = xp.searchsorted(sorted_keys, sorted_queries, side="right")
    place = argsort(query_order)  # the inverse
    of_query = (xp.take(x, place) for x in (start, stop, keys_before - start))
    return Sorted(key_order, sorted_keys, query_order, sorted_queries, *of_query)


def jointly_sorted(
    backend: Backend, key_bucket: Array, query_bucket: Array, key_rank: Array, query_rank: Array
) -> Sorted:
    """`sort_jointly`, by the backend's own sort where it has one."""
    numbers = (key_bucket, query_bucket, key_rank, query_rank)
    return backend.sort_jointly(*numbers, lambda: sort_jointly(backend.xp, *numbers))


def cut(xp: Namespace, order: Array, group: Array, size: int) -> Blocks:
    """Cut rows in sorted order into blocks of `size` places, afresh in each group.

    Parameters
    ----------
    order : array of int, shape (n,)
        Row at each slot.
    group : array of int, shape (n,)
        Group of each slot, ascending.
    """
    n = order.shape[0]
    slots = integers(xp, n, order)
    rank = slots - xp.searchsorted(group, group, side="left")
    of_slot = xp.cumulative_sum(xp.astype(rank % size == 0, slots.dtype)) - 1
    count = int(of_slot[-1]) + 1
    first = xp.searchsorted(of_slot, integers(xp, count, order))
    end = xp.concat([first[1:], xp.full((1,), n, dtype=first.dtype, device=device(first))])
    places = first[:, None] + integers(xp, size, order)[None, :]
    filled = places < end[:, None]
    return Blocks(gather(xp, order, xp.where(filled, places, 0)), filled, first, of_slot)


def unblock(xp: Namespace, blocks: Blocks, order: Array, x: Array) -> Array:
    """Blocked results, shape (n_blocks, size, ...), back in row order, shape (n, ...)."""
    slot = invert(xp, order)
    block = xp.take(blocks.of_slot, slot)
    place = block * blocks.size + slot - xp.take(blocks.first, block)
    return gather(xp, xp.reshape(x, (-1, *x.shape[2:])), place)


def power_of_two(n: int, least: int, most: int) -> int:
    """The least power of two that is not below n, within [least, most]."""
    return min(max(1 << (max(n, 1) - 1).bit_length(), least), most)
