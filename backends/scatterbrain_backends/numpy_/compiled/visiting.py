"""Queries at the clusters that they opened: a cluster's keys once, with all queries that chose it."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.exponential import exponential
from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.rows import gather
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
    top, kept = np.empty(TILE_QUERIES, query.dtype), np.empty(TILE_QUERIES, query.dtype)
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
        # One query after the other in memory: vectors are of queries, of which there are as many always.
        logits = np.empty((len(slots), TILE_QUERIES), query.dtype)
        for start in range(first, last, TILE_QUERIES):
            rows = row[start : min(start + TILE_QUERIES, last)]
            gather(query, rows, tile)
            np.dot(keys, tile.T, logits)
            _weigh(logits, rows, ref, top, kept)
            np.dot(logits.T, values, sums)
            for i in range(len(rows)):
                own, more, before = acc[rows[i]], sums[i], kept[i]
                for c in range(len(own)):
                    own[c] = own[c] * before + more[c]
        first = last


@loop
def _weigh(logits: Any, rows: Any, ref: Any, top: Any, kept: Any) -> None:
    """Logits to weights in units of new references of the rows, and a unit of the old in these."""
    least, zero, n = logits.dtype.type(-np.inf), logits.dtype.type(0), logits.shape[1]
    for i in range(n):
        kept[i] = top[i] = ref[rows[i]] if i < len(rows) else least
    for k in range(len(logits)):
        for i in range(n):
            top[i] = logits[k, i] if logits[k, i] > top[i] else top[i]
    for i in range(len(rows)):
        ref[rows[i]] = top[i]
    for i in range(n):
        top[i] = top[i] if top[i] > least else zero
        kept[i] = exponential(kept[i] - top[i])
    for k in range(len(logits)):
        for i in range(n):
            logits[k, i] = exponential(logits[k, i] - top[i])
