"""Points and their clusters: the nearest centre, sums of a cluster's rows, logits to second order."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop

# Rows of one product with all clusters, whose result stays in the cache.
PRODUCT_ROWS = 256


@loop
def kmeans(
    x: Any, weight: Any, metric: Any, n_clusters: int, eps: float, n_iterations: int, labels: Any
) -> None:
    """Labels (n,) of points (n, d) as `kmeans.kmeans` has them.

    Parameters
    ----------
    eps : float
        How far, times the norms of a point and of a centre, scores count as equal.
    """
    n, zero = len(x), x.dtype.type(0)
    centre = _spread_points(x, weight, n_clusters)
    in_metric, slack = np.dot(x, metric), np.empty(n, x.dtype)
    for i in range(n):
        slack[i] = x.dtype.type(eps) * _norm(in_metric[i])
    total, count = np.empty_like(centre), np.empty(n_clusters, x.dtype)
    for iteration in range(n_iterations):
        _assign(in_metric, slack, centre, np.dot(centre, metric), labels)
        if iteration == n_iterations - 1:
            return
        total[:] = zero
        count[:] = zero
        add_rows(x, labels, weight, total, count)
        for k in range(n_clusters):
            if count[k] > zero:
                centre[k] = total[k] / count[k]


@loop
def _spread_points(x: Any, weight: Any, n_clusters: int) -> Any:
    """Points in the middle of `n_clusters` runs of as many points that are there."""
    number, points = x.dtype.type, np.empty((n_clusters, x.shape[1]), x.dtype)
    n, total = len(x), number(0)
    for i in range(n):
        total += weight[i]
    i, rank = 0, weight[0]
    for c in range(n_clusters):
        wanted = number(2 * c + 1) * total
        while i < n - 1 and number(2 * n_clusters) * rank < wanted:
            i += 1
            rank += weight[i]
        points[c] = x[i]
    return points


@loop
def _assign(in_metric: Any, slack: Any, centre: Any, centre_in_metric: Any, labels: Any) -> None:
    """The nearest centre of each point."""
    n, n_clusters, half = len(in_metric), len(centre), in_metric.dtype.type(0.5)
    own, reach = np.empty(n_clusters, centre.dtype), np.empty(n_clusters, centre.dtype)
    for k in range(n_clusters):
        square = centre.dtype.type(0)
        for d in range(centre.shape[1]):
            square += centre_in_metric[k, d] * centre[k, d]
        own[k], reach[k] = half * square, _norm(centre[k])
    scores = np.empty((min(n, PRODUCT_ROWS), n_clusters), centre.dtype)
    for first in range(0, n, PRODUCT_ROWS):
        last = min(first + PRODUCT_ROWS, n)
        np.dot(in_metric[first:last], centre.T, scores[: last - first])
        for i in range(first, last):
            labels[i] = _nearest(scores[i - first], own, reach, slack[i])


@loop
def _norm(row: Any) -> Any:
    """As `norms.norms`."""
    # One over what is smaller could be infinite.
    unit, total = np.finfo(row.dtype).tiny, row.dtype.type(0)
    for d in range(len(row)):
        unit = max(unit, abs(row[d]))
    per_unit = row.dtype.type(1) / unit
    for d in range(len(row)):
        ratio = row[d] * per_unit
        total += ratio * ratio
    return unit * np.sqrt(total)


@loop
def _nearest(scores: Any, own: Any, reach: Any, slack: Any) -> Any:
    """The first of the nearest centres; scores are overwritten."""
    best = scores.dtype.type(-np.inf)
    for k in range(len(scores)):
        scores[k] -= own[k]
        best = scores[k] if scores[k] > best else best
    for k in range(len(scores)):
        if scores[k] + slack * reach[k] >= best:
            return k
    return 0


@loop
def add_rows(rows: Any, labels: Any, weight: Any, total: Any, count: Any) -> None:
    """Add weighted rows (n, d) to the total of their cluster, (K, d), and weights to its count, (K,)."""
    for i in range(len(rows)):
        own, w = total[labels[i]], weight[i]
        count[labels[i]] += w
        if w != 0:
            for c in range(rows.shape[1]):
                own[c] += w * rows[i, c]


@loop
def statistics(
    key: Any,
    value: Any,
    weight: Any,
    labels: Any,
    axes: Any,
    count: Any,
    mean: Any,
    variance: Any,
    value_mean: Any,
) -> None:
    """Count (K,), mean and variance along axes (K, d) and mean value (K, dv) of clusters; zeros before."""
    zero, one = key.dtype.type(0), key.dtype.type(1)
    add_rows(key, labels, weight, mean, count)
    unused = np.zeros_like(count)
    add_rows(value, labels, weight, value_mean, unused)
    for k in range(len(count)):
        per_key = one / count[k] if count[k] > zero else one
        mean[k] *= per_key
        value_mean[k] *= per_key
    n, dim = key.shape
    shape = (min(n, PRODUCT_ROWS), dim)
    apart, along = np.empty(shape, key.dtype), np.empty(shape, key.dtype)
    for first in range(0, n, PRODUCT_ROWS):
        last = min(first + PRODUCT_ROWS, n)
        for i in range(first, last):
            own, centre = apart[i - first], mean[labels[i]]
            for d in range(dim):
                own[d] = key[i, d] - centre[d]
        # Deviations are taken along the axes, where the keys' own size would cost them their digits.
        np.dot(apart[: last - first], axes, along[: last - first])
        for i in range(first, last):
            own, row, w = variance[labels[i]], along[i - first], weight[i]
            if w != 0:
                for d in range(dim):
                    own[d] += w * row[d] * row[d]
    for k in range(len(count)):
        variance[k] *= one / count[k] if count[k] > zero else one


@loop
def logits(
    query: Any,
    along: Any,
    mean: Any,
    variance: Any,
    unit: Any,
    most: Any,
    size: Any,
    logit: Any,
    spread: Any,
) -> None:
    """Logits of K clusters to second order, and variances of the logits within, of at most `most` units.

    Parameters
    ----------
    query, along : ndarray, shape (R, D)
        Queries, and the squares of what they are along the axes.
    mean, variance : ndarray, shape (K, D)
        The variances in units.
    unit, most, size : ndarray, shape (K,)
        `size` is the log of the number of keys.
    logit, spread : ndarray, shape (K, R)
        Written to.
    """
    n_clusters = len(mean)
    of_means, of_variances = (
        np.empty(n_clusters * PRODUCT_ROWS, query.dtype),
        np.empty(n_clusters * PRODUCT_ROWS, query.dtype),
    )
    for first in range(0, len(query), PRODUCT_ROWS):
        last = min(first + PRODUCT_ROWS, len(query))
        n = last - first
        means = of_means[: n_clusters * n].reshape(n_clusters, n)
        variances = of_variances[: n_clusters * n].reshape(n_clusters, n)
        np.dot(mean, query[first:last].T, means)
        np.dot(variance, along[first:last].T, variances)
        for k in range(n_clusters):
            own = logit[k, first:last], spread[k, first:last]
            to_second_order(means[k], variances[k], unit[k], most[k], size[k], *own)


@loop
def to_second_order(
    mean: Any, variance: Any, unit: Any, most: Any, size: Any, logit: Any, spread: Any
) -> None:
    """Logits and spreads of one cluster, from products with its mean and its variances in units."""
    half = mean.dtype.type(0.5)
    for j in range(len(mean)):
        own = (variance[j] if variance[j] < most else most) * unit
        spread[j] = own
        logit[j] = mean[j] + (half * own + size)


@loop
def two_largest(x: Any, found: Any) -> None:
    """Of rows (n, K), the places i, j of the two largest, the first of equal ones, as i K + j."""
    n_columns, least = x.shape[1], x.dtype.type(-np.inf)
    for r in range(len(x)):
        row, first, second = x[r], 0, 0
        top = next_top = least
        for k in range(n_columns):
            if row[k] > top:
                next_top, second = top, first
                top, first = row[k], k
            elif row[k] > next_top:
                next_top, second = row[k], k
        found[r] = first * n_columns + (second if next_top > least else 0)
