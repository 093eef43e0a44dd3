"""k-means of blocks of keys, what is known of their clusters, and logits of these, in compiled loops.

As `kmeans`, `routing.nodes` and `routing.view` have them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import numpy as xp

from scatterbrain_backends.numpy_ import scratch
from scatterbrain_core.kmeans import ITERATIONS, slack_of, spread_points
from scatterbrain_core.norms import norms
from scatterbrain_core.routing.view import MOST_SPREAD


def kmeans(x: Any, weight: Any, metric: Any, n_clusters: int) -> Any:
    """Labels of points (..., n, d), as `kmeans.kmeans`."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    in_metric = x @ metric
    slack: Any = slack_of(xp, in_metric)
    centre: Any = spread_points(xp, x, weight, n_clusters)
    labels = np.empty(x.shape[:-1], np.intp)
    flat_labels, flat_slack = (_flat(y, 1) for y in (labels, slack))
    rows, weights = _flat(np.ascontiguousarray(x), 2), _flat(weight, 1)
    for i in range(ITERATIONS):
        scores = in_metric @ np.swapaxes(centre, -1, -2)
        own, reach = 0.5 * ((centre @ metric) * centre).sum(axis=-1), norms(xp, centre)
        compiled.assign(_flat(scores, 2), _flat(own, 1), flat_slack, _flat(reach, 1), flat_labels)
        if i < ITERATIONS - 1:
            total = _sums(rows, flat_labels, weights, n_clusters)
            count = _counts(flat_labels, weights, n_clusters)
            mean = (total / np.maximum(count, 1)[..., None]).reshape(centre.shape)
            centre = np.where(count.reshape(*centre.shape[:-1], 1) == 0, centre, mean)
    return labels


def statistics(key: Any, value: Any, weight: Any, labels: Any, axes: Any, n_clusters: int) -> tuple[Any, ...]:
    """Count, mean, variance along the axes and mean value of each cluster, as `routing.nodes` has them."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    shape = (*key.shape[:-2], n_clusters)
    flat_labels, weights = _flat(labels, 1), _flat(weight, 1)
    count = _counts(flat_labels, weights, n_clusters)
    total, of_values = (_sums(_flat(x, 2), flat_labels, weights, n_clusters) for x in (key, value))
    per_key = 1 / np.maximum(count, 1)[..., None]
    mean = (total * per_key).reshape(*shape, -1)
    squares = np.zeros_like(total)
    # Deviations are taken along the axes, where the keys' own size would cost them their digits.
    along = (key - np.take_along_axis(mean, labels[..., None], axis=-2)) @ axes
    compiled.add_squares(_flat(along, 2), flat_labels, weights, squares)
    variance, mean_value = ((x * per_key).reshape(*shape, -1) for x in (squares, of_values))
    return count.reshape(shape), mean, variance, mean_value


def logits(query: Any, axes: Any, mean: Any, variance: Any, count: Any) -> tuple[Any, Any]:
    """Logits of clusters to second order, and variances, as `routing.view` has them."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    least = MOST_SPREAD * float(np.finfo(query.dtype).smallest_normal)
    unit = np.maximum(variance.max(axis=-1), least).astype(query.dtype)
    in_units = variance / unit[..., None]
    query = np.ascontiguousarray(query)  # in another layout equal vectors could be rounded otherwise
    along = query @ axes
    along *= along
    with np.errstate(divide="ignore"):
        size = np.log(count)
    shape = (len(query), mean.shape[1], query.shape[1])
    logit, spread = (scratch.empty(shape, query.dtype) for _ in range(2))
    for head in range(len(query)):
        most = (MOST_SPREAD / unit[head]).astype(query.dtype)
        columns = (mean[head], in_units[head], unit[head], most, size[head])
        compiled.logits(query[head], along[head], *columns, logit[head], spread[head])
    # One query after the other in memory: what is made of them takes all queries at a cluster at a time.
    return np.swapaxes(logit, 1, 2), np.swapaxes(spread, 1, 2)


def _counts(labels: Any, weight: Any, n_clusters: int) -> Any:
    """How many points each cluster has, (B, K)."""
    ones = np.ones((*labels.shape, 1), weight.dtype)
    return _sums(ones, labels, weight, n_clusters)[..., 0]


def _sums(rows: Any, labels: Any, weight: Any, n_clusters: int) -> Any:
    """Sums of the rows of each cluster, (B, K, d)."""
    from scatterbrain_backends.numpy_.compiled import clustering as compiled

    total = np.zeros((len(rows), n_clusters, rows.shape[2]), rows.dtype)
    compiled.add_rows(rows, labels, weight, total)
    return total


def _flat(x: Any, n_axes: int) -> Any:
    """Leading axes as one."""
    return x.reshape(math.prod(x.shape[:-n_axes]), *x.shape[-n_axes:])
