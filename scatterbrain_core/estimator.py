"""The estimator: a planned method run on a checked problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from scatterbrain_core._typing import Array
from scatterbrain_core.debiasing import sample
from scatterbrain_core.dense import (
    Block,
    block_partial,
    far_block,
    map_blocks,
    near_block,
    pairs_of_block,
)
from scatterbrain_core.layout import Layout
from scatterbrain_core.low_rank import Features
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import Partial, merge, normalize, nothing_seen, select
from scatterbrain_core.off_support import far_field, in_order
from scatterbrain_core.problem import Problem
from scatterbrain_core.random import Draws, to_device
from scatterbrain_core.routing.solve import solve_routed
from scatterbrain_core.rows import make_rows
from scatterbrain_core.sparse import AllPairs, RoutedClusters, Support
from scatterbrain_core.sparse_correction import near_field, pairs_per_query
from scatterbrain_core.tables import Table
from scatterbrain_core.tiles import zeros


@dataclass(frozen=True)
class Projections:
    """The random draws of one call, on the device.

    Attributes
    ----------
    features : tuple of array
        Of the low-rank part.
    supports : list of tuple of array
        Of each sparse part.
    columns : array of int, shape (s,), or None
        Positions of the sampled keys.
    """

    features: tuple[Array, ...]
    supports: list[tuple[Array, ...]]
    columns: Array | None


@dataclass(frozen=True)
class Result:
    """Partial results of every query, `ref` of shape (H, Lq).

    Attributes
    ----------
    near : Partial
        On the support.
    far : list of Partial
        Off the support, one a group of features.
    pairs : array, shape (H, Lq)
        Exact pairs of each query; zeros unless they were asked for.
    rank : array, shape (H, Lq), or None
        Rank of the low-rank part that each query sees, where that is not the method's.
    """

    near: Partial
    far: list[Partial]
    pairs: Array
    rank: Array | None = None


def attend(problem: Problem, method: Scatterbrain, projections: Projections) -> Array:
    """Output of a planned method, shape (H, Lq, Dv)."""
    groups = feature_slices(method, 1)

    def generic(part: Problem, drawn: Projections) -> Array:
        part = part.afresh()  # the list of groups lives on
        result = _solve_heads(part, method, drawn, groups, count_pairs=False)
        return normalize(part.backend, total(part, result))[0]

    return problem.backend.attend(head_groups(problem, method), method, projections, generic)


def draw(problem: Problem, method: Scatterbrain, draws: Draws) -> Projections:
    """All draws of a planned method; its parts never share any."""
    dim, n_queries, n_keys = problem.dim, problem.n_queries, problem.n_keys

    def sent(drawn: tuple[Any, ...]) -> tuple[Array, ...]:
        return tuple(to_device(problem.xp, x, problem.like) for x in drawn)

    low_rank = method.low_rank
    features = () if low_rank is None else low_rank.draw(draws.feature_generator(), dim, n_keys)
    supports = [
        sent(part.draw(draws.support_generator(i), dim, n_queries, n_keys))
        for i, part in enumerate(method.supports)
    ]
    columns = None
    if method.debias is not None and n_keys > 0:
        columns = to_device(problem.xp, draws.columns(method.debias, n_keys), problem.like)
    return Projections(sent(features), supports, columns)


def feature_slices(method: Scatterbrain, n_groups: int) -> list[slice]:
    """The features in at most `n_groups` nearly equal groups; none without a low-rank part."""
    if method.low_rank is None:
        return []
    unit = method.low_rank.unit
    n_rows = method.rank // unit
    n_groups = min(n_groups, n_rows) if method.low_rank.has_error else 1
    edges = [unit * (n_rows * g // n_groups) for g in range(n_groups + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


def solve(
    problem: Problem,
    method: Scatterbrain,
    projections: Projections,
    groups: Sequence[slice],
    count_pairs: bool = False,
) -> Result:
    """Run a planned method, a few heads at a time so that memory stays linear and small.

    Parameters
    ----------
    groups : sequence of slice
        Groups of features, each of which gives a far field of its own.
    """

    def of_group(part: Problem) -> Result:
        return _solve_heads(part.afresh(), method, projections, groups, count_pairs)

    results = problem.backend.map(of_group, head_groups(problem, method))
    xp = problem.xp

    def together(parts: Sequence[Partial]) -> Partial:
        return Partial(xp.concat([p.ref for p in parts]), xp.concat([p.acc for p in parts]))

    return Result(
        together([r.near for r in results]),
        [together([r.far[g] for r in results]) for g in range(len(results[0].far))],
        xp.concat([r.pairs for r in results]),
        None if results[0].rank is None else xp.concat([r.rank for r in results if r.rank is not None]),
    )


def head_groups(problem: Problem, method: Scatterbrain, elements: int | None = None) -> list[Problem]:
    """The problem a few heads at a time, one at least: what fits `elements`, by default the backend's."""
    elements = problem.backend.group_elements if elements is None else elements
    # Buckets of all heads of a group, twice as many with hidden keys, are numbered in one integer of 32 bits.
    n_buckets = max((part.n_buckets for part in method.supports), default=1)
    step = min(max(1, elements // sum(elements_of_head(problem, method))), (2**31 - 1) // (2 * n_buckets))
    return problem.by_heads(min(step, problem.backend.most_heads))


class Elements(NamedTuple):
    """About how many numbers one head has: of rows, visits beyond one a query, running states, pairs."""

    rows: int
    visits: int
    states: int
    pairs: int


def elements_of_head(problem: Problem, method: Scatterbrain) -> Elements:
    """About how many numbers one head of a planned method has."""
    rank = max(1, method.rank)
    columns = problem.dim_value + 1
    rows = problem.n_queries + problem.n_keys
    n_blocks = [_n_blocks(problem, part) for part in method.supports]
    n_visits = problem.n_queries * max((part.n_visits for part in method.supports), default=1)
    of_keys = problem.n_keys * max((part.columns_of_key for part in method.supports), default=0)
    return Elements(
        rows * (problem.dim + columns + rank) + of_keys,
        (n_visits - problem.n_queries) * columns,
        4 * max(n_blocks, default=rows // 64 + 2) * rank * columns,
        problem.n_queries * problem.n_keys if any(part.is_matrix for part in method.supports) else 0,
    )


def _n_blocks(problem: Problem, part: Support) -> int:
    """About how many blocks of queries and of keys a head is cut into."""
    lengths = (problem.n_queries, problem.n_keys)
    return sum(
        n // size + min(n, part.n_buckets) for n, size in zip(lengths, part.tile_shape(*lengths), strict=True)
    )


def _solve_heads(
    problem: Problem,
    method: Scatterbrain,
    projections: Projections,
    groups: Sequence[slice],
    count_pairs: bool,
) -> Result:
    if isinstance(method.sparse, RoutedClusters):
        routed = solve_routed(problem, method.sparse, count_pairs)
        far = [] if routed.far is None else [routed.far]
        result = Result(routed.near, far, routed.pairs, routed.rank)
    else:
        result = _solve_parts(problem, method, projections, groups, count_pairs)
    return result if problem.row_mask is None else _without_hidden_rows(problem, problem.row_mask, result)


def _solve_parts(
    problem: Problem,
    method: Scatterbrain,
    projections: Projections,
    groups: Sequence[slice],
    count_pairs: bool,
) -> Result:
    layout = lay_out(problem, method, projections)
    features = feature_groups(problem, method, projections, groups)
    if layout.tables is None or problem.dense_mask is not None:
        return _solve_dense(problem, layout, features)
    return _solve_tiled(problem, layout, layout.tables, features, count_pairs)


def feature_groups(
    problem: Problem, method: Scatterbrain, projections: Projections, groups: Sequence[slice]
) -> list[Features]:
    """Features of queries and keys, a group at a time; none without a low-rank part."""
    if method.low_rank is None:
        return []
    features = method.low_rank.features(problem, projections.features)
    return (
        [features]
        if len(groups) == 1
        else [features.kernel.group(problem.xp, features, group) for group in groups]
    )


def lay_out(problem: Problem, method: Scatterbrain, projections: Projections) -> Layout:
    """The support of a planned method for all heads of a problem, and the sampled keys."""
    if isinstance(method.sparse, AllPairs):
        return Layout(None, False, None)
    drawn = zip(method.supports, projections.supports, strict=True)
    tables = in_order([table for part, draws in drawn for table in part.tables(problem, draws)])
    return Layout(tables, method.double_counting, projections.columns)


def _solve_tiled(
    problem: Problem, layout: Layout, tables: list[Table], features: list[Features], count_pairs: bool
) -> Result:
    backend, rows = problem.backend, make_rows(problem)
    near = nothing_seen(backend, rows.query[:, 0], rows.weighted_value)
    pairs = zeros(problem.xp, (rows.query.shape[0],), rows.query)
    if tables:
        near = near_field(backend, rows, tables)
        pairs = pairs_per_query(backend, rows, tables) if count_pairs else pairs
    off = [] if layout.double_counting else tables
    rows_of_groups = [make_rows(problem, group) for group in features]
    far = [far_field(problem, off, group, near) for group in rows_of_groups]
    if layout.columns is not None:
        sampled = sample(problem, layout.columns, tables)
        near = merge(backend, near, sampled.partial(backend, rows, rows.exact()))
        far = [
            merge(backend, part, sampled.partial(backend, group, group.low_rank_pairs(), sign=-1))
            for part, group in zip(far, rows_of_groups, strict=True)
        ]
        pairs = pairs + sampled.pairs_per_query(backend, rows) if count_pairs else pairs
    shape = (problem.n_heads, problem.n_queries)

    def by_head(part: Partial) -> Partial:
        ref, acc = problem.xp.reshape(part.ref, shape), problem.xp.reshape(part.acc, (*shape, -1))
        return Partial(ref, acc)

    return Result(by_head(near), [by_head(part) for part in far], problem.xp.reshape(pairs, shape))


def _solve_dense(problem: Problem, layout: Layout, features: list[Features]) -> Result:
    rows = make_rows(problem)

    def of_block(block: Block) -> tuple[Array, ...]:
        weights = [near_block(problem, block), *(far_block(problem, group, block) for group in features)]
        parts = [block_partial(problem, rows, block, of_part) for of_part in weights]
        return (pairs_of_block(problem, block), *(x for part in parts for x in (part.ref, part.acc)))

    pairs, *arrays = map_blocks(problem, layout, of_block)
    near, *far = (Partial(ref, acc) for ref, acc in zip(arrays[::2], arrays[1::2], strict=True))
    return Result(near, far, pairs)


def _without_hidden_rows(problem: Problem, row_mask: Array, result: Result) -> Result:
    def part(partial: Partial) -> Partial:
        return select(problem.backend, row_mask, partial)

    pairs = problem.xp.where(row_mask, result.pairs, 0.0)
    rank = None if result.rank is None else problem.xp.where(row_mask, result.rank, 0.0)
    return Result(part(result.near), [part(far) for far in result.far], pairs, rank)


def total(problem: Problem, result: Result) -> Partial:
    """Near field and far field together."""
    return merge(problem.backend, result.near, *result.far)


def has_error(method: Scatterbrain) -> bool:
    """Whether the output has a standard error: whether groups of features are independent."""
    return method.low_rank is not None and method.low_rank.has_error
