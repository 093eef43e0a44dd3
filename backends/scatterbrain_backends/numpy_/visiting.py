"""Queries at the clusters that they opened: a cluster's keys once, with all queries that chose it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from scatterbrain_backends.numpy_ import compiled
from scatterbrain_backends.numpy_.sorting import edges_of_runs
from scatterbrain_core.normalization import Partial
from scatterbrain_core.routing.visits import Keys, Opened

# Queries of one product: of one shape always, so that the rounding of a query does not depend on how many
# others chose the cluster.
TILE_QUERIES = 32


def with_opened(near: Partial, query: Any, visits: Opened, keys: Keys) -> Partial:
    """As `routing.visits.with_opened`, for query rows (R, D); `near` is overwritten."""
    every: Any = visits
    lo, row = every.lo, every.row
    ref, acc = near.ref, near.acc
    if compiled.is_available():
        from scatterbrain_backends.numpy_.compiled.visiting import merge

        query = np.ascontiguousarray(query)
        merge(query, row, lo, every.hi, keys.order, keys.key, keys.weighted_value, ref, acc)
        return Partial(ref, acc)
    edges = edges_of_runs(lo).tolist()
    starts, stops = lo[edges[:-1]].tolist(), every.hi[edges[:-1]].tolist()
    for (first, last), start, stop in zip(pairwise(edges), starts, stops, strict=True):
        _merge_cluster(query, row[first:last], keys, slice(start, stop), ref, acc)
    return Partial(ref, acc)


def _merge_cluster(query: Any, rows: Any, keys: Any, slots: slice, ref: Any, acc: Any) -> None:
    """Merge what some query rows see of one cluster into their partial results, in place."""
    key_rows = keys.order[slots]
    n_tiles = -(-len(rows) // TILE_QUERIES)
    # Places behind the last query hold the first one again.
    padded = np.full(n_tiles * TILE_QUERIES, rows[0])
    padded[: len(rows)] = rows
    tiles = query.take(padded, axis=0).reshape(n_tiles, TILE_QUERIES, -1)
    weights = np.matmul(tiles, keys.key.take(key_rows, axis=0).T)
    top, before = weights.max(axis=2), ref[padded].reshape(n_tiles, -1)
    together = np.maximum(top, before)
    weights -= together[..., None]
    np.exp(weights, out=weights)
    sums = np.matmul(weights, keys.weighted_value.take(key_rows, axis=0))
    sums = sums.reshape(len(padded), -1)[: len(rows)]
    kept = np.exp(before - together).reshape(-1)[: len(rows)]
    sums += acc.take(rows, axis=0) * kept[:, None]
    acc[rows] = sums
    ref[rows] = together.reshape(-1)[: len(rows)]
