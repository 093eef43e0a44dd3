"""Queries at the clusters they opened: the queries that chose a cluster form its tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, finite, merge
from scatterbrain_core.problem import HalfPrecision
from scatterbrain_core.routing.nodes import Clusters
from scatterbrain_core.routing.view import View
from scatterbrain_core.rows import Pairs, exact_weights
from scatterbrain_core.sparse_correction import interval_partial, unblock_partial
from scatterbrain_core.tables import Intervals
from scatterbrain_core.tiles import combined, cut, gather, integers, power_of_two, where_true

TILE = (64, 16)
LEAST_PLACES = 8
# Queries whose visits are worked at a time, at least; and entries of a query that are one visit.
LEAST_ROWS, KEYS_OF_VISIT = 128, 4


@dataclass(frozen=True)
class Keys:
    """Keys in the order of their clusters.

    Attributes
    ----------
    order : array of int, shape (n_slots,)
        Key row at each slot.
    key : array, shape (n_rows, D)
    weighted_value : array, shape (n_rows, Dv + 1)
    half : HalfPrecision or None
        What keys, values and the queries were.
    """

    order: Array
    key: Array
    weighted_value: Array
    half: HalfPrecision | None


def places_of(n_queries: int, entries: int, n_keys: int) -> int:
    """Places of a block for the visits of a cluster, by how many queries open each on average.

    By that alone: which block a query falls into may not depend on what later ones choose.
    """
    return power_of_two(n_queries * entries // max(n_keys, 1), LEAST_PLACES, TILE[0])


def rows_at_once(backend: Backend, entries: int, width: int) -> int:
    """Queries, of all heads, whose visits may be worked at a time: whatever they and others choose."""
    return max(LEAST_ROWS, backend.visit_elements * KEYS_OF_VISIT // max(entries * width, 1))


@dataclass(frozen=True)
class Opened:
    """Visits: one query row at the keys of one cluster that it opened.

    Attributes
    ----------
    row : array of int, shape (n_visits,)
        head * R + the query's place among the R of its head.
    lo, hi : array of int, shape (n_visits,)
        The cluster's slots, [lo, hi).
    """

    row: Array
    lo: Array
    hi: Array


def opened_of_chunk(
    backend: Backend, opened: Array, view: View, first: int, n_rows: int, n_heads: int
) -> Opened:
    """Visits of a chunk of queries, by cluster and then by query.

    Parameters
    ----------
    opened : array of bool, shape (H * n_tiles, tile, K)
    first, n_rows : int
        Place of the chunk's first query among those of its head, and how many there are, R.
    n_heads : int
        H.
    """
    xp = backend.xp
    n_tiles, size, n_clusters = opened.shape
    by_cluster = xp.reshape(xp.permute_dims(opened, (0, 2, 1)), (n_tiles * n_clusters * size,))
    place = backend.true_places(by_cluster, lambda: where_true(xp, by_cluster)[0])
    cluster = place // size
    of_head = n_tiles // n_heads
    tile = cluster // n_clusters
    row = tile // of_head * n_rows + first + tile % of_head * size + place % size
    lo = xp.take(xp.reshape(view.start, (-1,)), cluster)
    count = xp.take(xp.astype(xp.reshape(view.count, (-1,)), lo.dtype), cluster)
    return Opened(row, lo, lo + count)


def with_opened(
    backend: Backend,
    near: Partial,
    query: Array,
    rows: slice,
    visits: list[Opened],
    keys: Keys,
    entries: int,
    n_keys: int,
) -> Partial:
    """Partial result of some queries with the keys of the clusters that they opened.

    Parameters
    ----------
    near : Partial
        `ref` of shape (H, rows), on other keys; a temporary that may be overwritten.
    query : array, shape (H, R, D)
    rows : slice
        Of the queries whose visits these are.
    entries, n_keys : int
        Entries of a query, and keys of a head.
    """
    xp, n_rows = backend.xp, query.shape[1]
    places = places_of(n_rows, entries, n_keys)
    query = query[:, rows, :]
    shape = query.shape[:2]
    row, lo, hi = (xp.concat([getattr(part, name) for part in visits]) for name in ("row", "lo", "hi"))
    row = row // n_rows * shape[1] + row % n_rows - rows.start
    if row.shape[0] == 0:
        return near
    order = xp.argsort(lo, stable=True)
    in_order = Opened(*(xp.take(x, order) for x in (row, lo, hi)))
    flat = xp.reshape(query, (-1, query.shape[-1]))
    width = near.acc.shape[-1]
    flat_near = Partial(xp.reshape(near.ref, (-1,)), xp.reshape(near.acc, (-1, width)))

    def generic() -> Partial:
        part = flat_near
        for piece in _pieces(xp, in_order, shape, rows_at_once(backend, entries, width)):
            part = merge(backend, part, _by_tiles(backend, flat, piece, keys, places))
        return part

    part = backend.with_opened(flat_near, flat, in_order, keys, generic)
    return Partial(xp.reshape(part.ref, shape), xp.reshape(part.acc, (*shape, width)))


def _pieces(xp: Namespace, visits: Opened, shape: tuple[int, ...], most: int) -> Iterator[Opened]:
    """Visits of so many of the queries (H, R) at a time, or of one of each head."""
    n_heads, n_rows = shape
    step = max(1, most // n_heads)
    if step >= n_rows:
        yield visits
        return
    place = visits.row % n_rows
    for first in range(0, n_rows, step):
        own, _ = where_true(xp, (place >= first) & (place < first + step))
        if own.shape[0]:
            yield Opened(*(xp.take(x, own) for x in (visits.row, visits.lo, visits.hi)))


def _by_tiles(backend: Backend, query: Array, visits: Opened, keys: Keys, places: int) -> Partial:
    """The partial result of every visit, and these merged by row."""
    xp, n_rows = backend.xp, query.shape[0]
    part = _visits(backend, query, visits, keys, places)
    ref = combined(xp, part.ref, visits.row, n_rows, xp.maximum, -math.inf)
    step = xp.exp(part.ref - xp.take(finite(backend, ref), visits.row))
    return Partial(ref, backend.segment_sum(part.acc * step[:, None], visits.row, n_rows))


def _visits(backend: Backend, query: Array, visits: Opened, keys: Keys, places: int) -> Partial:
    """Partial result of each visit."""
    xp = backend.xp
    intervals = Intervals(keys.order, visits.lo[:, None], visits.hi[:, None])
    order = integers(xp, visits.row.shape[0], visits.row)
    blocks = cut(xp, order, visits.lo, places)
    pairs = Pairs(gather(xp, query, visits.row), keys.key, exact_weights, keys.half)
    part = interval_partial(backend, blocks, intervals, pairs, keys.weighted_value, TILE[1])
    return unblock_partial(backend, blocks, order, part)


def sorted_slots(xp: Namespace, clusters: Clusters, in_cluster: Array) -> tuple[Array, Array]:
    """Keys of each block in the order of their clusters, those in none last.

    Parameters
    ----------
    in_cluster : array of bool, shape (H, A, B, block)

    Returns
    -------
    order : array of int, shape (H, A, B, block)
        Place in its block of the key at each slot.
    start : array of int, shape (H, A, B, K)
        Slot in its block of each cluster's first key.
    """
    count = xp.astype(clusters.count, clusters.labels.dtype)
    labels = xp.where(in_cluster, clusters.labels, count.shape[-1])
    return xp.argsort(labels, axis=-1, stable=True), xp.cumulative_sum(count, axis=-1) - count
