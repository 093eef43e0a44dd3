"""Queries at the run of keys that they see, and at features off it: `runs` in loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.exponential import exponential
from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.rows import gather, largest_entry, to_exponentials


@loop
def largest(logs: Any, edges: Any, tops: Any) -> None:
    """The largest of each column in each run, into `tops` (n_runs, m); NaN where there is one."""
    for run in range(len(tops)):
        for f in range(logs.shape[1]):
            tops[run, f] = -np.inf
        own = tops[run]
        for i in range(edges[run], edges[run + 1]):
            row = logs[i]
            for f in range(len(row)):
                x, top = row[f], own[f]
                own[f] = x if not x <= top else top


@loop
def sum_features(logs: Any, ref: Any, rows: Any, value: Any, edges: Any, acc: Any) -> None:
    """Sums over the keys of each run of each feature times weighted values, as exp(ref) * acc.

    Parameters
    ----------
    logs : ndarray, shape (n, m)
        Of the features of keys in the order of their runs; overwritten.
    ref : ndarray, shape (m,)
    rows : ndarray of int, shape (n,)
        The keys, rows of `value`.
    value : ndarray, shape (L, Dv)
    edges : ndarray of int, shape (n_runs + 1,)
        First keys of the runs, and n.
    acc : ndarray, shape (n_runs, m, Dv + 1)
        Written to.
    """
    values = np.empty((_longest(edges), acc.shape[2]), value.dtype)
    for run in range(len(acc)):
        first, last = edges[run], edges[run + 1]
        for i in range(first, last):
            row = logs[i]
            for f in range(len(row)):
                row[f] = exponential(row[f] - ref[f])
        _weighted(value, rows[first:last], values)
        np.dot(logs[first:last].T, values[: last - first], acc[run])


@loop
def attend(
    query: Any,
    logs: Any,
    ref: Any,
    places: Any,
    key: Any,
    value: Any,
    rows: Any,
    tiles: Any,
    off_run: Any,
    output: Any,
) -> None:
    """Outputs of queries in tiles: exact at the keys of their run, by features at all others.

    Parameters
    ----------
    query : ndarray, shape (n_queries, D)
        In the order of the tiles.
    logs : ndarray, shape (n_queries, m)
        Of the queries' features; overwritten.
    ref : ndarray, shape (m,)
        The sums stand for exp(ref) times what they are.
    places : ndarray of int, shape (n_queries,)
        Rows of `output`.
    key, value : ndarray, shape (L, D) and (L, Dv)
    rows : ndarray of int, shape (n_keys,)
        Keys in the order of their runs.
    tiles : ndarray of int, shape (n_tiles, 5)
        Queries [first, last), keys [first, last) of a run, perhaps none, and the place in `off_run` of each
        tile; tiles of one run stand together.
    off_run : ndarray, shape (n, m, Dv + 1)
        Sums of the features of the keys of other runs times their values.
    output : ndarray, shape (Lq, Dv)
        Written to.
    """
    most_queries = most_keys = most_weights = 0
    for t in range(len(tiles)):
        n_queries, n_keys = tiles[t, 1] - tiles[t, 0], tiles[t, 3] - tiles[t, 2]
        most_queries, most_keys = max(most_queries, n_queries), max(most_keys, n_keys)
        most_weights = max(most_weights, n_queries * n_keys)
    columns = value.shape[1] + 1
    keys, values = np.empty((most_keys, key.shape[1]), key.dtype), np.empty((most_keys, columns), key.dtype)
    weights = np.empty(most_weights, key.dtype)
    near = np.empty(most_queries * columns, key.dtype)
    far = np.empty_like(near)
    gathered = -1
    for t in range(len(tiles)):
        first, last, lo, hi = tiles[t, 0], tiles[t, 1], tiles[t, 2], tiles[t, 3]
        if lo < hi and lo != gathered:
            gather(key, rows[lo:hi], keys)
            _weighted(value, rows[lo:hi], values)
            gathered = lo
        n = last - first
        own_weights = weights[: n * (hi - lo)].reshape(n, hi - lo)
        own_near, own_far = near[: n * columns].reshape(n, columns), far[: n * columns].reshape(n, columns)
        _products(query[first:last], keys[: hi - lo].T, own_weights)
        _exponentials(own_weights, logs[first:last], ref)
        _products(own_weights, values[: hi - lo], own_near)
        _products(logs[first:last], off_run[tiles[t, 4]], own_far)
        for i in range(n):
            own, near_row, far_row = output[places[first + i]], own_near[i], own_far[i]
            per_total = 1 / (near_row[columns - 1] + far_row[columns - 1])
            for c in range(len(own)):
                own[c] = (near_row[c] + far_row[c]) * per_total


@loop
def _longest(edges: Any) -> int:
    longest = 0
    for run in range(len(edges) - 1):
        longest = max(longest, edges[run + 1] - edges[run])
    return longest


@loop
def _weighted(value: Any, rows: Any, out: Any) -> None:
    """Rows of values with a one behind each."""
    gather(value, rows, out)
    for i in range(len(rows)):
        out[i, value.shape[1]] = 1


@loop
def _products(a: Any, b: Any, out: Any) -> None:
    """Into `out` the matrix product, of no columns too."""
    if a.shape[1]:
        np.dot(a, b, out)
        return
    for i in range(len(out)):
        for j in range(out.shape[1]):
            out[i, j] = 0


@loop
def _exponentials(near: Any, far: Any, ref: Any) -> None:
    """Two parts of each row, `far` with `ref` added, to exponentials of what is below the largest entry."""
    for i in range(len(near)):
        near_row, far_row = near[i], far[i]
        for j in range(len(far_row)):
            far_row[j] += ref[j]
        top = largest_entry(far_row, largest_entry(near_row, near.dtype.type(-np.inf)))
        to_exponentials(near_row, top)
        to_exponentials(far_row, top)
