"""Queries at the clusters that they opened: a cluster's keys once, with all queries that chose it."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.rows import gather, to_weights
from scatterbrain_backends.numpy_.visiting import TILE_QUERIES


@loop
def merge(
    query: Any, row: Any, lo: Any, hi: Any, order: Any, key: Any, value: Any, ref: Any, acc: Any
) -> None:
    """Merge what visits (row, lo, hi), by cluster, see into the partial results of the query rows, in place.

    Parameters
    ----------
    query, key, value : ndarray, shape (R, D), (n_rows, D) and (n_rows, Dv + 1)
    row, lo, hi : ndarray of int, shape (n_visits,)
        A query row, and its slots [lo, hi) of `order`; equal slots stand together.
    order : ndarray of int
        Key row at each slot.
    ref, acc : ndarray, shape (R,) and (R, Dv + 1)
    """
    tile, sums = (
        np.zeros((TILE_QUERIES, query.shape[1]), query.dtype),
        np.empty((TILE_QUERIES, value.shape[1]), query.dtype),
    )
    first = 0
    for last in range(1, len(row) + 1):
        if last < len(row) and lo[last] == lo[first]:
            continue
        slots = order[lo[first] : hi[first]]
        keys, values = (
            np.empty((len(slots), key.shape[1]), key.dtype),
            np.empty((len(slots), value.shape[1]), key.dtype),
        )
        gather(key, slots, keys)
        gather(value, slots, values)
        logits = np.empty((TILE_QUERIES, len(slots)), query.dtype)
        for start in range(first, last, TILE_QUERIES):
            rows = row[start : min(start + TILE_QUERIES, last)]
            gather(query, rows, tile)
            np.dot(tile, keys.T, logits)
            _weigh(logits, rows, ref, acc)
            np.dot(logits, values, sums)
            for i in range(len(rows)):
                own, more = acc[rows[i]], sums[i]
                for c in range(len(own)):
                    own[c] += more[c]
        first = last


@loop
def _weigh(logits: Any, rows: Any, ref: Any, acc: Any) -> None:
    """Logits to weights, and rows of sums to the references of these; places behind the last query are 0."""
    for i in range(len(rows)):
        ref[rows[i]] = to_weights(logits[i], ref[rows[i]], acc[rows[i]])
    for i in range(len(rows), len(logits)):
        for j in range(logits.shape[1]):
            logits[i, j] = 0
