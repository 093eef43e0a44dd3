"""k-means of blocks of keys, what is known of their clusters, and logits of these, in compiled loops.

As `kmeans`, `routing.nodes` and `routing.view` have them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_core.kmeans import ITERATIONS, SLACK
from scatterbrain_core.routing.view import MOST_SPREAD


def kmeans(x: Any, weight: Any, metric: Any, n_clusters: int) -> Any:
    """Labels of points (..., n, d), as `kmeans.kmeans`."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    labels = np.empty(x.shape[:-1], np.intp)
    lead = x.shape[:-2]
    metric = np.broadcast_to(metric, (*lead, *metric.shape[-2:]))
    eps = SLACK * float(np.finfo(x.dtype).eps)
    for b in np.ndindex(lead):
        arrays = (np.ascontiguousarray(y[b]) for y in (x, weight, metric))
        compiled.kmeans(*arrays, n_clusters, eps, ITERATIONS, labels[b])
    return labels


def two_largest(x: Any) -> Any:
    """The places i, j of the two largest of each row (..., K) as i K + j, as `routing.query_tiles`."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    found = np.empty(x.shape[:-1], np.intp)
    compiled.two_largest(x.reshape(-1, x.shape[-1]), found.reshape(-1))
    return found


def statistics(key: Any, value: Any, weight: Any, labels: Any, axes: Any, n_clusters: int) -> tuple[Any, ...]:
    """Count, mean, variance along the axes and mean value of each cluster, as `routing.nodes` has them."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    lead, dim = key.shape[:-2], key.shape[-1]
    axes = np.broadcast_to(axes, (*lead, *axes.shape[-2:]))
    widths = ((), (dim,), (dim,), value.shape[-1:])
    found = tuple(np.zeros((*lead, n_clusters, *width), key.dtype) for width in widths)
    for b in np.ndindex(lead):
        arrays = (np.ascontiguousarray(y[b]) for y in (key, value, weight, labels, axes))
        compiled.statistics(*arrays, *(y[b] for y in found))
    return found


def of_second_order(variance: Any, count: Any) -> tuple[Any, Any, Any, Any]:
    """Unit of each cluster's variances (..., K, D), the most of them, log of its keys; variances in units."""
    unit = np.maximum(variance.max(axis=-1), MOST_SPREAD * float(np.finfo(variance.dtype).smallest_normal))
    with np.errstate(divide="ignore"):
        size = np.log(count)
    return unit, MOST_SPREAD / unit, size, variance / unit[..., None]


def logits(query: Any, axes: Any, mean: Any, variance: Any, count: Any) -> tuple[Any, Any]:
    """Logits of clusters to second order, and variances, as `routing.view` has them."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    unit, most, size, in_units = of_second_order(variance, count)
    query = np.ascontiguousarray(query)  # in another layout equal vectors could be rounded otherwise
    along = query @ axes
    along *= along
    shape = (len(query), mean.shape[1], query.shape[1])
    logit, spread = (np.empty(shape, query.dtype) for _ in range(2))
    for head in range(len(query)):
        columns = (mean[head], in_units[head], unit[head], most[head], size[head])
        compiled.logits(query[head], along[head], *columns, logit[head], spread[head])
    # One query after the other in memory: what is made of them takes all queries at a cluster at a time.
    return np.swapaxes(logit, 1, 2), np.swapaxes(spread, 1, 2)
