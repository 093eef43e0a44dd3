"""Positive features off one table of runs, not causal: a chunk of keys at a time, in the cache.

Keys stand in runs, and a query sees one of them exactly. With φ_c(q) times the running sums of the features
as the weights of m virtual keys, the two fields of the queries of a run are one product: of the weights of
its keys and of the virtual ones with the values of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.sorting import edges_of_runs
from scatterbrain_backends.numpy_.threads import map_on_threads
from scatterbrain_core.estimator import Projections, lay_out
from scatterbrain_core.low_rank import FeatureMap
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem
from scatterbrain_core.tables import Runs

# Keys that a chunk takes whole runs of: with their features they fit a second-level cache.
CHUNK_KEYS = 1024
# Queries, and weights, of one product.
TILE_QUERIES, TILE_WEIGHTS = 256, 2**16
# Keys of a mean run for each feature: the sums of shorter runs would take more memory than their keys.
LEAST_KEYS_PER_FEATURE = 0.5
# Sums of a feature share one reference. Where a run's largest is this much less, in logs, none may: its part
# of what is left for a query, when the run of the largest is taken out, would lose digits.
MAX_LOG_RANGE = 40.0


@dataclass(frozen=True)
class Head:
    """A head whose keys stand in runs.

    Attributes
    ----------
    query, key, value : ndarray, shape (L, ·)
    key_order : ndarray of int, shape (n,)
        Key at each slot; hidden keys are left out.
    edges : ndarray of int, shape (n_runs + 1,)
        Slots at which runs begin, and n.
    query_order : ndarray of int, shape (Lq,)
        Queries by the run that they see.
    first : ndarray of int, shape (n_groups + 1,)
        Places in `query_order` at which groups of queries of one interval begin, and Lq.
    start, stop : ndarray of int, shape (n_groups,)
        Runs that a group sees: one, or none where start = stop.
    log_query_features, log_key_features : callable
        Of vectors (1, ·, D): logs of their features, (1, ·, m).
    """

    query: Any
    key: Any
    value: Any
    key_order: Any
    edges: Any
    query_order: Any
    first: Any
    start: Any
    stop: Any
    log_query_features: Callable[[Any], Any]
    log_key_features: Callable[[Any], Any]

    @property
    def n_runs(self) -> int:
        """Runs of keys, at least one."""
        return len(self.edges) - 1


def is_taken(problem: Problem, method: Scatterbrain) -> bool:
    """Whether a planned method may have one table of runs and positive features off it."""
    is_plain = not problem.is_causal and problem.dense_mask is None
    is_one = len(method.supports) == 1 and method.debias is None and not method.double_counting
    low_rank = method.low_rank
    return (
        is_plain and is_one and isinstance(low_rank, FeatureMap) and type(low_rank.kernel) is PositiveKernel
    )


def attend(problem: Problem, method: Scatterbrain, projections: Projections, output: Any) -> bool:
    """Write the output of some heads, (H, Lq, Dv); False where that is left to the array-API code."""
    for i in range(problem.n_heads):
        head = lay_out_head(problem.of_heads(slice(i, i + 1)), method, projections)
        if head is None or not _attend_head(head, output[i]):
            return False
    row_mask: Any = problem.row_mask
    if row_mask is not None:
        output[~row_mask] = 0
    return True


def lay_out_head(problem: Problem, method: Scatterbrain, projections: Projections) -> Head | None:
    """A problem of one head laid out; None where its support is no single table of runs."""
    tables: Any = lay_out(problem, method, projections).tables
    key_mask: Any = problem.key_mask
    n_visible = problem.n_keys if key_mask is None else int(key_mask.sum())
    if len(tables) != 1 or not isinstance(tables[0], Runs) or n_visible == 0:
        return None
    table: Any = tables[0]
    key_order = table.key_order[:n_visible]
    if key_mask is not None and not key_mask[0, key_order].all():
        return None
    edges = edges_of_runs(table.run[:n_visible])
    if n_visible < LEAST_KEYS_PER_FEATURE * method.rank * (len(edges) - 1):
        return None
    query_order, group = table.visits(problem.xp)
    first = edges_of_runs(group)
    of_group = query_order[first[:-1]]
    lo, hi = table.lo[of_group, 0], table.hi[of_group, 0]
    start, stop = np.searchsorted(edges, lo), np.searchsorted(edges, hi)
    if max(lo.max(), hi.max()) > n_visible or (edges[start] != lo).any() or (edges[stop] != hi).any():
        return None
    if (stop - start > 1).any() or (np.diff(start) < 0).any():
        return None
    arrays = (problem.query[0], problem.key[0], problem.value[0], key_order, edges)
    assert isinstance(method.low_rank, FeatureMap)
    functions = method.low_rank.row_functions(problem, projections.features)
    return Head(*arrays, query_order, first, start, stop, *functions)


def _attend_head(head: Head, output: Any) -> bool:
    chunks = _chunks(head)
    parts = map_on_threads(lambda runs: _features_of_runs(head, _Keys.of(head, runs)), chunks)
    ref = np.max([part.ref for part in parts], axis=0)
    lowest = np.min([part.lowest for part in parts], axis=0)
    if not (ref - lowest <= MAX_LOG_RANGE).all():  # so with NaN too
        return False
    before, behind = _around(ref, parts)

    def attend_chunk(i: int) -> None:
        off_runs = parts[i].off_runs(ref, before[i], behind[i])
        _attend_chunk(head, _Keys.of(head, chunks[i]), ref, *off_runs, output)

    map_on_threads(attend_chunk, range(len(chunks)))
    return True


def _chunks(head: Head) -> list[tuple[int, int]]:
    """Runs [first, last) of each chunk: those that begin in one stretch of slots."""
    _, first = np.unique(head.edges[:-1] // CHUNK_KEYS, return_index=True)
    return list(pairwise([*first.tolist(), head.n_runs]))


@dataclass(frozen=True)
class _Keys:
    """The keys of a chunk, values with a column of ones, and its runs.

    `edges` are the places at which runs begin, and the number of keys.
    """

    runs: tuple[int, int]
    key: Any
    weighted_value: Any
    edges: Any

    @classmethod
    def of(cls, head: Head, runs: tuple[int, int]) -> _Keys:
        edges = head.edges[runs[0] : runs[1] + 1]
        rows = head.key_order[edges[0] : edges[-1]]
        key = head.key.take(rows, axis=0)
        weighted_value = np.empty((len(rows), head.value.shape[1] + 1), key.dtype)
        weighted_value[:, :-1] = head.value.take(rows, axis=0)
        weighted_value[:, -1] = 1
        return cls(runs, key, weighted_value, edges - edges[0])


@dataclass(frozen=True)
class _FeatureSums:
    """Sums over the keys of each run of a chunk of each feature times weighted values, as exp(ref) * acc.

    Attributes
    ----------
    ref, lowest : ndarray, shape (m,)
        Logs of the largest feature of all keys, and of that of the run where it is least.
    acc : ndarray, shape (n_runs, m, Dv + 1)
    """

    ref: Any
    lowest: Any
    acc: Any

    def total(self, ref: Any) -> Any:
        """Sums over the chunk in units of exp(ref), in float64."""
        return np.exp(self.ref - ref)[:, None] * self.acc.sum(axis=0, dtype=np.float64)

    def off_runs(self, ref: Any, before: Any, behind: Any) -> tuple[Any, Any]:
        """Sums over all keys before each run, and from each run on: one more than there are runs.

        Parameters
        ----------
        ref : ndarray, shape (m,)
            Of all sums.
        before, behind : ndarray, shape (m, Dv + 1)
            Over the chunks before and behind this.
        """
        acc = self.acc * np.exp(self.ref - ref)[:, None]
        up_to, from_on = np.empty((2, len(acc) + 1, *before.shape), acc.dtype)
        up_to[0], from_on[-1] = before, behind
        for run in range(len(acc)):
            np.add(up_to[run], acc[run], out=up_to[run + 1])
        for run in reversed(range(len(acc))):
            np.add(from_on[run + 1], acc[run], out=from_on[run])
        return up_to, from_on


def _features_of_runs(head: Head, keys: _Keys) -> _FeatureSums:
    logs = head.log_key_features(keys.key[None])[0]
    tops = np.maximum.reduceat(logs, keys.edges[:-1], axis=0)
    ref = tops.max(axis=0)
    logs -= ref
    features = np.exp(logs, out=logs)
    acc = np.empty((len(tops), len(ref), keys.weighted_value.shape[1]), features.dtype)
    for run, (a, b) in enumerate(pairwise(keys.edges.tolist())):
        np.matmul(features[a:b].T, keys.weighted_value[a:b], out=acc[run])
    return _FeatureSums(ref, tops.min(axis=0), acc)


def _around(ref: Any, parts: list[_FeatureSums]) -> tuple[Any, Any]:
    """Sums over the chunks before each and over those behind it, in units of exp(ref), in float64."""
    totals = np.stack([part.total(ref) for part in parts])
    before, behind = np.zeros((2, *totals.shape))
    np.cumsum(totals[:-1], axis=0, out=before[1:])
    np.cumsum(totals[:0:-1], axis=0, out=behind[-2::-1])
    return before, behind


def _attend_chunk(head: Head, keys: _Keys, ref: Any, up_to: Any, from_on: Any, output: Any) -> None:
    """Write the output of the queries whose run, or place where it would be, is in a chunk."""
    first_run, last_run = keys.runs
    is_last = last_run == head.n_runs
    groups = slice(
        int(np.searchsorted(head.start, first_run)),
        len(head.start) if is_last else int(np.searchsorted(head.start, last_run)),
    )
    places = head.first[groups.start : groups.stop + 1]
    rows = head.query_order[places[0] : places[-1]]
    if len(rows) == 0:
        return
    query = head.query.take(rows, axis=0)
    log_weights = head.log_query_features(query[None])[0]
    log_weights += ref
    result = np.empty((len(rows), output.shape[1]), output.dtype)
    tiles = _Tiles(keys, query, log_weights, result)
    starts, stops = (x[groups] - first_run for x in (head.start, head.stop))
    of_groups = zip(pairwise((places - places[0]).tolist()), starts.tolist(), stops.tolist(), strict=True)
    for (a, b), start, stop in of_groups:
        off_run = up_to[start] + from_on[stop]
        if stop - start == head.n_runs:
            off_run = off_run[:0]  # features with no key behind them may not set a row's reference
        tiles.attend(a, b, slice(*keys.edges[[start, stop]].tolist()), off_run)
    output[rows] = result


class _Tiles:
    """Queries of a chunk against its runs, in buffers that stay in the cache."""

    def __init__(self, keys: _Keys, query: Any, log_weights: Any, result: Any) -> None:
        self.keys, self.query, self.log_weights, self.result = keys, query, log_weights, result
        most = int(np.diff(keys.edges).max()) + log_weights.shape[1]
        self.n_rows = max(1, min(TILE_QUERIES, TILE_WEIGHTS // most))
        self.weights = np.empty(self.n_rows * most, query.dtype)
        self.values = np.empty((most, keys.weighted_value.shape[1]), query.dtype)
        self.sums = np.empty((self.n_rows, keys.weighted_value.shape[1]), query.dtype)

    def attend(self, first: int, last: int, run: slice, off_run: Any) -> None:
        """Queries [first, last) with the keys of a run, and with the features' sums off it."""
        n_keys = run.stop - run.start
        values = self.values[: n_keys + len(off_run)]
        values[:n_keys] = self.keys.weighted_value[run]
        values[n_keys:] = off_run
        key = self.keys.key[run].T
        for a in range(first, last, self.n_rows):
            b = min(a + self.n_rows, last)
            weights = self.weights[: (b - a) * len(values)].reshape(b - a, -1)
            np.matmul(self.query[a:b], key, out=weights[:, :n_keys])
            weights[:, n_keys:] = self.log_weights[a:b, : len(off_run)]
            weights -= weights.max(axis=1, keepdims=True)
            np.exp(weights, out=weights)
            sums = np.matmul(weights, values, out=self.sums[: b - a])
            np.divide(sums[:, :-1], sums[:, -1:], out=self.result[a:b])
