"""The clusters of all blocks of a problem, and what each chunk of queries may look at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from array_api_compat import device

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.kmeans import kmeans, one_hot
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import Layout, Level
from scatterbrain_core.routing.nodes import Clusters, Columns, cluster, metric_of, second_moment
from scatterbrain_core.routing.query_tiles import QueryTiles, tiles_of
from scatterbrain_core.routing.view import View, bounded, cluster_logits
from scatterbrain_core.routing.visits import Keys, sorted_slots
from scatterbrain_core.rows import with_weights
from scatterbrain_core.sparse.choosing import listed, visible_queries
from scatterbrain_core.tiles import integers, padded


@dataclass(frozen=True)
class Node:
    """One level's clusters in a problem.

    Attributes
    ----------
    level : Level
    clusters : Clusters
    group : array of int, shape (H, A, B, K)
        Group of a cluster, numbered within its block, or over all blocks where not causal.
    start : array of int, shape (H, A, B, K)
        Slot of a cluster's first key.
    """

    level: Level
    clusters: Clusters
    group: Array
    start: Array


@dataclass(frozen=True)
class Tree:
    """Clusters of every level, and the arrays of the problem, padded to whole blocks.

    Attributes
    ----------
    layout : Layout
    query : array, shape (H, length, D) where causal, (H, Lq, D) otherwise
    key : array, shape (H, length, D)
    weighted_value : array, shape (H, length, Dv + 1)
        Zeros in the row of a key that is not there.
    visible : array of bool, shape (H, length)
        Keys that are there.
    is_first : array of bool, shape (H, length)
        The first of these, which are in no cluster: whatever pads a sequence on the left, its sink is exact.
    first : array of int, array of bool, shape (H, layout.first)
        Their positions, and which of these there are.
    nodes : list of Node
        Smallest blocks first.
    keys : Keys
    tiles : QueryTiles or None
        None where causal.
    """

    layout: Layout
    query: Array
    key: Array
    weighted_value: Array
    visible: Array
    is_first: Array
    first: tuple[Array, Array]
    nodes: list[Node]
    keys: Keys
    tiles: QueryTiles | None


def grow(problem: Problem, layout: Layout) -> Tree:
    """Cluster the keys of a problem."""
    backend, xp, length = problem.backend, problem.xp, layout.length
    query = padded(xp, problem.query, length) if problem.is_causal else problem.query
    key, value = (padded(xp, x, length) for x in (problem.key, problem.value))
    place = integers(xp, length, key)
    visible = xp.broadcast_to(place < problem.n_keys, key.shape[:2])
    if problem.key_mask is not None:
        visible = visible & padded(xp, problem.key_mask, length)
    rank = xp.cumulative_sum(xp.astype(visible, place.dtype), axis=-1)
    is_first = visible & (rank <= layout.first)
    first = listed(xp, is_first, min(layout.first, length))
    clustered = visible & ~is_first
    weight = xp.astype(clustered, key.dtype)
    nodes, orders = [], []
    for i, (level, metric) in enumerate(zip(layout.levels, _metrics(problem, query, layout), strict=True)):
        n_runs = metric.shape[1]
        keys, values, weights = (_blocked(xp, x, n_runs, level.block) for x in (key, value, weight))
        clusters = cluster(backend, keys, values, weights, metric, level.n_fine)
        group = _groups(backend.stop_gradient(clusters.mean), clusters.count, metric, level, problem)
        in_cluster = _blocked(xp, clustered, n_runs, level.block)
        order, start = _slots(xp, clusters, in_cluster)
        nodes.append(Node(level, clusters, group, start + i * math.prod(clustered.shape)))
        orders.append(order)
    weighted_value = xp.where(visible[..., None], with_weights(xp, value, key), 0.0)
    key_rows, value_rows = (xp.reshape(x, (-1, x.shape[-1])) for x in (key, weighted_value))
    sorted_keys = Keys(xp.concat(orders), key_rows, value_rows, problem.half)
    tiles = None
    if not problem.is_causal:
        columns = _columns(xp, nodes[0], 0, is_causal=False)
        tiles = tiles_of(backend, query, visible_queries(problem), columns)
    return Tree(layout, query, key, weighted_value, visible, is_first, first, nodes, sorted_keys, tiles)


def _blocked(xp: Namespace, x: Array, n_runs: int, block: int) -> Array:
    return xp.reshape(x, (x.shape[0], n_runs, x.shape[1] // (n_runs * block), block, *x.shape[2:]))


def _metrics(problem: Problem, query: Array, layout: Layout) -> Iterator[Array]:
    """Metric of each level's runs of blocks, shape (H, A, D, D): second moments of the queries.

    Where causal they are those up to the end of the block, or, for the smallest blocks of a chunk, up to its
    start: a block's clusters depend on nothing that a query which sees them may not know.
    """
    xp = problem.xp
    # A metric has a unit trace anyway: the sum of all squares does not overflow in these units.
    query = problem.backend.stop_gradient(query) * 2.0 ** -math.ceil(math.log2(problem.n_queries) / 2)
    if not problem.is_causal:
        yield metric_of(xp, second_moment(xp, query)[:, None, :, :])
        return
    n_heads, length, dim = query.shape
    by_chunk = xp.reshape(query, (n_heads, length // layout.chunk, layout.chunk, dim))
    moments = xp.cumulative_sum(second_moment(xp, by_chunk), axis=1)
    if len(layout.levels) > 1:
        first = second_moment(xp, query[:, : layout.own, :])[:, None, :, :]
        yield metric_of(xp, xp.concat([first, moments[:, :-1, :, :]], axis=1))
    for level in layout.levels[len(layout.levels) > 1 :]:
        step = level.block // layout.chunk
        yield metric_of(xp, moments[:, step - 1 :: step, :, :])


def _groups(mean: Array, count: Array, metric: Array, level: Level, problem: Problem) -> Array:
    """Groups of clusters with means near each other: within a block, or over all where not causal."""
    xp = problem.xp
    shape, dim = count.shape, mean.shape[-1]
    if not problem.is_causal:
        mean, count = xp.reshape(mean, (shape[0], 1, 1, -1, dim)), xp.reshape(count, (shape[0], 1, 1, -1))
    there = xp.astype(count > 0, mean.dtype)
    return xp.reshape(kmeans(problem.backend, mean, there, metric[:, :, None, :, :], level.n_coarse), shape)


def _slots(xp: Namespace, clusters: Clusters, in_cluster: Array) -> tuple[Array, Array]:
    """Key row at each slot of a level, and the slot of each cluster's first key."""
    block = clusters.labels.shape[-1]
    order, start = sorted_slots(xp, clusters, in_cluster)
    first = xp.reshape(integers(xp, math.prod(order.shape[:-1]), order) * block, (*order.shape[:-1], 1))
    return xp.reshape(order + first, (-1,)), start + first


def causal_view(problem: Problem, tree: Tree, chunk: int, query: Array) -> View | None:
    """The clusters that a chunk of causal queries (H, R, D) may look at; None where there are none."""
    xp = problem.xp
    runs = [_columns(xp, node, run, is_causal=True) for node, run in _runs_of_chunk(tree, chunk)]
    if not runs:
        return None
    logits, spreads, groups, n_groups = [], [], [], 0
    for run in runs:
        logit, spread = cluster_logits(problem.backend, query, run.axes, run.mean, run.variance, run.count)
        logits.append(logit)
        spreads.append(problem.backend.stop_gradient(spread))
        groups.append(run.group + n_groups)
        n_groups += run.n_groups
    logit = _joined(xp, logits)
    if len(tree.nodes) > 1:
        logit = _without_own_blocks(xp, logit, tree, runs[-1].count.shape[-1])
    return View(
        logit,
        _joined(xp, spreads),
        _joined(xp, [run.count for run in runs]),
        _joined(xp, [run.value for run in runs], axis=-2),
        _joined(xp, [run.mean for run in runs], axis=-2),
        bounded(xp, _joined(xp, [xp.sum(run.variance, axis=-1) for run in runs])),
        one_hot(xp, _joined(xp, groups), n_groups, query),
        _joined(xp, [run.start for run in runs]),
    )


def _joined(xp: Namespace, arrays: list[Array], axis: int = -1) -> Array:
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=axis)


def _runs_of_chunk(tree: Tree, chunk: int) -> Iterator[tuple[Node, int]]:
    """Runs of blocks that a causal chunk may look at, the largest blocks first."""
    first = chunk * tree.layout.chunk
    smallest = len(tree.nodes) > 1
    for node in reversed(tree.nodes[smallest:]):
        level = node.level
        yield from (
            (node, run)
            for run in range(first // level.parent * level.parent // level.block, first // level.block)
        )
    if smallest:
        yield tree.nodes[0], chunk


def _columns(xp: Namespace, node: Node, run: int, is_causal: bool) -> Columns:
    """The clusters of a run of a level's blocks that share a metric."""
    clusters, level = node.clusters, node.level
    n_heads, _, n_blocks, n_clusters = clusters.count.shape

    def columns(x: Array) -> Array:
        return xp.reshape(x[:, run, ...], (n_heads, n_blocks * n_clusters, *x.shape[4:]))

    group = node.group[:, run, ...]
    n_groups = level.n_coarse
    if is_causal:
        group = group + integers(xp, n_blocks, group)[:, None] * level.n_coarse
        n_groups = n_groups * n_blocks
    return Columns(
        clusters.axes[:, run, ...],
        columns(clusters.mean),
        columns(clusters.variance),
        columns(clusters.count),
        columns(clusters.value),
        xp.reshape(group, (n_heads, -1)),
        columns(node.start),
        n_groups,
    )


def _without_own_blocks(xp: Namespace, logit: Array, tree: Tree, n_smallest: int) -> Array:
    """Logits with the smallest blocks, the last columns, hidden that are not yet complete."""
    level = tree.layout.levels[0]
    n_rows, n_columns = logit.shape[-2:]
    block = integers(xp, n_rows, logit) // level.block
    column = integers(xp, n_columns, logit) - (n_columns - n_smallest)
    complete = (column // level.n_fine)[None, :] < block[:, None]
    return xp.where((column < 0)[None, :] | complete, logit, -math.inf)


def cluster_of_key(xp: Namespace, tree: Tree, chunk: int) -> Array:
    """Number of each key's cluster, of those that a chunk may look at: (H, length), -1 for none."""
    n_heads, length = tree.visible.shape
    runs = [(tree.nodes[0], 0)] if tree.tiles else _runs_of_chunk(tree, chunk)
    pieces, first = [], 0
    for node, run in runs:
        # The blocks of a chunk's runs follow one another.
        labels = node.clusters.labels[:, run, ...]
        n_blocks, n_clusters = labels.shape[1], node.level.n_fine
        column = labels + (integers(xp, n_blocks, labels) * n_clusters)[:, None] + first
        pieces.append(xp.reshape(column, (n_heads, -1)))
        first += n_blocks * n_clusters
    columns = xp.concat(pieces, axis=1)
    missing = xp.full((n_heads, length - columns.shape[1]), -1, dtype=columns.dtype, device=device(columns))
    columns = xp.concat([columns, missing], axis=1)
    return xp.where(tree.visible & ~tree.is_first, columns, -1)
