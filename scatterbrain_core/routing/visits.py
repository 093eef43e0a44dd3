"""Queries at the clusters they opened: the queries that chose a cluster form its tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, finite, nothing_seen
from scatterbrain_core.problem import HalfPrecision
from scatterbrain_core.routing.nodes import Clusters
from scatterbrain_core.routing.view import View
from scatterbrain_core.rows import Pairs, exact_weights
from scatterbrain_core.sparse_correction import interval_partial, unblock_partial
from scatterbrain_core.tables import Intervals
from scatterbrain_core.tiles import cut, gather, integers, power_of_two, where_true

TILE = (64, 16)
LEAST_PLACES = 8


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


def places_of(n_rows: int, entries: int, n_keys: int) -> int:
    """Places of a block for the visits of a cluster, by how many queries of n_rows open each on average."""
    return power_of_two(n_rows * entries // max(n_keys, 1), LEAST_PLACES, TILE[0])


def opened_partial(
    backend: Backend, query: Array, opened: Array, view: View, keys: Keys, places: int
) -> Partial:
    """Exact partial result of queries (H, R, D) on the clusters they opened, `ref` of shape (H, R).

    Parameters
    ----------
    opened : array of bool, shape (H, R, K)
    places : int
        Of a block of visits to one cluster.
    """
    xp = backend.xp
    n_heads, n_rows, n_clusters = opened.shape
    is_visit = xp.reshape(xp.permute_dims(opened, (0, 2, 1)), (-1,))
    place, number = where_true(xp, is_visit)
    if place.shape[0] == 0:
        return nothing_seen(backend, query[..., 0], keys.weighted_value)
    cluster = place // n_rows
    row = cluster // n_clusters * n_rows + place % n_rows
    part = _visits(backend, query, cluster, row, view, keys, places)
    seen = xp.where(is_visit, xp.take(part.ref, xp.maximum(number - 1, xp.zeros_like(number))), -math.inf)
    ref = xp.max(xp.reshape(seen, (n_heads, n_clusters, n_rows)), axis=1)
    step = xp.exp(part.ref - xp.take(finite(backend, xp.reshape(ref, (-1,))), row))
    acc = backend.segment_sum(part.acc * step[:, None], row, n_heads * n_rows)
    return Partial(ref, xp.reshape(acc, (n_heads, n_rows, acc.shape[-1])))


def _visits(
    backend: Backend, query: Array, cluster: Array, row: Array, view: View, keys: Keys, places: int
) -> Partial:
    """Partial result of each visit: one query row at one cluster."""
    xp = backend.xp
    count = xp.astype(view.count, view.start.dtype)
    lo, size = (xp.take(xp.reshape(x, (-1,)), cluster) for x in (view.start, count))
    intervals = Intervals(keys.order, lo[:, None], (lo + size)[:, None])
    queries = gather(xp, xp.reshape(query, (-1, query.shape[-1])), row)
    order = integers(xp, row.shape[0], row)
    blocks = cut(xp, order, cluster, places)
    pairs = Pairs(queries, keys.key, exact_weights, keys.half)
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
