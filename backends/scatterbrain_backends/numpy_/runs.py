"""Positive features off one table of runs, not causal: a tile at a time in the cache, in compiled loops.

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

from scatterbrain_backends.numpy_ import compiled
from scatterbrain_backends.numpy_.sorting import edges_of_runs
from scatterbrain_backends.numpy_.threads import map_on_threads
from scatterbrain_core.estimator import Projections, lay_out
from scatterbrain_core.low_rank import FeatureMap
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem
from scatterbrain_core.tables import Runs

# Keys that a chunk takes whole runs of, and the most runs.
CHUNK_KEYS, CHUNK_RUNS = 4096, 64
# Weights of a tile; but as many queries as make a copy of the keys cheap.
TILE_WEIGHTS, LEAST_TILE_QUERIES, TILE_QUERIES = 2**16, 64, 256
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
    if not compiled.is_available():
        return False
    is_plain = not problem.is_causal and problem.dense_mask is None
    is_one = len(method.supports) == 1 and method.debias is None and not method.double_counting
    low_rank = method.low_rank
    return (
        is_plain and is_one and isinstance(low_rank, FeatureMap) and type(low_rank.kernel) is PositiveKernel
    )


def attend(problem: Problem, method: Scatterbrain, projections: Projections, output: Any) -> bool:
    """Write the output of one head, (1, Lq, Dv); False where that is left to the array-API code."""
    head = lay_out_head(problem, method, projections)
    if head is None or not _attend_head(head, output[0]):
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
    parts = map_on_threads(lambda chunk: _feature_sums(head, chunk), chunks)
    ref = np.max([part.ref for part in parts], axis=0)
    lowest = np.min([part.lowest for part in parts], axis=0)
    if not (ref - lowest <= MAX_LOG_RANGE).all():  # so with NaN too
        return False
    around = _around(ref, parts)

    def attend_chunk(i: int) -> None:
        _attend_chunk(head, chunks[i], ref, parts[i], around[i], output)

    map_on_threads(attend_chunk, range(len(chunks)))
    return True


def _chunks(head: Head) -> list[tuple[int, int]]:
    """Runs [first, last) of each chunk: not too many of those that begin in one stretch of slots."""
    _, first = np.unique(head.edges[:-1] // CHUNK_KEYS, return_index=True)
    stretches = pairwise([*first.tolist(), head.n_runs])
    return [
        (run, min(run + CHUNK_RUNS, last))
        for first, last in stretches
        for run in range(first, last, CHUNK_RUNS)
    ]


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

    def off_runs(self, ref: Any, around: Any, start: Any, stop: Any) -> Any:
        """Sums over all keys but those of some runs, in units of exp(ref): added up, never a difference.

        Parameters
        ----------
        ref : ndarray, shape (m,)
            Of all sums.
        around : ndarray, shape (m, Dv + 1)
            Over all keys of other chunks.
        start, stop : ndarray of int, shape (n,)
            Runs of the chunk to leave out.

        Returns
        -------
        ndarray, shape (n, m, Dv + 1)
        """
        run = np.arange(len(self.acc))
        is_off = (run < start[:, None]) | (run >= stop[:, None])
        sums = is_off.astype(self.acc.dtype) @ self.acc.reshape(len(run), -1)
        sums = sums.reshape(-1, *around.shape)
        sums *= np.exp(self.ref - ref)[:, None]
        sums += around
        return sums


def _feature_sums(head: Head, chunk: tuple[int, int]) -> _FeatureSums:
    from scatterbrain_backends.numpy_.compiled.runs import largest, sum_features

    rows, edges = _keys_of_chunk(head, chunk)
    logs = head.log_key_features(head.key.take(rows, axis=0)[None])[0]
    tops = np.empty((len(edges) - 1, logs.shape[1]), logs.dtype)
    largest(logs, edges, tops)
    ref = tops.max(axis=0)
    acc = np.empty((*tops.shape, head.value.shape[1] + 1), logs.dtype)
    sum_features(logs, ref, rows, head.value, edges, acc)
    return _FeatureSums(ref, tops.min(axis=0), acc)


def _keys_of_chunk(head: Head, chunk: tuple[int, int]) -> tuple[Any, Any]:
    """Keys in the order of their runs, and first keys of runs."""
    edges = head.edges[chunk[0] : chunk[1] + 1]
    return head.key_order[edges[0] : edges[-1]], edges - edges[0]


def _around(ref: Any, parts: list[_FeatureSums]) -> Any:
    """Sums over all chunks but each, in units of exp(ref), shape (n_chunks, m, Dv + 1)."""
    totals = [np.exp(part.ref - ref)[:, None] * part.acc.sum(axis=0, dtype=np.float64) for part in parts]
    is_other = 1 - np.eye(len(parts))
    return (
        (is_other @ np.reshape(totals, (len(parts), -1)))
        .reshape(-1, *totals[0].shape)
        .astype(parts[0].acc.dtype)
    )


def _attend_chunk(
    head: Head, chunk: tuple[int, int], ref: Any, sums: _FeatureSums, around: Any, output: Any
) -> None:
    """Write the output of the queries whose run, or place where it would be, is in a chunk."""
    from scatterbrain_backends.numpy_.compiled.runs import attend

    tiles = _Tiles.of(head, *chunk)
    if not len(tiles.first):
        return
    places = head.query_order[tiles.first[0] : tiles.first[-1] + tiles.n_queries[-1]]
    query = head.query.take(places, axis=0)
    rows, edges = _keys_of_chunk(head, chunk)
    logs = head.log_query_features(query[None])[0]
    pairs, off = np.unique(np.stack([tiles.start, tiles.stop]) - chunk[0], axis=1, return_inverse=True)
    off_run = sums.off_runs(ref, around, *pairs)
    first = tiles.first - tiles.first[0]
    keys = edges[tiles.start - chunk[0]], edges[tiles.stop - chunk[0]]
    of_tiles = np.stack([first, first + tiles.n_queries, *keys, off], axis=1)
    # Features with no key behind them may not set a row's reference.
    is_alone = (tiles.n_keys > 0) & (head.n_runs == 1)
    for rank, is_own in ((len(ref), ~is_alone), (0, is_alone)):
        if is_own.any():
            features = (np.ascontiguousarray(logs[:, :rank]), ref[:rank])
            sums_off = np.ascontiguousarray(off_run[:, :rank])
            attend(query, *features, places, head.key, head.value, rows, of_tiles[is_own], sums_off, output)


@dataclass(frozen=True)
class _Tiles:
    """Queries that see one run, or none, each tile few enough for a product.

    Attributes
    ----------
    first, n_queries : ndarray of int, shape (n_tiles,)
        Places in `query_order`.
    start, stop : ndarray of int, shape (n_tiles,)
        Runs, as in `Head`.
    n_keys : ndarray of int, shape (n_tiles,)
    """

    first: Any
    n_queries: Any
    start: Any
    stop: Any
    n_keys: Any

    @classmethod
    def of(cls, head: Head, first_run: int, last_run: int) -> _Tiles:
        """Tiles whose run, or place of it, is in [first_run, last_run); behind all runs, in the last."""
        ends = np.searchsorted(head.start, (first_run, last_run + (last_run == head.n_runs)))
        groups = np.arange(*ends)
        count = head.first[groups + 1] - head.first[groups]
        start, stop = head.start[groups], head.stop[groups]
        n_keys = head.edges[stop] - head.edges[start]
        most = np.clip(TILE_WEIGHTS // np.maximum(n_keys, 1), LEAST_TILE_QUERIES, TILE_QUERIES)
        n_tiles = -(-count // most)
        # Of a group, tiles of like size: n, n + 1, ... queries.
        nth = np.arange(n_tiles.sum()) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
        count, parts = np.repeat(count, n_tiles), np.repeat(n_tiles, n_tiles)
        begin, end = nth * count // parts, (nth + 1) * count // parts
        first = np.repeat(head.first[groups], n_tiles) + begin
        return cls(first, end - begin, *(np.repeat(x, n_tiles) for x in (start, stop, n_keys)))
