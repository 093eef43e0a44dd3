"""The public calls."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from typing import Any

from scatterbrain_core._checks import require_bool
from scatterbrain_core._typing import Array, Seed
from scatterbrain_core.backend import in_full_precision
from scatterbrain_core.dense import Block, far_block, map_blocks, near_block
from scatterbrain_core.estimates import Cost, Estimate
from scatterbrain_core.estimator import (
    Projections,
    attend,
    draw,
    feature_groups,
    feature_slices,
    has_error,
    lay_out,
    solve,
    total,
)
from scatterbrain_core.memory import within
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import finite, normalize
from scatterbrain_core.planning import check_masked, exact_if_affordable, plan
from scatterbrain_core.presets import resolve_method
from scatterbrain_core.problem import Problem, make_problem, resolve_scale
from scatterbrain_core.random import Draws
from scatterbrain_core.routing.matrix import routed_matrix
from scatterbrain_core.sparse import Hashing, RoutedClusters
from scatterbrain_core.standard_error import standard_errors
from scatterbrain_core.tiles import integers, zeros

# Groups of features from whose spread the standard error is estimated.
ERROR_GROUPS = 32


@in_full_precision()
def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    method: str | Scatterbrain = "auto",
    budget: float = 0.125,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    seed: Seed = 0,
    check_finite: bool = True,
    max_memory: int | None = None,
) -> Any:
    r"""Softmax attention, estimated from an exact sparse part and a low-rank part.

    Parameters
    ----------
    query : array, shape (..., Lq, D)
        Of any library with the array API; float16, bfloat16, float32 or float64. Half precision is worked in
        float32.
    key : array, shape (..., Lk, D)
        Same library, device, dtype and leading axes.
    value : array, shape (..., Lk, Dv)
    method : str or Scatterbrain
        A name from `methods`, or the parts themselves.
    budget : float, in (0, 1]
        Exact pairs + rank of the low-rank part a query, as a fraction of Lk; with `auto` of at most 4096
        keys, which keeps its time linear, unless it is 1. `method="exact"` and parts that say their own size
        take no notice of it.
    attn_mask : array of bool, optional
        True where a query may attend; broadcastable to (..., Lq, Lk). A mask of shape (..., 1, Lk) (key
        padding) or (..., Lq, 1) costs nothing that grows with Lq·Lk, any other O(Lq·Lk) time. What a mask
        hides from a query does not change its output.
    is_causal : bool
        Query i sees the keys j <= i, of those that `attn_mask` leaves, which then must have shape
        (..., 1, Lk) or (..., Lq, 1).
    scale : float, optional
        Factor of the logits, by default 1/√D; 1.0 is the paper's form. It is shared evenly between query
        and key.
    enable_gqa : bool
        The heads axis (-3) of query may be a multiple of that of key and value.
    seed : int or numpy.random.Generator
        Of all draws, which are made on the host: the same on every library and device, and the same for
        every head.
    check_finite : bool
        Raise on NaN and inf in what is not padding, and on entries so large that products or sums would
        overflow. It costs one pass over the data. Without it, what is not finite spreads as NaN.
    max_memory : int, optional
        Bytes that the call may take beside its arguments and its result: temporaries are made smaller, and
        fewer heads are worked at a time. Copies that `enable_gqa` makes of key and value, copies of arrays
        whose leading axes do not merge where they stand (as of swapped axes), and
        what a library keeps for gradients, come on top.

    Returns
    -------
    array, shape (..., Lq, Dv)
        Of the library, dtype and device of `query`. A query that sees no key, or with `method="lsh"` none
        of its bucket, gets zeros.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was expected.

    See Also
    --------
    estimate : the same with log-normaliser, standard error and cost.
    attention_matrix : the dense matrix of weights.

    References
    ----------
    Chen et al., *Scatterbrain: Unifying Sparse and Low-rank Attention Approximation*, arXiv 2110.15343.

    Examples
    --------
    >>> import numpy as np
    >>> import scatterbrain_core as sb
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((8, 1000, 64)) for _ in range(3))
    >>> sb.attention(q, k, v, budget=0.25).shape
    (8, 1000, 64)
    """
    problem, _, parts = prepare(
        query,
        key,
        value,
        method,
        budget,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        check_finite=check_finite,
    )
    if max_memory is not None:
        problem = within(problem, parts, max_memory)
    projections = draw(problem, parts, Draws(seed))
    if problem.is_empty:
        return nothing(problem)[0]
    return problem.as_output(attend(problem, parts, projections))


@in_full_precision()
def estimate(
    query: Any,
    key: Any,
    value: Any,
    *,
    method: str | Scatterbrain = "auto",
    budget: float = 0.125,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    seed: Seed = 0,
    check_finite: bool = True,
) -> Estimate:
    """`attention` with its log-normaliser, its standard error and what it really used.

    The arguments and errors are those of `attention`. It takes longer: the features are run in groups,
    and the exact pairs are counted.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> import numpy as np
    >>> import scatterbrain_core as sb
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((200, 16)) for _ in range(3))
    >>> est = sb.estimate(q, k, v, method="performer", budget=0.25)
    >>> est.method, est.cost.rank, est.stderr.shape
    ('performer', 50.0, (200, 16))
    """
    problem, name, parts = prepare(
        query,
        key,
        value,
        method,
        budget,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        check_finite=check_finite,
    )
    draws = Draws(seed)
    projections = draw(problem, parts, draws)
    of_call = (name, parts, draws.seed, resolve_scale(scale, query), is_causal, _query_sum(problem))
    if problem.is_empty:
        output, lse = nothing(problem)
        stderr = lse_stderr = None
        if has_error(parts):
            stderr, lse_stderr = (zeros(problem.xp, tuple(x.shape), lse) for x in (output, lse))
        no_pairs = zeros(problem.xp, (problem.n_heads,), problem.like)
        return Estimate(
            output, lse, stderr, lse_stderr, _cost(problem, parts, no_pairs, no_pairs + parts.rank), *of_call
        )
    groups = feature_slices(parts, ERROR_GROUPS)
    result = solve(problem, parts, projections, groups, count_pairs=True)
    output, lse = normalize(problem.backend, total(problem, result))
    stderr = lse_stderr = None
    if has_error(parts):
        stderr, lse_stderr = map(problem.unflatten, standard_errors(problem, result, groups))
    output, lse = problem.as_output(output), problem.unflatten(lse)
    pairs = problem.xp.mean(result.pairs, axis=-1)
    rank = problem.xp.full_like(pairs, float(parts.rank))
    if result.rank is not None:
        rank = problem.xp.mean(result.rank, axis=-1)
    return Estimate(output, lse, stderr, lse_stderr, _cost(problem, parts, pairs, rank), *of_call)


@in_full_precision()
def attention_matrix(
    query: Any,
    key: Any,
    *,
    method: str | Scatterbrain = "auto",
    budget: float = 0.125,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    seed: Seed = 0,
    normalize: bool = True,
    check_finite: bool = True,
) -> Any:
    """The dense matrix of weights that `attention` applies: O(Lq·Lk), for tests, plots and small n.

    Arguments not listed are those of `attention`; there is no `attn_mask`.

    Parameters
    ----------
    query : array, shape (..., Lq, D)
    key : array, shape (..., Lk, D)
    normalize : bool
        Whether each row is divided by its sum; False gives the estimate of exp(scale·QKᵀ), zero where
        `is_causal` hides a pair, which overflows to inf where the exponential does.

    Returns
    -------
    array, shape (..., Lq, Lk)
        A row that sees no key is zero.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was expected.

    Examples
    --------
    >>> import numpy as np
    >>> import scatterbrain_core as sb
    >>> q = np.eye(3)
    >>> sb.attention_matrix(q, q, method="exact", scale=1.0, normalize=False).round(2)
    array([[2.72, 1.  , 1.  ],
           [1.  , 2.72, 1.  ],
           [1.  , 1.  , 2.72]])
    """
    require_bool("normalize", normalize)
    problem, _, parts = prepare(
        query,
        key,
        key,
        method,
        budget,
        attn_mask=None,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        check_finite=check_finite,
    )
    # The keys only stood in for values.
    problem = replace(problem, arrays=(*problem.arrays[:2], problem.arrays[2][..., :0]))
    projections = draw(problem, parts, Draws(seed))
    if problem.is_empty:
        shape = (*problem.lead, problem.n_queries, problem.n_keys)
        return problem.in_dtype(zeros(problem.xp, shape, problem.like))
    if isinstance(parts.sparse, RoutedClusters):
        return problem.as_output(routed_matrix(problem, parts.sparse, normalize))
    return problem.as_output(_weights(problem, parts, projections, normalize))


def prepare(
    query: Any, key: Any, value: Any, method: str | Scatterbrain, budget: float, **arguments: Any
) -> tuple[Problem, str, Scatterbrain]:
    """The checked problem, the method's name and its planned parts."""
    problem = make_problem(query, key, value, **arguments)
    name, parts = resolve_method(method)
    check_masked(problem, parts, method if isinstance(method, str) else None)
    planned = plan(parts, budget, problem.n_queries, problem.n_keys, problem.dim)
    return problem, name, exact_if_affordable(problem, planned)


def nothing(problem: Problem) -> tuple[Array, Array]:
    """Output and log-normaliser where there is no query or no key."""
    lead = (*problem.lead, problem.n_queries)
    output = zeros(problem.xp, (*lead, problem.dim_value), problem.like)
    return problem.in_dtype(output), zeros(problem.xp, lead, problem.like) - math.inf


def _query_sum(problem: Problem) -> float:
    """A weighted sum of the queries: equal for equal ones, and hardly for others."""
    xp = problem.xp
    rows = xp.sum(problem.backend.stop_gradient(problem.query), axis=-1)
    weights = 1 + xp.astype(integers(xp, problem.n_queries, rows), rows.dtype)
    return float(xp.sum(rows * weights)) if math.prod(rows.shape) else 0.0


def _cost(problem: Problem, parts: Scatterbrain, pairs: Array, rank: Array) -> Cost:
    """What was used, from the mean pairs and rank of the queries of each head."""
    xp = problem.xp
    pairs, rank = (problem.backend.stop_gradient(x) for x in (pairs, rank))
    of_heads = xp.reshape((pairs + rank) / max(problem.n_keys, 1), problem.lead)
    mean_pairs, mean_rank = (float(xp.sum(x)) / max(problem.n_heads, 1) for x in (pairs, rank))
    hashing = next((part for part in parts.supports if isinstance(part, Hashing)), None)
    n_bits, n_tables = (None, None) if hashing is None else (hashing.depth, hashing.n_tables)
    fraction = (mean_pairs + mean_rank) / max(problem.n_keys, 1)
    return Cost(mean_pairs, mean_rank, fraction, problem.n_keys, n_bits, n_tables, of_heads)


def _weights(problem: Problem, parts: Scatterbrain, projections: Projections, is_normalized: bool) -> Array:
    xp = problem.xp
    layout = lay_out(problem, parts, projections)
    features = feature_groups(problem, parts, projections, feature_slices(parts, 1))

    def of_block(block: Block) -> tuple[Array, ...]:
        weights = [near_block(problem, block), *(far_block(problem, group, block) for group in features)]
        top = zeros(xp, (), problem.like)
        if is_normalized:
            tops = [xp.max(problem.backend.stop_gradient(logs), axis=-1) for logs, _ in weights]
            top = finite(problem.backend, reduce(xp.maximum, tops))[..., None]
        terms = [xp.exp(logs - top) * (1.0 if factor is None else factor) for logs, factor in weights]
        matrix = sum(terms[1:], start=terms[0])
        if not is_normalized:
            return (matrix,)
        sums = xp.sum(matrix, axis=-1)[..., None]
        return (matrix / xp.where(sums == 0, 1.0, sums),)

    return map_blocks(problem, layout, of_block)[0]
