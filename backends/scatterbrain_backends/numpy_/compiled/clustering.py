"""Points and their clusters: the nearest centre, sums of a cluster's rows, logits to second order."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop

# Queries of one product with all clusters, whose result stays in the cache.
PRODUCT_QUERIES = 256


@loop
def assign(scores: Any, own: Any, slack: Any, reach: Any, labels: Any) -> None:
    """The first of the nearest centres of each point, into `labels` (B, n).

    Parameters
    ----------
    scores : ndarray, shape (B, n, K)
        Overwritten.
    own, reach : ndarray, shape (B, K)
        What is taken off each score; and how far, times the point's slack, scores count as equal.
    slack : ndarray, shape (B, n)
    """
    n_blocks, n, n_clusters = scores.shape
    for b in range(n_blocks):
        for i in range(n):
            row = scores[b, i]
            best = row.dtype.type(-np.inf)
            for k in range(n_clusters):
                row[k] -= own[b, k]
                best = row[k] if row[k] > best else best
            labels[b, i] = 0
            for k in range(n_clusters):
                if row[k] + slack[b, i] * reach[b, k] >= best:
                    labels[b, i] = k
                    break


@loop
def add_rows(rows: Any, labels: Any, weight: Any, total: Any) -> None:
    """Add weighted rows (B, n, d) to the total of their cluster, (B, K, d)."""
    for b in range(len(rows)):
        for i in range(rows.shape[1]):
            own, w = total[b, labels[b, i]], weight[b, i]
            if w != 0:
                for c in range(rows.shape[2]):
                    own[c] += w * rows[b, i, c]


@loop
def add_squares(along: Any, labels: Any, weight: Any, total: Any) -> None:
    """Add weighted squares of rows (B, n, d) to the total of their cluster, (B, K, d)."""
    for b in range(len(along)):
        for i in range(along.shape[1]):
            own, w = total[b, labels[b, i]], weight[b, i]
            if w != 0:
                for c in range(along.shape[2]):
                    own[c] += w * along[b, i, c] * along[b, i, c]


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
    half, n_clusters = query.dtype.type(0.5), len(mean)
    of_means, of_variances = (
        np.empty(n_clusters * PRODUCT_QUERIES, query.dtype),
        np.empty(n_clusters * PRODUCT_QUERIES, query.dtype),
    )
    for first in range(0, len(query), PRODUCT_QUERIES):
        last = min(first + PRODUCT_QUERIES, len(query))
        n = last - first
        means = of_means[: n_clusters * n].reshape(n_clusters, n)
        variances = of_variances[: n_clusters * n].reshape(n_clusters, n)
        np.dot(mean, query[first:last].T, means)
        np.dot(variance, along[first:last].T, variances)
        for k in range(n_clusters):
            own_logit, own_spread = logit[k, first:last], spread[k, first:last]
            product, in_units = means[k], variances[k]
            limit, own_unit, own_size = most[k], unit[k], size[k]
            for j in range(n):
                own = (in_units[j] if in_units[j] < limit else limit) * own_unit
                own_spread[j] = own
                own_logit[j] = product[j] + (half * own + own_size)
