"""Low-rank parts made from the keys, by their papers' definitions: one head at a time, loops, float64."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax


def segments_of(seen, n_segments):
    """Rows that are seen in consecutive segments, the first ones larger by one; no empty segment."""
    return [rows for rows in np.array_split(np.flatnonzero(seen), n_segments) if len(rows)]


def log_segment_means(query, key, n_segments, key_seen):
    """Logit of each key's segment: q · mean key."""
    logs = np.full((len(query), len(key)), -np.inf)
    for rows in segments_of(key_seen, n_segments):
        logs[:, rows] = query @ key[rows].mean(0)[:, None]
    return logs


def log_centroids(query, key, n_clusters, second_order, row_seen, key_seen):
    """Logit of each key's cluster: q · μ + ½ Σ_e (q·u_e)² Var(u_e·k)."""
    logs = np.full((len(query), len(key)), -np.inf)
    axes = np.linalg.eigh(query[row_seen].T @ query[row_seen])[1]
    for rows in clusters_of(query, key, n_clusters, row_seen, key_seen):
        logit = query @ key[rows].mean(0)
        if second_order:
            logit = logit + ((query @ axes) ** 2 * (key[rows] @ axes).var(0)).sum(-1) / 2
        logs[:, rows] = logit[:, None]
    return logs


def clusters_of(query, key, n_clusters, row_seen, key_seen):
    """Rows of each cluster: Lloyd's iterations in the metric QᵀQ, in blocks of 64 to 127 clusters."""
    dim, query = query.shape[-1], query[row_seen]
    metric = query.T @ query
    metric = metric / (np.trace(metric) or 1.0) + 1e-4 / dim * np.eye(dim)
    n_blocks = max(1, n_clusters // 64)
    for rows in np.array_split(np.flatnonzero(key_seen), n_blocks):
        labels = lloyd(key[rows], metric, n_clusters // n_blocks)
        yield from (rows[labels == label] for label in np.unique(labels))


def lloyd(x, metric, n_clusters):
    """Labels after six assignments, from points in the middle of runs of as many."""
    wanted = [-((2 * c + 1) * len(x) // (-2 * n_clusters)) - 1 for c in range(n_clusters)]
    centres = x[wanted] if len(x) else np.zeros((1, x.shape[-1]))
    labels = _nearest(x, centres, metric)
    for _ in range(5):
        centres = [x[labels == c].mean(0) if (labels == c).any() else old for c, old in enumerate(centres)]
        labels = _nearest(x, centres, metric)
    return labels


def _nearest(x, centres, metric):
    apart = x[:, None, :] - np.asarray(centres)[None, :, :]
    return np.argmin(np.einsum("pcd,de,pce->pc", apart, metric, apart, optimize=True), axis=-1)


def log_column_sample(query, key, n_columns, order, key_seen):
    """Logits of the first keys of an order that are seen, with the weight of all that are seen."""
    logs = np.full((len(query), len(key)), -np.inf)
    columns = [j for j in order if key_seen[j]][:n_columns]
    if columns:
        logs[:, columns] = query @ key[columns].T + np.log(key_seen.sum() / len(columns))
    return logs


def nystromformer(query, key, n_landmarks, iterations, row_seen, key_seen):
    """The paper's matrix of attention, equation 13; columns of hidden keys are 0."""
    matrix = np.zeros((len(query), len(key)))
    q_marks, k_marks = _landmarks(query, n_landmarks, row_seen), _landmarks(key, n_landmarks, key_seen)
    first, last = softmax(query @ k_marks.T, axis=-1), softmax(q_marks @ key[key_seen].T, axis=-1)
    matrix[:, key_seen] = first @ pinv(softmax(q_marks @ k_marks.T, axis=-1), iterations) @ last
    return matrix


def log_nystrom(query, key, n_landmarks, iterations, row_seen, key_seen):
    """Complex logs of the paper's weights times the normaliser with each key replaced by its landmark."""
    parts = segments_of(key_seen, n_landmarks)
    sizes = [len(rows) for rows in parts]
    normaliser = logsumexp(query @ _landmarks(key, n_landmarks, key_seen).T, b=sizes, axis=-1)
    matrix = nystromformer(query, key, n_landmarks, iterations, row_seen, key_seen)
    with np.errstate(divide="ignore"):
        return np.log(matrix.astype(complex)) + normaliser[:, None]


def pinv(matrix, iterations):
    """Equation 14, as it is printed."""
    inverse = matrix.T / (np.abs(matrix).sum(0).max() * np.abs(matrix).sum(1).max())
    for _ in range(iterations):
        az, i = matrix @ inverse, np.eye(len(matrix))
        inverse = inverse @ (13 * i - az @ (15 * i - az @ (7 * i - az))) / 4
    return inverse


def _landmarks(x, n_landmarks, seen):
    return np.array([x[rows].mean(0) for rows in segments_of(seen, n_landmarks)])
