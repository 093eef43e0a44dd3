"""Batched k-means in the metric of the queries, without a random draw."""

from __future__ import annotations

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.norms import norms
from scatterbrain_core.tiles import integers

ITERATIONS = 6
# In units of rounding: how near scores of two centres are equal.
SLACK = 4


def kmeans(backend: Backend, x: Array, weight: Array, metric: Array, n_clusters: int) -> Array:
    r"""Labels of points in clusters that are tight in :math:`(x-\mu)^T M (x-\mu)`, by Lloyd's iterations.

    It starts from points at equal distances in the order given: near in time is near in content, and no
    draw is needed. Points without weight move no centre.

    Parameters
    ----------
    x : array, shape (..., n, d)
    weight : array, shape (..., n)
        1.0, or 0.0 for a point that is not there.
    metric : array, shape (..., d, d)
        Symmetric and positive semidefinite: the second moment of the queries, as a cluster is as good as its
        logits are near each other.
    n_clusters : int
        At most n.

    Returns
    -------
    array of int, shape (..., n)
    """
    return backend.kmeans(
        x, weight, metric, n_clusters, lambda: _kmeans(backend.xp, x, weight, metric, n_clusters)
    )


def _kmeans(xp: Namespace, x: Array, weight: Array, metric: Array, n_clusters: int) -> Array:
    centre = spread_points(xp, x, weight, n_clusters)
    in_metric = xp.matmul(x, metric)
    slack = slack_of(xp, in_metric)[..., None]
    labels = _nearest(xp, in_metric, centre, metric, slack)
    for _ in range(ITERATIONS - 1):
        member = one_hot(xp, labels, n_clusters, x) * weight[..., None]
        count = xp.sum(member, axis=-2)[..., None]
        mean = xp.matmul(xp.matrix_transpose(member), x) / xp.where(count == 0, 1.0, count)
        centre = xp.where(count == 0, centre, mean)
        labels = _nearest(xp, in_metric, centre, metric, slack)
    return labels


def one_hot(xp: Namespace, labels: Array, n: int, like: Array) -> Array:
    """1.0 at each label, shape (..., n); zeros for a label that is none of 0 ... n - 1."""
    return xp.astype(labels[..., None] == integers(xp, n, labels), like.dtype)


def slack_of(xp: Namespace, in_metric: Array) -> Array:
    """How near, times the norm of a centre, scores of points (..., n, d) are equal: shape (..., n).

    Equal keys start equal centres, which libraries tell apart by rounding: of equal ones the first is taken.
    """
    return SLACK * float(xp.finfo(in_metric.dtype).eps) * norms(xp, in_metric)


def _nearest(xp: Namespace, in_metric: Array, centre: Array, metric: Array, slack: Array) -> Array:
    """The first of the nearest centres: scores are equal within `slack` times the norm of a centre."""
    # Of (x - c)'M(x - c), what depends on the centre c.
    scores = xp.matmul(in_metric, xp.matrix_transpose(centre))
    scores = scores - 0.5 * xp.sum(xp.matmul(centre, metric) * centre, axis=-1)[..., None, :]
    near = scores + slack * norms(xp, centre)[..., None, :] >= xp.max(scores, axis=-1)[..., None]
    return xp.argmax(xp.astype(near, xp.int8), axis=-1)


def spread_points(xp: Namespace, x: Array, weight: Array, n_clusters: int) -> Array:
    """Points in the middle of `n_clusters` runs of as many points that are there."""
    rank = xp.cumulative_sum(weight, axis=-1)
    # (c + 1/2) / n_clusters of all, in units that leave no fraction to round.
    wanted = (2 * xp.astype(integers(xp, n_clusters, rank), x.dtype) + 1) * rank[..., -1:]
    # The first point whose rank reaches what is wanted; all points come before a rank that is never reached.
    rank = 2 * n_clusters * rank
    index = xp.sum(xp.astype(rank[..., None, :] < wanted[..., None], integers(xp, 1, x).dtype), axis=-1)
    index = xp.minimum(index, x.shape[-2] - 1)
    return xp.take_along_axis(x, xp.broadcast_to(index[..., None], (*index.shape, x.shape[-1])), axis=-2)
