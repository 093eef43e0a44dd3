"""The estimator by its definition, dense, in float64 NumPy, written without the library's own code.

Only the draws are taken from the library: their layout (features (m, D); a table's K projections, then
the one that orders its buckets; of the other hash families what their `draw` says) is part of what "one
seed, one answer" means.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import hadamard
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
    "cross-polytope": sb.Scatterbrain(sb.PositiveFeatures(5), sb.CrossPolytope(1, 4, 3)),
    "e2lsh": sb.Scatterbrain(sb.PositiveFeatures(5), sb.E2LSH(1, 1.0, 3.0, 1, 6)),
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
    for q_codes, k_codes, direction in hash_tables(query, key, sparse, seed):
        for i in range(len(query)):
            bucket = [j for j in range(len(key)) if (q_codes[i] == k_codes[j]).all() and visible[i, j]]
            support[i, _seen(i, bucket, query, key, direction, sparse.max_bucket, is_causal)] = True
    return support


def hash_tables(query, key, sparse, seed):
    """(query codes (Lq, ·), key codes (Lk, ·), direction of the cuts) of each table, for one head."""
    family = {
        sb.RandomHyperplanes: _hyperplanes,
        sb.CrossPolytope: _cross_polytopes,
        sb.E2LSH: _cells,
    }[type(sparse)]
    return family(query, key, sparse, Draws(seed).hash_generator())


def _hyperplanes(query, key, sparse, generator):
    for table in generator.standard_normal((sparse.n_tables or 1, sparse.n_bits + 1, query.shape[-1])):
        yield query @ table[:-1].T >= 0, key @ table[:-1].T >= 0, table[-1]


def _cross_polytopes(query, key, sparse, generator):
    tables, dim = sparse.n_tables or 1, query.shape[-1]
    axes = max(64, 2 ** math.ceil(math.log2(dim)))
    signs = 2 * generator.integers(0, 2, (tables, sparse.n_hashes, 3, axes)) - 1
    directions = generator.standard_normal((tables, dim))
    H = hadamard(axes) / math.sqrt(axes)
    tilt = 1 + np.arange(sparse.n_coordinates) / 2**16

    def codes(x, table):
        x = np.pad(x, ((0, 0), (0, axes - dim)))
        digits = [np.zeros(len(x))]
        for d1, d2, d3 in table:
            rotated = (x @ np.diag(d1) @ H @ np.diag(d2) @ H @ np.diag(d3) @ H)[:, : sparse.n_coordinates]
            nearest = np.argmax(np.abs(rotated) / tilt, axis=-1)
            digits += [nearest, rotated[np.arange(len(x)), nearest] >= 0]
        return np.stack(digits, axis=-1)

    for table, direction in zip(signs, directions, strict=True):
        yield codes(query, table), codes(key, table), direction


def _cells(query, key, sparse, generator):
    tables, dim = sparse.n_tables or 1, query.shape[-1]
    normals = generator.standard_normal((tables, sparse.n_hashes, dim + 2))
    shifts = generator.random((tables, sparse.n_hashes))
    directions = generator.standard_normal((tables, dim))
    radius = sparse.radius or math.sqrt((query**2).sum(-1).max() + (key**2).sum(-1).max())
    width = sparse.width * radius
    last = 2 ** math.ceil(math.log2(2 * math.ceil(6 / sparse.width) + 1)) / 2

    def codes(x, table, shift, lift):
        out = np.empty((len(x), sparse.n_hashes))
        for i, row in enumerate(x):
            point = lift(row, math.sqrt(max(radius**2 - row @ row, 0.0)))
            for h in range(sparse.n_hashes):
                out[i, h] = math.floor((table[h] @ point + shift[h] * width) / width)
        return np.clip(out, -last, last - 1)

    for table, shift, direction in zip(normals, shifts, directions, strict=True):
        q_codes = codes(query, table, shift, lambda row, root: [*row, 0.0, root])
        k_codes = codes(key, table, shift, lambda row, root: [*row, root, 0.0])
        yield q_codes, k_codes, direction


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
