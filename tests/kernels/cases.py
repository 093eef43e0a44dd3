"""Visits as the core makes them, of NumPy arrays, and their sums by the definition, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import array_api_compat.numpy as xp
import ml_dtypes
import numpy as np

from scatterbrain_backends.cupy_.forms import Form, HalfTile
from scatterbrain_backends.cupy_.launches import Launch
from scatterbrain_backends.cupy_.tile_partial import half_stride, launch
from scatterbrain_backends.visits import inputs
from scatterbrain_core.problem import HalfPrecision
from scatterbrain_core.rows import Pairs, exact_weights, unit_weights
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.tables import Intervals, Table
from scatterbrain_core.tiles import Blocks, cut


@dataclass(frozen=True)
class Case:
    """Sizes of some visits.

    Attributes
    ----------
    n_queries, n_keys, dim, columns : int
    n_visits : int
        Intervals of a query row.
    longest : int
        Most slots of an interval.
    size : int
        Places of a block.
    n_excluded : int
        Tables whose pairs are left out, of two intervals and more.
    is_unit : bool
        All pairs weigh one.
    dtype : str
        Of the arrays; those of half precision are in float32 once queries and keys are scaled.
    """

    n_queries: int = 90
    n_keys: int = 70
    dim: int = 20
    columns: int = 9
    n_visits: int = 2
    longest: int = 40
    size: int = 64
    n_excluded: int = 0
    is_unit: bool = False
    dtype: str = "float32"


HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
FACTORS = (-((1 / 3) ** 0.5), (1 / 3) ** 0.5)  # of queries and keys, which leave none of half precision


def _rounded(case: Case, *arrays: np.ndarray) -> list[np.ndarray]:
    """Query, key and value in the dtype that the core works in."""
    if case.dtype not in HALVES:
        return [x.astype(case.dtype) for x in arrays]
    factors = (*FACTORS, 1.0)
    halves = (x.astype(HALVES[case.dtype]).astype(np.float32) for x in arrays)
    return [x * np.float32(factor) for x, factor in zip(halves, factors, strict=True)]


def _intervals(rng: np.random.Generator, case: Case, n_visits: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint intervals of the slots, some of them empty and some that end before they start."""
    edges = np.linspace(0, case.n_keys, n_visits + 1).astype(np.int64)
    lo = rng.integers(edges[:-1], edges[1:] + 1, (case.n_queries, n_visits))
    hi = np.minimum(lo + rng.integers(-3, case.longest + 1, lo.shape), edges[1:])
    return lo, hi


def make_visits(rng: np.random.Generator, case: Case) -> Visits:
    """Random visits in blocks that start afresh at every tenth of the queries."""
    shapes = ((case.n_queries, case.dim), (case.n_keys, case.dim), (case.n_keys, case.columns))
    query, key, value = _rounded(case, *map(rng.standard_normal, shapes))
    value[:, -1] = rng.random(case.n_keys) < 0.9  # as of hidden keys, whose weight is zero
    order = rng.permutation(case.n_keys)
    lo, hi = _intervals(rng, case, case.n_visits)
    visits = np.argsort(rng.random(lo.size), kind="stable")
    group = np.sort(rng.integers(0, 5, lo.size))
    excluded = []
    for number in range(case.n_excluded):
        own = rng.permutation(case.n_keys)
        excluded.append(Table(own, *_intervals(rng, case, 2 + number), np.argsort(own), (64, 16)))
    blocks = cut(xp, visits, group, case.size)
    half = HalfPrecision(case.dtype, *FACTORS) if case.dtype in HALVES else None
    pairs = Pairs(query, key, unit_weights if case.is_unit else exact_weights, half)
    return Visits(blocks, Intervals(order, lo, hi), pairs, value, 16, tuple(excluded))


def sink(case: Case) -> Visits:
    """Visits to all keys: the first has a large logit and no value, the others positive values."""
    visits = make_visits(np.random.default_rng(0), replace(case, longest=0))
    rng, pairs = np.random.default_rng(1), visits.pairs
    query, key, value = (np.zeros(x.shape) for x in (pairs.query, pairs.key, visits.weighted_value))
    query[:, 0], key[0, 0] = 4, 17 / 4
    if case.dtype in HALVES:  # whose factors multiply to -1/3
        key *= -3
    value[1:] = rng.uniform(0.5, 1.5, value[1:].shape)
    value[:, -1] = 1
    query, key, value = _rounded(case, query, key, value)
    order = np.arange(case.n_keys)
    lo = np.zeros((case.n_queries, 1), np.int64)
    pairs = replace(pairs, query=query, key=key)
    return replace(
        visits, intervals=Intervals(order, lo, lo + case.n_keys), pairs=pairs, weighted_value=value
    )


def prepare(visits: Visits, tile: Form) -> tuple[Launch, np.ndarray, np.ndarray]:
    """The kernel's launch and its outputs, of which every entry is to be written."""
    arrays = [np.ascontiguousarray(x) for x in inputs(xp, visits)]
    dtype = arrays[0].dtype
    ref = np.full(visits.blocks.rows.shape, np.nan, dtype)
    acc = np.full((*ref.shape, visits.weighted_value.shape[1]), np.nan, dtype)
    halves = rounded_rows(visits) if isinstance(tile, HalfTile) else []
    launched = launch(tile, visits, [*arrays, ref, acc], [x.ctypes.data for x in arrays[:2]], halves)
    return launched, ref, acc


def rounded_rows(visits: Visits) -> list[np.ndarray]:
    """Keys and values in half precision, as bits: what `half_rows` makes, by NumPy."""
    half, key, value = visits.pairs.half, visits.pairs.key, visits.weighted_value
    return [
        half.once("key", key, lambda: bits_of(key / np.float32(half.key_factor), half.dtype)),
        half.once("value", value, lambda: bits_of(value[:, :-1], half.dtype)),
    ]


def bits_of(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rows rounded to half precision, padded to a stride of 16 bytes."""
    bits = np.zeros((len(x), half_stride(x.shape[1])), np.int16)
    bits[:, : x.shape[1]] = x.astype(HALVES[dtype]).view(np.int16)
    return bits


def by_definition(visits: Visits) -> tuple[np.ndarray, np.ndarray]:
    """`ref` and `acc` in float64, one visit at a time."""
    blocks: Blocks = visits.blocks
    query, key, value = (
        np.asarray(x, dtype=np.float64) for x in (visits.pairs.query, visits.pairs.key, visits.weighted_value)
    )
    ref = np.full(blocks.rows.shape, -np.inf)
    acc = np.zeros((*ref.shape, value.shape[1]))
    table = visits.intervals
    for place in np.argwhere(blocks.filled):
        row, r = divmod(int(blocks.rows[tuple(place)]), table.n_visits)
        keys = table.key_order[table.lo[row, r] : max(table.hi[row, r], table.lo[row, r])]
        keys = [j for j in keys if not any(_holds(other, row, j) for other in visits.excluded)]
        if keys:
            logits = key[keys] @ query[row] * (visits.pairs.weights is exact_weights)
            ref[tuple(place)] = logits.max()
            acc[tuple(place)] = np.exp(logits - logits.max()) @ value[keys]
    return ref, acc


def _holds(table: Table, row: int, key: int) -> bool:
    slot = table.slot[key]
    return any(lo <= slot < hi for lo, hi in zip(table.lo[row], table.hi[row], strict=True))


def error(visits: Visits, ref: np.ndarray, acc: np.ndarray) -> float:
    """Largest error of the sums, in units of the largest sum of a row's weights; inf where rows differ."""
    expected_ref, expected = by_definition(visits)
    seen = np.isfinite(expected_ref)
    if not (np.array_equal(np.isfinite(ref), seen) and np.isfinite(acc).all() and not acc[~seen].any()):
        return np.inf
    off = np.abs(ref[seen] - expected_ref[seen]).max(initial=0.0)
    return max(off, np.abs(acc - expected).max(initial=0.0))
