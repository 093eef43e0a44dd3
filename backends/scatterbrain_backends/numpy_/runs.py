"""Positive features off one table of runs, not causal: stacks of runs at a time, in the cache.

Keys stand in runs, and a query sees one of them exactly. With φ_c(q) times the running sums of the features
as the weights of m virtual keys, the two fields of the queries of a run are one product: of the weights of
its keys and of the virtual ones with the values of both.

One NumPy call does a stack of runs: after each call a thread waits for the interpreter, and where two threads
make many short calls they wait longer than they work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.sorting import edges_of_runs
from scatterbrain_backends.numpy_.stacks import filled_up, in_stacks
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
    parts = map_on_threads(lambda chunk: _feature_sums(head, chunk), chunks)
    ref = np.max([part.ref for part in parts], axis=0)
    lowest = np.min([part.lowest for part in parts], axis=0)
    if not (ref - lowest <= MAX_LOG_RANGE).all():  # so with NaN too
        return False
    around = _around(ref, parts)

    def attend_chunk(i: int) -> None:
        _attend_chunk(head, chunks[i], ref, partial(parts[i].off_runs, ref, around[i]), output)

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
    runs = np.arange(*chunk)
    n_keys = head.edges[runs + 1] - head.edges[runs]
    parts = []
    stacks = list(in_stacks(n_keys, np.full(len(runs), head.value.shape[1] + 1)))
    for stack in stacks:
        slots, is_own = filled_up(head.edges[runs[stack]], n_keys[stack])
        keys = head.key_order[slots]
        logs = head.log_key_features(head.key.take(keys, axis=0).reshape(1, -1, head.key.shape[1]))
        logs = logs.reshape(*keys.shape, -1)
        parts.append((logs, logs.max(axis=1), _weighted_values(head.value, keys, is_own, 0)))
    tops = np.concatenate([top for _, top, _ in parts])
    ref = tops.max(axis=0)
    acc = np.empty((len(runs), len(ref), head.value.shape[1] + 1), head.value.dtype)
    for stack, (logs, _, values) in zip(stacks, parts, strict=True):
        logs -= ref
        acc[stack] = np.matmul(np.exp(logs, out=logs).swapaxes(1, 2), values)
    return _FeatureSums(ref, tops.min(axis=0), acc)


def _weighted_values(value: Any, keys: Any, is_own: Any, n_more: int) -> Any:
    """Values with a column of ones, and zeros for what only fills up a row; room for `n_more` rows."""
    values = np.empty((len(keys), keys.shape[1] + n_more, value.shape[1] + 1), value.dtype)
    own = values[:, : keys.shape[1]]
    own[..., :-1] = value.take(keys, axis=0)
    own[..., -1] = 1
    own[~is_own] = 0
    return values


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
    head: Head, chunk: tuple[int, int], ref: Any, off_runs: Callable[[Any, Any], Any], output: Any
) -> None:
    """Write the output of the queries whose run, or place where it would be, is in a chunk."""
    tiles = _Tiles.of(head, *chunk)
    for is_seen in (False, True):
        # Features with no key behind them may not set a row's reference.
        rank = 0 if is_seen and head.n_runs == 1 else len(ref)
        some = tiles.take(np.flatnonzero((tiles.n_keys > 0) == is_seen))
        for stack in in_stacks(some.n_queries, some.n_keys + rank):
            tile = some.take(stack)
            off_run = off_runs(tile.start - chunk[0], tile.stop - chunk[0])[:, :rank]
            _attend_stack(head, tile, ref[:rank], off_run, output)


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

    def take(self, index: Any) -> _Tiles:
        """Some of the tiles."""
        arrays = (self.first, self.n_queries, self.start, self.stop, self.n_keys)
        return _Tiles(*(x[index] for x in arrays))


def _attend_stack(head: Head, tiles: _Tiles, ref: Any, off_run: Any, output: Any) -> None:
    """Write the output of some tiles at once, from sums (n_tiles, rank, Dv + 1) off their runs too."""
    slots, is_own = filled_up(head.edges[tiles.start], tiles.n_keys)
    places, _ = filled_up(tiles.first, tiles.n_queries)
    keys, rows = head.key_order[slots], head.query_order[places]
    n_keys, rank = keys.shape[1], len(ref)
    query = head.query.take(rows, axis=0)
    weights = np.empty((*rows.shape, n_keys + rank), query.dtype)
    np.matmul(query, head.key.take(keys, axis=0).swapaxes(1, 2), out=weights[..., :n_keys])
    if rank:
        log_features = head.log_query_features(query.reshape(1, rows.size, query.shape[-1]))
        np.add(log_features.reshape(*rows.shape, rank), ref, out=weights[..., n_keys:])
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    values = _weighted_values(head.value, keys, is_own, rank)
    values[:, n_keys:] = off_run
    sums = np.matmul(weights, values)
    output[rows.reshape(-1)] = (sums[..., :-1] / sums[..., -1:]).reshape(rows.size, output.shape[1])
