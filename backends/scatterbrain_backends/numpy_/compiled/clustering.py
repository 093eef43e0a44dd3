"""Points and their clusters: the nearest centre, sums of a cluster's rows, logits to second order."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop


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
def finish_logits(logit: Any, spread: Any, unit: Any, most: Any, size: Any) -> None:
    """Products with means (R, K), and variances in units, to logits and variances of at most `most` units."""
    half = logit.dtype.type(0.5)
    for r in range(len(logit)):
        for k in range(logit.shape[1]):
            own, limit = spread[r, k], most[k]
            own = (own if own < limit else limit) * unit[k]
            spread[r, k] = own
            logit[r, k] += half * own + size[k]
