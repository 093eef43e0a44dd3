"""Clusters of the keys of a head that are alike to its queries, in time linear in their number."""

from __future__ import annotations

from array_api_compat import device

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.kmeans import kmeans
from scatterbrain_core.problem import Problem
from scatterbrain_core.segments import Segments, segments
from scatterbrain_core.tiles import gather, integers

# Keys are clustered in blocks of consecutive ones, of this many clusters up to twice as many: k-means over
# all of them would take time in n · m.
CLUSTERS_OF_BLOCK = 64
# Share of the mean eigenvalue that is added to the metric, which may be singular.
RIDGE = 1e-4


def key_clusters(problem: Problem, n_clusters: int) -> Array:
    """Cluster of each key by k-means in the metric of the queries, -1 where it is hidden: shape (H, Lk).

    A choice: it has no derivative. Some clusters may be empty. All parts of a call that ask for as many share
    them, and say so by `clustering_name`.
    """
    return problem.once(clustering_name(n_clusters), lambda: _key_clusters(problem, n_clusters))


def clustering_name(n_clusters: int) -> tuple[str, int]:
    """What `Features.clustering` and `tables.Clusters.clustering` are where they come from `key_clusters`."""
    return "clusters of keys", n_clusters


def _key_clusters(problem: Problem, n_clusters: int) -> Array:
    xp, constant = problem.xp, problem.backend.stop_gradient
    n_blocks = max(1, n_clusters // CLUSTERS_OF_BLOCK)
    of_block = n_clusters // n_blocks
    key = constant(problem.key)
    blocks = segments(xp, key, problem.key_mask, n_blocks)
    width = -(-problem.n_keys // n_blocks)
    place = blocks.start[..., None] + integers(xp, width, key)
    is_filled = integers(xp, width, key) < blocks.size[..., None]
    rows = _visible_first(problem) + integers(xp, problem.n_heads, key)[:, None] * problem.n_keys
    rows = xp.take_along_axis(rows, xp.reshape(xp.where(is_filled, place, 0), (problem.n_heads, -1)), axis=1)
    x = gather(xp, xp.reshape(_centred(problem, key), (-1, key.shape[-1])), xp.reshape(rows, place.shape))
    weight = xp.astype(is_filled, key.dtype)
    metric = query_metric(xp, constant(problem.query))[:, None, :, :]
    found = kmeans(problem.backend, x * weight[..., None], weight, metric, of_block)
    return _at_keys(xp, found, blocks, of_block)


def query_metric(xp: Namespace, query: Array) -> Array:
    """Second moment of the queries of each head, of trace 1 and made definite: shape (H, D, D)."""
    top = xp.max(xp.abs(query), axis=(-2, -1))[:, None, None]
    query = query / xp.where(top > 0, top, 1.0)
    moment = xp.matmul(xp.matrix_transpose(query), query)
    trace = xp.linalg.trace(moment)[:, None, None]
    dim = query.shape[-1]
    identity = xp.eye(dim, dtype=query.dtype, device=device(query))
    return moment / xp.where(trace > 0, trace, 1.0) + identity * (RIDGE / dim)


def _visible_first(problem: Problem) -> Array:
    """Positions of the keys of each head, by position, hidden ones last."""
    xp, shape = problem.xp, problem.key.shape[:2]
    if problem.key_mask is None:
        return xp.broadcast_to(integers(xp, shape[1], problem.key), shape)
    return xp.argsort(xp.astype(~problem.key_mask, xp.int8), stable=True)


def _centred(problem: Problem, key: Array) -> Array:
    """Keys less their mean: clusters stay, and digits are kept where all keys are nearly equal."""
    xp = problem.xp
    count = problem.n_keys if problem.key_mask is None else _count(xp, problem.key_mask, key)
    return key - xp.sum(key, axis=1)[:, None, :] / count


def _count(xp: Namespace, mask: Array, like: Array) -> Array:
    count = xp.sum(xp.astype(mask, like.dtype), axis=1)[:, None, None]
    return xp.where(count == 0, 1.0, count)


def _at_keys(xp: Namespace, found: Array, blocks: Segments, of_block: int) -> Array:
    """Clusters (H, B, width), numbered within a block, at the keys that stand there."""
    heads, n_blocks, width = found.shape
    block = xp.maximum(blocks.label, 0)
    place = xp.clip(block * width + blocks.offset, 0, n_blocks * width - 1)
    label = xp.take_along_axis(xp.reshape(found, (heads, -1)), place, axis=1) + block * of_block
    return xp.where(blocks.label < 0, -1, label)
