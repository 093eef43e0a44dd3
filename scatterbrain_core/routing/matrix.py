"""The dense matrix of weights of routed clusters: for tests, plots and small n."""

from __future__ import annotations

import math

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.normalization import finite
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import lay_out
from scatterbrain_core.routing.solve import Chunk, choose_by_chunk, in_order_of_tiles, in_own_order
from scatterbrain_core.routing.tree import Tree, cluster_of_key, grow
from scatterbrain_core.routing.view import View, far_weights
from scatterbrain_core.sparse import RoutedClusters
from scatterbrain_core.tiles import integers


def routed_matrix(problem: Problem, part: RoutedClusters, is_normalized: bool) -> Array:
    """Weights of every pair, shape (H, Lq, Lk); rows without a key are zero."""
    xp = problem.xp
    tree = in_order_of_tiles(xp, grow(problem, lay_out(problem, part)))
    logs = xp.concat([_log_weights(problem, tree, chunk) for chunk in choose_by_chunk(problem, tree)], axis=1)
    logs = in_own_order(problem, tree, logs)[:, :, : problem.n_keys]
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
    view = chunk.view
    column, of_keys = _columns_of_keys(xp, tree, chunk, view)
    ref, weight = far_weights(backend, view, chunk.choice)
    shape, by_tile = exact.shape, (*weight.shape[:2], exact.shape[2])
    exact, is_exact = (xp.reshape(x, by_tile) for x in (exact, is_exact))
    index = xp.broadcast_to(xp.maximum(column, xp.zeros_like(column))[:, None, :], by_tile)
    in_cluster = (column >= 0)[:, None, :]
    is_opened = xp.take_along_axis(chunk.choice.opened, index, axis=-1) & in_cluster
    weight = xp.take_along_axis(weight, index, axis=-1) * of_keys[:, None, :]
    there = in_cluster & (weight > 0)
    far = xp.where(there, xp.log(xp.where(there, weight, 1.0)) + ref[..., None], -math.inf)
    return xp.reshape(xp.where(is_exact | is_opened, exact, far), shape)


def _columns_of_keys(xp: Namespace, tree: Tree, chunk: Chunk, view: View) -> tuple[Array, Array]:
    """Column of each key in the views of tiles, -1 for none, and its part of it: (H * n_tiles, length)."""
    cluster = cluster_of_key(xp, tree, chunk.number)
    per_key = 1 / xp.where(view.count > 0, view.count, 1.0)
    if chunk.looked is None or tree.tiles is None:
        return cluster, xp.take_along_axis(per_key, xp.maximum(cluster, xp.zeros_like(cluster)), axis=-1)
    n_tiles = view.count.shape[0] // cluster.shape[0]
    cluster, count = (xp.repeat(x, n_tiles, axis=0) for x in (cluster, tree.tiles.columns.count))
    index = xp.maximum(cluster, xp.zeros_like(cluster))
    of_keys = chunk.looked.part / xp.where(count > 0, count, 1.0)
    column, of_keys = (xp.take_along_axis(x, index, axis=-1) for x in (chunk.looked.column, of_keys))
    return xp.where(cluster >= 0, column, -1), of_keys


def _always_exact(problem: Problem, tree: Tree, chunk: Chunk) -> Array:
    xp, own = problem.xp, tree.layout.own
    first = tree.is_first[:, None, :]
    if not problem.is_causal:
        return xp.broadcast_to(first, (first.shape[0], chunk.query.shape[1], first.shape[2]))
    key = integers(xp, tree.layout.length, tree.key)
    row = (integers(xp, chunk.query.shape[1], key) + chunk.number * tree.layout.chunk)[:, None]
    in_own = (key // own == row // own) & tree.visible[:, None, :]
    return (first | in_own) & (key <= row)
