"""Which pairs no mask hides, in blocks of rows: what dense work is made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scatterbrain_core._typing import Array
from scatterbrain_core.problem import Problem
from scatterbrain_core.tiles import integers


def visible_pairs(problem: Problem, heads: slice, rows: slice) -> Array:
    """Pairs of some consecutive heads, of one mask if they have any, and rows: bool, shape (h, r, Lk)."""
    xp = problem.xp
    queries = integers(xp, problem.n_queries, problem.query)[rows]
    keys = integers(xp, problem.n_keys, problem.key)
    n_heads = heads.stop - heads.start
    if problem.is_causal:
        visible = (keys[None, :] <= queries[:, None])[None, ...]
    elif problem.dense_mask is not None:
        number = problem.mask_of_head[heads.start]
        visible = problem.dense_mask[number, rows, :][None, ...]
    else:
        visible = ((keys[None, :] >= 0) & (queries[:, None] >= 0))[None, ...]
    if problem.key_mask is not None:
        visible = visible & problem.key_mask[heads, :][:, None, :]
    return xp.broadcast_to(visible, (n_heads, *visible.shape[1:]))


def map_row_blocks(problem: Problem, function: Callable[[slice, slice], tuple[Array, ...]]) -> list[Array]:
    """Arrays that `function` gives for blocks of rows of heads, (h, r, ...), put together as (H, Lq, ...)."""
    xp = problem.xp
    limit = problem.backend.chunk_of(problem.query)
    n_rows = min(problem.n_queries, max(1, limit // problem.n_keys))
    step = 1 if problem.dense_mask is not None else max(1, limit // (problem.n_queries * problem.n_keys))
    by_heads = []
    for head in range(0, problem.n_heads, step):
        heads = slice(head, min(head + step, problem.n_heads))
        by_rows = []
        for row in range(0, problem.n_queries, n_rows):
            rows = slice(row, min(row + n_rows, problem.n_queries))
            by_rows.append(problem.backend.checkpoint(partial(function, heads, rows)))
        by_heads.append([xp.concat(column, axis=1) for column in zip(*by_rows, strict=True)])
    return [xp.concat(column, axis=0) for column in zip(*by_heads, strict=True)]
