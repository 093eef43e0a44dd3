"""The estimator: a planned method run on a checked problem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.causal import causal_far_field_of_all, causal_far_field_of_one_table
from scatterbrain_core.dense import Block, block_partial, far_block, map_blocks, near_block
from scatterbrain_core.far_field import far_field_of_all, far_field_of_one_table, less_later_tables
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import Partial, merge, normalize, nothing_seen, scaled, select
from scatterbrain_core.planning import tile_shape
from scatterbrain_core.problem import Problem
from scatterbrain_core.random import Draws, to_device
from scatterbrain_core.rows import Features, Rows, make_features, make_rows
from scatterbrain_core.sparse import AllPairs, Hashing
from scatterbrain_core.sparse_correction import near_field, pairs_per_query
from scatterbrain_core.tiles import Table, positions, zeros

# Elements of features and running states that one group of heads may hold at a time.
HEAD_GROUP_ELEMENTS = 2**25


@dataclass(frozen=True)
class Projections:
    """The random draws of one call, on the device."""

    features: tuple[Array, ...]
    hashes: tuple[Array, ...]


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


def draw(problem: Problem, method: Scatterbrain, draws: Draws) -> Projections:
    """All draws of a planned method; its two parts never share any."""
    dim = problem.query.shape[-1]
    features: tuple[Array, ...] = ()
    hashes: tuple[Array, ...] = ()
    if method.low_rank is not None:
        drawn = method.low_rank.draw(draws.feature_generator(), dim)
        features = tuple(to_device(problem.xp, x, problem.query) for x in drawn)
    if isinstance(method.sparse, Hashing):
        drawn = method.sparse.draw(draws.hash_generator(), dim)
        hashes = tuple(to_device(problem.xp, x, problem.query) for x in drawn)
    return Projections(features, hashes)


def feature_slices(method: Scatterbrain, n_groups: int) -> list[slice]:
    """The features in at most `n_groups` nearly equal groups; none without a low-rank part."""
    if method.low_rank is None:
        return []
    unit = method.low_rank.unit
    n_rows = method.rank // unit
    n_groups = min(n_groups, n_rows)
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
    n_buckets = method.sparse.n_buckets if isinstance(method.sparse, Hashing) else 1
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
    features = feature_groups(problem, method, projections, groups)
    if tables is None or problem.dense_mask is not None:
        result = _solve_dense(problem, tables, rows, features)
    else:
        rows_of_groups = [make_rows(problem, tile, group) for group in features]
        result = _solve_tiled(problem, tables, rows, rows_of_groups, count_pairs)
    return result if problem.row_mask is None else _without_hidden_rows(problem, problem.row_mask, result)


def feature_groups(
    problem: Problem, method: Scatterbrain, projections: Projections, groups: Sequence[slice]
) -> list[Features]:
    """Features of queries and keys, a group at a time; none without a low-rank part."""
    if method.low_rank is None:
        return []
    features = make_features(problem, method.low_rank, projections.features)
    return [features] if len(groups) == 1 else [features.group(problem.xp, group) for group in groups]


def support_tables(problem: Problem, method: Scatterbrain, projections: Projections) -> list[Table] | None:
    """Tables of the support; none of them for an empty one, None for all pairs."""
    if isinstance(method.sparse, AllPairs):
        return None
    if method.sparse is None:
        return []
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
    features: list[Features],
) -> Result:
    xp = problem.xp

    def of_block(block: Block) -> tuple[Array, ...]:
        weights = [near_block(problem, block), *(far_block(problem, group, block) for group in features)]
        parts = [block_partial(problem, rows, block, of_part) for of_part in weights]
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


def has_error(method: Scatterbrain) -> bool:
    """Whether the output has a standard error: whether the features are random."""
    return method.low_rank is not None and method.low_rank.is_random


def standard_errors(problem: Problem, result: Result, groups: Sequence[slice]) -> tuple[Array, Array]:
    """Standard errors of the output (H, Lq, Dv) and of its lse (H, Lq), by a jackknife over the groups.

    Without group g, and the others weighted up to all m features, the denominator is `left_g` times what it
    was and the output moves by (r_g - ω_g R) / ((1 - ω_g) left_g), where r_g = x_g - output * y_g over the
    denominator, R is the sum of all r_g and ω_g the group's share of the features.
    """
    xp, backend = problem.xp, problem.backend
    output, lse = normalize(backend, total(problem, result))
    if len(groups) == 1:
        return output * float("nan"), lse * float("nan")
    near = scaled(backend, result.near, lse)[..., -1]
    parts = [scaled(backend, far, lse) for far in result.far]
    shares = [(group.stop - group.start) / groups[-1].stop for group in groups]
    moves = [acc[..., :-1] - output * acc[..., -1:] for acc in parts]
    drift = sum(moves[1:], start=moves[0])
    others = _sums_of_others([acc[..., -1] for acc in parts])
    seen = lse != -math.inf
    steps, log_steps = [], []
    for move, share, other in zip(moves, shares, others, strict=True):
        left = xp.where(seen, near + other / (1 - share), 1.0)
        held = left != 0
        left = xp.where(held, left, 1.0)
        step = (move - share * drift) / ((1 - share) * left[..., None])
        steps.append(xp.where(held[..., None], step, math.inf))
        # Signed features may leave a negative weight, which has no log.
        log_left = xp.where(left > 0, xp.log(xp.where(left > 0, left, 1.0)), math.nan)
        log_steps.append(xp.where(held, log_left, math.inf))
    factor = math.sqrt((len(groups) - 1) / len(groups))
    return _norm(backend, steps) * factor, _norm(backend, log_steps) * factor


def _norm(backend: Backend, terms: list[Array]) -> Array:
    """Root of the sum of squares, in units of the largest, which may be beyond the root of the range."""
    xp = backend.xp
    top = reduce(xp.maximum, [xp.abs(backend.stop_gradient(term)) for term in terms])
    is_plain = (top > 0) & xp.isfinite(top)
    unit = xp.where(is_plain, top, 1.0)
    # Where all is 0 or not finite the root has no derivative.
    squares = [xp.where(is_plain, term / unit, 1.0) ** 2 for term in terms]
    return xp.where(is_plain, unit * xp.sqrt(sum(squares[1:], start=squares[0])), top)


def _sums_of_others(terms: list[Array]) -> list[Array]:
    """For each term the sum of all others, without subtracting it."""
    before = list(accumulate(terms[:-1], initial=terms[0] * 0))
    after = list(accumulate(terms[:0:-1], initial=terms[0] * 0))[::-1]
    return [first + last for first, last in zip(before, after, strict=True)]
