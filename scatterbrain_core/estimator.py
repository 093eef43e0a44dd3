"""The estimator: a planned method run on a checked problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scatterbrain_core._typing import Array, Seed
from scatterbrain_core.causal import causal_far_field_of_all, causal_far_field_of_one_table
from scatterbrain_core.dense import Block, block_partial, far_block, map_blocks, near_block
from scatterbrain_core.far_field import far_field_of_all, far_field_of_one_table, less_later_tables
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import Partial, merge, normalize, nothing_seen, scaled, select
from scatterbrain_core.planning import tile_shape
from scatterbrain_core.problem import Problem
from scatterbrain_core.random import Draws, to_device
from scatterbrain_core.rows import Rows, make_rows
from scatterbrain_core.sparse import AllPairs, RandomHyperplanes
from scatterbrain_core.sparse_correction import near_field, pairs_per_query
from scatterbrain_core.tiles import Table, positions, zeros

# Elements of features and running states that one group of heads may hold at a time.
HEAD_GROUP_ELEMENTS = 2**25


@dataclass(frozen=True)
class Projections:
    """The random draws of one call, on the device; None where a part draws nothing."""

    features: Array | None
    hashes: Array | None


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
    """

    near: Partial
    far: list[Partial]
    pairs: Array


def attend(problem: Problem, method: Scatterbrain, projections: Projections) -> Array:
    """Output of a planned method, shape (H, Lq, Dv)."""
    result = solve(problem, method, projections, feature_slices(method, 1))
    return normalize(problem.backend, total(problem, result))[0]


def draw(problem: Problem, method: Scatterbrain, seed: Seed) -> Projections:
    """All draws of a planned method; its two parts never share any."""
    draws, dim = Draws(seed), problem.query.shape[-1]
    features = hashes = None
    if method.low_rank is not None:
        features = to_device(problem.xp, method.low_rank.draw(draws, dim), problem.query)
    if isinstance(method.sparse, RandomHyperplanes):
        hashes = to_device(problem.xp, method.sparse.draw(draws, dim), problem.query)
    return Projections(features, hashes)


def feature_slices(method: Scatterbrain, n_groups: int) -> list[slice]:
    """The features in at most `n_groups` nearly equal groups; none without a low-rank part."""
    rank = method.rank
    if rank == 0:
        return []
    n_groups = min(n_groups, rank)
    edges = [rank * g // n_groups for g in range(n_groups + 1)]
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
    results = [
        _solve_heads(part, method, projections, groups, count_pairs) for part in head_groups(problem, method)
    ]
    xp = problem.xp

    def together(parts: Sequence[Partial]) -> Partial:
        return Partial(xp.concat([p.ref for p in parts]), xp.concat([p.acc for p in parts]))

    return Result(
        together([r.near for r in results]),
        [together([r.far[g] for r in results]) for g in range(len(groups))],
        xp.concat([r.pairs for r in results]),
    )


def head_groups(
    problem: Problem, method: Scatterbrain, elements: int = HEAD_GROUP_ELEMENTS
) -> Iterator[Problem]:
    """The problem a few heads at a time, one at least: what fits `elements` of features and states."""
    rank = max(1, method.rank)
    n_buckets = method.sparse.n_buckets if isinstance(method.sparse, RandomHyperplanes) else 1
    columns = problem.value.shape[-1] + 1
    rows = problem.n_queries + problem.n_keys
    n_blocks = sum(
        n // size + min(n, n_buckets)
        for n, size in zip((problem.n_queries, problem.n_keys), tile_shape(problem, method), strict=True)
    )
    per_head = rows * (problem.query.shape[-1] + columns + rank) + 4 * n_blocks * rank * columns
    # Buckets of all heads of a group are numbered in one integer, which may have 32 bits.
    step = min(max(1, elements // per_head), (2**31 - 1) // (n_buckets + 1))
    for first in range(0, problem.n_heads, step):
        yield problem.of_heads(slice(first, min(first + step, problem.n_heads)))


def _solve_heads(
    problem: Problem,
    method: Scatterbrain,
    projections: Projections,
    groups: Sequence[slice],
    count_pairs: bool,
) -> Result:
    tables = support_tables(problem, method, projections)
    tile = tile_shape(problem, method)
    rows = make_rows(problem, tile)
    rows_of_groups = [
        make_rows(problem, tile, method.low_rank, projections.features, group) for group in groups
    ]
    if tables is None or problem.dense_mask is not None:
        result = _solve_dense(problem, tables, rows, rows_of_groups)
    else:
        result = _solve_tiled(problem, tables, rows, rows_of_groups, count_pairs)
    return result if problem.row_mask is None else _without_hidden_rows(problem, problem.row_mask, result)


def support_tables(problem: Problem, method: Scatterbrain, projections: Projections) -> list[Table] | None:
    """Tables of the support; none of them for an empty one, None for all pairs."""
    if isinstance(method.sparse, AllPairs):
        return None
    if method.sparse is None:
        return []
    assert projections.hashes is not None
    return method.sparse.tables(
        problem.backend, projections.hashes, problem.query, problem.key, problem.key_mask, problem.is_causal
    )


def _solve_tiled(
    problem: Problem,
    tables: list[Table],
    rows: Rows,
    rows_of_groups: list[Rows],
    count_pairs: bool,
) -> Result:
    backend, xp = problem.backend, problem.xp
    shape = (problem.n_heads, problem.n_queries)
    if tables:
        near = near_field(backend, rows, tables)
    else:
        near = nothing_seen(backend, rows.query[:, 0], rows.weighted_value)
    far = [_far_field(problem, tables, group, near) for group in rows_of_groups]
    pairs = zeros(xp, shape, rows.query)
    if count_pairs and tables:
        pairs = xp.reshape(pairs_per_query(backend, rows, tables), shape)

    def by_head(part: Partial) -> Partial:
        return Partial(xp.reshape(part.ref, shape), xp.reshape(part.acc, (*shape, -1)))

    return Result(by_head(near), [by_head(part) for part in far], pairs)


def _far_field(problem: Problem, tables: list[Table], rows: Rows, near: Partial) -> Partial:
    backend, xp = problem.backend, problem.xp
    if not tables:
        of_all = causal_far_field_of_all if problem.is_causal else far_field_of_all
        return of_all(backend, rows)
    of_one_table = causal_far_field_of_one_table if problem.is_causal else far_field_of_one_table
    far = of_one_table(backend, rows, tables[0])
    if len(tables) == 1:
        return far
    seen = positions(xp, rows.n_heads, rows.n_queries, rows.query) + 1
    seen = xp.minimum(seen, rows.n_keys) if problem.is_causal else xp.full_like(seen, rows.n_keys)
    return less_later_tables(backend, rows, tables, near, far, seen)


def _solve_dense(
    problem: Problem,
    tables: list[Table] | None,
    rows: Rows,
    rows_of_groups: list[Rows],
) -> Result:
    xp = problem.xp

    def of_block(block: Block) -> tuple[Array, ...]:
        parts = [block_partial(problem, rows, block, near_block(problem, block))]
        parts += [
            block_partial(problem, group, block, far_block(problem, group, block)) for group in rows_of_groups
        ]
        pairs = xp.sum(xp.astype(block.support, problem.query.dtype), axis=-1)
        return (pairs, *(x for part in parts for x in (part.ref, part.acc)))

    pairs, *arrays = map_blocks(problem, tables, of_block)
    near, *far = (Partial(ref, acc) for ref, acc in zip(arrays[::2], arrays[1::2], strict=True))
    return Result(near, far, pairs)


def _without_hidden_rows(problem: Problem, row_mask: Array, result: Result) -> Result:
    def part(partial: Partial) -> Partial:
        return select(problem.backend, row_mask, partial)

    pairs = problem.xp.where(row_mask, result.pairs, 0.0)
    return Result(part(result.near), [part(far) for far in result.far], pairs)


def total(problem: Problem, result: Result) -> Partial:
    """Near field and far field together."""
    return merge(problem.backend, result.near, *result.far)


def standard_error(problem: Problem, result: Result, groups: Sequence[slice]) -> Array:
    """Estimated standard error of the output, shape (H, Lq, Dv), from the spread of the feature groups.

    The output is a ratio; to first order (the delta method) group g moves it by
    r_g = (numerator_g - output * denominator_g) / denominator, and the groups are independent.
    """
    backend = problem.backend
    whole = total(problem, result)
    output, lse = normalize(backend, whole)
    moves = []
    for far in result.far:
        acc = scaled(backend, far, lse)
        moves.append(acc[..., :-1] - output * acc[..., -1:])
    drift = sum(moves[1:], start=moves[0])
    rank = groups[-1].stop
    squares = [
        (move - drift * ((group.stop - group.start) / rank)) ** 2
        for move, group in zip(moves, groups, strict=True)
    ]
    n_groups = len(groups)
    if n_groups == 1:
        return output * float("nan")
    return problem.xp.sqrt(sum(squares[1:], start=squares[0]) * (n_groups / (n_groups - 1)))
