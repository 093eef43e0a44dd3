"""The estimator by its definition, dense, in float64 NumPy, written without the library's own code.

Only the draws are taken from the library: their layout (features (m, D); a table's K projections, then
the one that orders its buckets) is part of what "one seed, one answer" means.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

import scatterbrain_core as sb
from scatterbrain_core.random import Draws

METHODS = {
    "exact": sb.Scatterbrain(sparse=sb.AllPairs()),
    "performer": sb.Scatterbrain(sb.PositiveFeatures(6)),
    "lsh": sb.Scatterbrain(None, sb.RandomHyperplanes(2)),
    "scatterbrain": sb.Scatterbrain(sb.PositiveFeatures(6), sb.RandomHyperplanes(2)),
    "limited": sb.Scatterbrain(sb.PositiveFeatures(5), sb.RandomHyperplanes(1, 1, 5)),
    "tables": sb.Scatterbrain(sb.PositiveFeatures(7), sb.RandomHyperplanes(3, 3)),
    "limited tables": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(1, 2, 6)),
}


def oracle(query, key, value, parts, *, is_causal=False, mask=None, scale=None, seed=0):
    """Output and lse of every head; query (..., Lq, D), mask boolean and broadcastable."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    logs = log_weights(query, key, parts, is_causal=is_causal, mask=mask, scale=scale, seed=seed)
    lse = logsumexp(logs, axis=-1)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isneginf(lse)[..., None], 0.0, np.exp(logs - lse[..., None]))
    return weights @ value, lse


def log_weights(query, key, parts, *, is_causal=False, mask=None, scale=None, seed=0):
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    visible = np.ones((*query.shape[:-1], key.shape[-2]), dtype=bool)
    if is_causal:
        visible = visible & np.tri(query.shape[-2], key.shape[-2], dtype=bool)
    if mask is not None:
        visible = visible & mask
    logs = np.empty(visible.shape)
    root = math.sqrt(abs(scale))
    for head in np.ndindex(query.shape[:-2]):
        q, k = math.copysign(root, scale) * query[head], root * key[head]
        exact = scale * query[head] @ key[head].T
        support = _support(q, k, visible[head], parts.sparse, is_causal, seed)
        far = _log_low_rank(q, k, parts.low_rank, seed)
        logs[head] = np.where(visible[head], np.where(support, exact, far), -np.inf)
    return logs


def _log_low_rank(query, key, low_rank, seed):
    if low_rank is None:
        return np.full((len(query), len(key)), -np.inf)
    W = Draws(seed).features(low_rank.n_features, query.shape[-1])
    log_q = query @ W.T - (query**2).sum(-1, keepdims=True) / 2
    log_k = key @ W.T - (key**2).sum(-1, keepdims=True) / 2
    return logsumexp(log_q[:, None, :] + log_k[None, :, :], axis=-1) - math.log(low_rank.n_features)


def _support(query, key, visible, sparse, is_causal, seed):
    if isinstance(sparse, sb.AllPairs):
        return np.ones(visible.shape, dtype=bool)
    support = np.zeros(visible.shape, dtype=bool)
    if sparse is None:
        return support
    tables = sparse.n_tables or 1
    draws = Draws(seed).hash_generator().standard_normal((tables, sparse.n_bits + 1, query.shape[-1]))
    for projections in draws:
        q_signs, k_signs = (x @ projections[:-1].T >= 0 for x in (query, key))
        for i in range(len(query)):
            bucket = [j for j in range(len(key)) if (q_signs[i] == k_signs[j]).all() and visible[i, j]]
            support[i, _seen(i, bucket, query, key, projections[-1], sparse.max_bucket, is_causal)] = True
    return support


def _seen(i, bucket, query, key, direction, limit, is_causal):
    if is_causal:
        return bucket if limit is None else bucket[-limit:]
    if limit is None or not bucket:
        return bucket
    bucket = sorted(bucket, key=lambda j: key[j] @ direction)
    size = math.ceil(len(bucket) / math.ceil(len(bucket) / limit))
    place = sum(key[j] @ direction <= query[i] @ direction for j in bucket)
    piece = min(place, len(bucket) - 1) // size
    return bucket[piece * size : (piece + 1) * size]


def tolerance(dtype, query, key, scale=None):
    """What rounding of the logits may cost: 32 · eps · (1 + max|logit|)."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    top = np.abs(
        scale * np.asarray(query, np.float64) @ np.swapaxes(np.asarray(key, np.float64), -1, -2)
    ).max(initial=0.0)
    return 32 * np.finfo(dtype).eps * (1 + top)


def relative_error(got, expected):
    """‖got - expected‖ / ‖expected‖."""
    got, expected = (np.asarray(x, dtype=np.float64) for x in (got, expected))
    norm = np.linalg.norm(expected)
    return np.linalg.norm(got - expected) / (norm if norm > 0 else 1.0)
