"""Choices among the rows of each head, without a data-dependent shape."""

from __future__ import annotations

import math

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.problem import Problem
from scatterbrain_core.tiles import integers


def visible_keys(problem: Problem) -> Array:
    """Keys that are not hidden from every query: bool, shape (H, Lk)."""
    return _all_true(problem, problem.n_keys) if problem.key_mask is None else problem.key_mask


def visible_queries(problem: Problem) -> Array:
    """Queries that see a key: bool, shape (H, Lq)."""
    return _all_true(problem, problem.n_queries) if problem.row_mask is None else problem.row_mask


def _all_true(problem: Problem, length: int) -> Array:
    row = integers(problem.xp, length, problem.query) >= 0
    return problem.xp.broadcast_to(row, (problem.n_heads, length))


def highest(xp: Namespace, score: Array, is_there: Array, count: int, slack: Array | float = 0.0) -> Array:
    """Which entries along the last axis, of those that are there, score highest; of equal ones the first.

    Parameters
    ----------
    score : array, shape (..., L)
        Finite.
    is_there : array of bool, shape (..., L)
    count : int
        How many are chosen; all that are there where they are fewer.
    slack : array, shape (..., L), or float
        Scores as near as this to the least that is chosen are equal to it.

    Returns
    -------
    array of bool, shape (..., L)
    """
    if count >= is_there.shape[-1]:
        return is_there
    score = xp.where(is_there, score, -math.inf)
    least = xp.sort(score, axis=-1, descending=True)[..., count - 1 : count]
    above = score > least + slack
    equal = ~above & (score >= least - slack)
    counted = integers(xp, 1, score).dtype
    spare = count - xp.sum(xp.astype(above, counted), axis=-1)[..., None]
    return is_there & (above | (equal & (xp.cumulative_sum(xp.astype(equal, counted), axis=-1) <= spare)))


def listed(xp: Namespace, chosen: Array, count: int) -> tuple[Array, Array]:
    """Positions of the chosen rows of each head, ascending, and which of the places are filled.

    Parameters
    ----------
    chosen : array of bool, shape (H, L)
    count : int
        Places a head: no fewer than are chosen, no more than L.

    Returns
    -------
    array of int, array of bool, shape (H, count)
    """
    index = xp.argsort(xp.astype(~chosen, xp.int8), axis=1, stable=True)[:, :count]
    return index, xp.take_along_axis(chosen, index, axis=1)


def rows_at(xp: Namespace, x: Array, index: Array) -> Array:
    """Rows of `x`, shape (H, L, D), at positions (H, n): shape (H, n, D); differentiable in `x`."""
    n_heads, length, dim = x.shape
    row = integers(xp, n_heads, index)[:, None] * length + index
    taken = xp.take(xp.reshape(x, (n_heads * length, dim)), xp.reshape(row, (-1,)), axis=0)
    return xp.reshape(taken, (*index.shape, dim))
