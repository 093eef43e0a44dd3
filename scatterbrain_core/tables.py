"""Tables: which keys each query sees exactly, as intervals of one order of the keys.

A table is the one structure between the sparse parts and the sums. Each query row sees a few disjoint
intervals of the ordered keys; a visit is one query row at one of its intervals, so that queries far from each
other may share the keys of an interval. No list of pairs is made. The kinds of tables below are those off
which a far field needs no subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.tiles import Sorted, gather, integers, invert


@dataclass(frozen=True)
class Intervals:
    """Intervals of one order of the keys, R for each query row.

    Attributes
    ----------
    key_order : array of int, shape (n_slots,)
        Key row at each slot.
    lo, hi : array of int, shape (n_query_rows, R)
        For each query row its intervals of slots [lo, hi); empty where lo >= hi.
    """

    key_order: Array
    lo: Array
    hi: Array

    @property
    def n_visits(self) -> int:
        """R, the intervals of a query row."""
        return self.lo.shape[1]

    def counted(self, xp: Namespace, query_rows: Array, key_rows: Array, within: Array) -> Array:
        """Which of the pairs within intervals count, of query_rows (b, q) by key_rows (b, k): all of them."""
        del xp, query_rows, key_rows
        return within


@dataclass(frozen=True)
class Table(Intervals):
    """One table of a support: the keys in the disjoint intervals of a query row are exact for it.

    Key rows are head * Lk + position, query rows head * Lq + position. All keys of a head stand together in
    the order, heads ascending. No hidden key lies in an interval, and none of the future in a causal call.

    Attributes
    ----------
    slot : array of int, shape (n_key_rows,)
        Slot of each key row: the inverse of `key_order`.
    tile : tuple of int
        Queries and keys in a block.
    """

    slot: Array
    tile: tuple[int, int]

    def visits(self, xp: Namespace) -> tuple[Array, Array]:
        """Visits in the order in which they are laid in blocks, and an ascending group number of each place.

        Visit query_row * R + r is the r-th interval of a query row. No block crosses groups; the intervals of
        a block should nearly coincide. Here a group is the visits to intervals of one first slot, those of
        one head in the order of the queries: what a block holds before a query does not depend on what comes
        later.
        """
        lo, hi = xp.reshape(self.lo, (-1,)), xp.reshape(self.hi, (-1,))
        first = xp.where(lo < hi, lo, self.key_order.shape[0])  # empty ones last
        order = xp.argsort(first, stable=True)
        return order, _numbered(xp, xp.take(first, order))

    def holds(self, xp: Namespace, query_rows: Array, key_rows: Array) -> Array:
        """Whether pairs are on the support: query_rows (b, q) by key_rows (b, k), shape (b, q, k)."""
        return contains(
            gather(xp, self.slot, key_rows)[:, None, :],
            gather(xp, self.lo, query_rows),
            gather(xp, self.hi, query_rows),
        )


@dataclass(frozen=True)
class Runs(Table):
    """Keys in runs of slots: each query sees one interval, some runs of its head, none of them in part.

    An empty interval has lo = hi at the edge of a run of the query's head.

    Attributes
    ----------
    run : array of int, shape (n_key_rows,)
        Ascending number of the run at each slot, others in each head.
    """

    run: Array

    def visits(self, xp: Namespace) -> tuple[Array, Array]:
        """Queries by interval; a group sees one."""
        lo, hi = self.lo[:, 0], self.hi[:, 0]
        order = xp.argsort(hi, stable=True)
        order = xp.take(order, xp.argsort(xp.take(lo, order), stable=True))
        return order, _numbered(xp, xp.take(lo, order), xp.take(hi, order))


@dataclass(frozen=True)
class HashTable(Runs):
    """Keys by bucket: a query sees one interval of its bucket, in a causal call the latest keys of its past.

    Attributes
    ----------
    sorted : Sorted
    key_bucket, query_bucket : array of int, shape (n_keys,) and (n_queries,)
        Bucket of each row: head * 2**depth + the bucket's number in its head; where keys are hidden
        head * 2**(depth + 1) + the number, which is 2**depth for a hidden key.
    depth : int
        The buckets of a head are the leaves of a binary tree of this depth.
    limit : int or None
        The most keys of a bucket that a query sees.
    """

    sorted: Sorted
    key_bucket: Array
    query_bucket: Array
    depth: int
    limit: int | None

    def visits(self, xp: Namespace) -> tuple[Array, Array]:
        """Queries by bucket; a group is a bucket, or the piece of one that its queries fall into."""
        order, bucket = self.sorted.query_order, self.sorted.query_bucket
        if self.run is self.sorted.key_bucket:
            return order, bucket
        return order, _numbered(xp, xp.take(self.lo[:, 0], order), bucket)


@dataclass(frozen=True)
class Windows(Table):
    """Keys by position, hidden ones last: each query sees one interval, whose ends never move back.

    Within a head lo and hi ascend with the query's position; in a causal call hi is behind the query's own
    key.

    Attributes
    ----------
    n_heads : int
    """

    n_heads: int

    def visits(self, xp: Namespace) -> tuple[Array, Array]:
        """Queries by position; a group is a head."""
        order = integers(xp, self.lo.shape[0], self.lo)
        return order, order // (order.shape[0] // self.n_heads)


@dataclass(frozen=True)
class CommonKeys(Table):
    """A few keys of a head, which every query sees that may see them at all.

    Attributes
    ----------
    is_common : array of bool, shape (n_key_rows,)
    """

    is_common: Array


@dataclass(frozen=True)
class Clusters(Table):
    """Keys by cluster: the intervals of a query are whole clusters, in a causal call their past.

    Attributes
    ----------
    number : array of int, shape (n_query_rows, R)
        Number in its head of each interval's cluster, -1 where it is empty.
    clustering : object
        What the clusters come from. A low-rank part whose labels are the same clusters, as its
        `Features.clustering` says by equality, leaves them out by their numbers.
    """

    number: Array
    clustering: Any


@dataclass(frozen=True)
class FullRows(Table):
    """A few queries of a head, which see all keys that they may see; the others see none.

    Attributes
    ----------
    is_full : array of bool, shape (n_query_rows,)
    """

    is_full: Array


@dataclass(frozen=True)
class ListedPairs(Table):
    """Any pairs, one by one: those that a dense matrix holds, O(Lq·Lk) in memory.

    The interval of a query row is all that it may see.

    Attributes
    ----------
    held : array of bool, shape (n_query_rows, Lk)
    """

    held: Array

    def counted(self, xp: Namespace, query_rows: Array, key_rows: Array, within: Array) -> Array:
        """Those that are held."""
        return within & self.holds(xp, query_rows, key_rows)

    def holds(self, xp: Namespace, query_rows: Array, key_rows: Array) -> Array:
        """Looked up."""
        n_keys = self.held.shape[1]
        pair = query_rows[:, :, None] * n_keys + (key_rows % n_keys)[:, None, :]
        return gather(xp, xp.reshape(self.held, (-1,)), pair)


def contains(slot: Array, lo: Array, hi: Array) -> Array:
    """Whether slots (..., 1, k) lie in one of the intervals lo, hi (..., q, R): shape (..., q, k)."""
    held = (slot >= lo[..., :1]) & (slot < hi[..., :1])
    for r in range(1, lo.shape[-1]):
        held = held | ((slot >= lo[..., r : r + 1]) & (slot < hi[..., r : r + 1]))
    return held


def _numbered(xp: Namespace, *keys: Array) -> Array:
    """Ascending numbers of the runs of places at which all keys stay the same."""
    change = keys[0][1:] != keys[0][:-1]
    for key in keys[1:]:
        change = change | (key[1:] != key[:-1])
    number = xp.cumulative_sum(xp.astype(change, keys[0].dtype))
    return xp.concat([xp.zeros_like(keys[0][:1]), number])


@dataclass(frozen=True)
class Positions:
    """Keys of a head by position, hidden ones last: what parts by position are made from.

    Attributes
    ----------
    key_order, slot : array of int, shape (n_key_rows,)
        As in `Table`.
    n_before : array of int, shape (H, Lk + 1)
        How many visible keys of its head stand before each position, and at the end how many there are.
    """

    key_order: Array
    slot: Array
    n_before: Array

    def slots(self, xp: Namespace, position: Array) -> Array:
        """Slot of the first visible key at or behind positions in [0, Lk] of every head: (n,) to (H * n,)."""
        heads, columns = self.n_before.shape
        first = integers(xp, heads, position)[:, None] * (columns - 1)
        return xp.reshape(first + xp.take(self.n_before, position, axis=1), (-1,))


def by_position(xp: Namespace, n_heads: int, n_keys: int, key_mask: Array | None, like: Array) -> Positions:
    """Positions of H heads of Lk keys; `key_mask` of shape (H, Lk), or None where all are visible."""
    rows = integers(xp, n_heads * n_keys, like)
    if key_mask is None:
        n_before = xp.broadcast_to(integers(xp, n_keys + 1, like)[None, :], (n_heads, n_keys + 1))
        return Positions(rows, rows, n_before)
    is_hidden = xp.astype(xp.reshape(~key_mask, (-1,)), rows.dtype)
    order = xp.argsort(2 * (rows // n_keys) + is_hidden, stable=True)
    seen = xp.cumulative_sum(xp.astype(key_mask, rows.dtype), axis=1)
    n_before = xp.concat([xp.zeros_like(seen[:, :1]), seen], axis=1)
    return Positions(order, invert(xp, order), n_before)
