"""The dense matrix of weights of routed clusters: for tests, plots and small n."""

from __future__ import annotations

import math

from scatterbrain_core._typing import Array
from scatterbrain_core.normalization import finite
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import lay_out
from scatterbrain_core.routing.solve import Chunk, choose_by_chunk
from scatterbrain_core.routing.tree import Tree, column_of_key, grow
from scatterbrain_core.routing.view import far_weights
from scatterbrain_core.sparse import RoutedClusters
from scatterbrain_core.tiles import integers


def routed_matrix(problem: Problem, part: RoutedClusters, is_normalized: bool) -> Array:
    """Weights of every pair, shape (H, Lq, Lk); rows without a key are zero."""
    xp = problem.xp
    tree = grow(problem, lay_out(problem, part))
    logs = xp.concat([_log_weights(problem, tree, chunk) for chunk in choose_by_chunk(problem, tree)], axis=1)
    logs = logs[:, : problem.n_queries, : problem.n_keys]
    if problem.row_mask is not None:
        logs = xp.where(problem.row_mask[..., None], logs, -math.inf)
    if not is_normalized:
        return xp.exp(logs)
    top = finite(problem.backend, xp.max(problem.backend.stop_gradient(logs), axis=-1))[..., None]
    weights = xp.exp(logs - top)
    sums = xp.sum(weights, axis=-1)[..., None]
    return weights / xp.where(sums == 0, 1.0, sums)


def _log_weights(problem: Problem, tree: Tree, chunk: Chunk) -> Array:
    """Log of every weight of a chunk, shape (H, R, length)."""
    backend, xp = problem.backend, problem.xp
    exact = xp.matmul(chunk.query, xp.matrix_transpose(tree.key))
    is_exact = _always_exact(problem, tree, chunk)
    if chunk.view is None or chunk.choice is None:
        return xp.where(is_exact, exact, -math.inf)
    view, column = chunk.view, column_of_key(problem, tree, chunk.number)
    ref, weight = far_weights(backend, view, chunk.choice)
    of_key = weight / xp.where(view.count > 0, view.count, 1.0)[:, None, :]
    there = of_key > 0
    logs = xp.where(there, xp.log(xp.where(there, of_key, 1.0)) + ref[..., None], -math.inf)
    index = xp.broadcast_to(xp.maximum(column, xp.zeros_like(column))[:, None, :], exact.shape)
    is_opened = xp.take_along_axis(chunk.choice.opened, index, axis=-1) & (column >= 0)[:, None, :]
    far = xp.where((column >= 0)[:, None, :], xp.take_along_axis(logs, index, axis=-1), -math.inf)
    return xp.where(is_exact | is_opened, exact, far)


def _always_exact(problem: Problem, tree: Tree, chunk: Chunk) -> Array:
    xp, own = problem.xp, tree.layout.own
    first = tree.is_first[:, None, :]
    if not problem.is_causal:
        return xp.broadcast_to(first, (first.shape[0], chunk.query.shape[1], first.shape[2]))
    key = integers(xp, tree.layout.length, tree.key)
    row = (integers(xp, chunk.query.shape[1], key) + chunk.number * tree.layout.chunk)[:, None]
    in_own = (key // own == row // own) & tree.visible[:, None, :]
    return (first | in_own) & (key <= row)
