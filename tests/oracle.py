"""The estimator by its definition, dense, in float64 NumPy, written without the library's own code.

Only the draws are taken from the library: their layout (features (m, D); a table's K projections, then
the one that orders its buckets; of the other hash families what their `draw` says) is part of what "one
seed, one answer" means.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cholesky, hadamard, solve_triangular, svd
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
    "simplex, e2lsh": sb.Scatterbrain(
        sb.PositiveFeatures(6, "simplex", paired=True, rho=0.8), sb.E2LSH(1, 1.0, 3.0, 1, 6)
    ),
    "elu, cross-polytope": sb.Scatterbrain(sb.EluFeatures(), sb.CrossPolytope(1, 4, 3)),
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
    logs = np.empty(visible.shape, dtype=complex if _is_signed(parts) else float)
    root = math.sqrt(abs(scale))
    for head in np.ndindex(query.shape[:-2]):
        q, k = math.copysign(root, scale) * query[head], root * key[head]
        exact = scale * query[head] @ key[head].T
        support = _support(q, k, visible[head], parts.sparse, is_causal, seed)
        seen = visible[head].any(-1), visible[head].any(-2)
        far = _log_low_rank(q, k, parts.low_rank, seed, *seen)
        logs[head] = np.where(visible[head], np.where(support, exact, far), -np.inf)
    return logs


def _is_signed(parts):
    return isinstance(parts.low_rank, sb.TrigonometricFeatures)


def _log_low_rank(query, key, low_rank, seed, row_seen, key_seen):
    """Logs of all low-rank weights, complex where they may be negative."""
    if low_rank is None:
        return np.full((len(query), len(key)), -np.inf)
    if isinstance(low_rank, sb.EluFeatures):
        phi_q, phi_k = (np.where(x > 0, 1 + x, np.exp(np.minimum(x, 0))) for x in (query, key))
        return np.log(phi_q @ phi_k.T)
    (W,) = low_rank.draw(Draws(seed).feature_generator(), query.shape[-1])
    if isinstance(low_rank, sb.TrigonometricFeatures):
        angles = query @ W.T, key @ W.T
        waves = [np.concatenate([np.cos(x), np.sin(x)], axis=-1) for x in angles]
        norms = (query**2).sum(-1)[:, None] / 2 + (key**2).sum(-1)[None, :] / 2
        return norms + np.log((waves[0] @ waves[1].T / len(W)).astype(complex))
    return _log_positive(query, key, low_rank, W, row_seen, key_seen)


def _log_positive(query, key, low_rank, W, row_seen, key_seen):
    exact = query @ key.T
    if low_rank.centred:
        query, key = query - query[row_seen].mean(0), key - key[key_seen].mean(0)
    factor = exact - query @ key.T  # of the row and of the column, exact
    if low_rank.whitened:
        query, key = _whiten(query, key, query[row_seen], key[key_seen])
    dim, rho = query.shape[-1], low_rank.rho
    if rho == "optimal":
        z = (query[row_seen][:, None, :] + key[key_seen][None, :, :]).reshape(-1, dim)
        s = (z**2).sum(-1).mean()
        rho = 2 * dim / (math.sqrt((2 * s + dim) ** 2 + 8 * dim * s) + 2 * s + dim)
    # Chefs' random tables: f(w, x) = D exp(A |w|^2 + B w.x - |x|^2 / 2) with 1 - 8 A = 1 / rho.
    A = (1 - 1 / rho) / 8
    B, log_D = math.sqrt(1 - 4 * A), dim / 4 * math.log(1 - 4 * A)
    norms = A * (W**2).sum(-1)
    log_q, log_k = (log_D + norms + B * x @ W.T - (x**2).sum(-1, keepdims=True) / 2 for x in (query, key))
    return factor + logsumexp(log_q[:, None, :] + log_k[None, :, :], axis=-1) - math.log(len(W))


def _whiten(query, key, seen_query, seen_key):
    """P q and P^-1 k with P^2 = S_q^-1 # S_k, by Cholesky factors and singular values.

    With S_q = L L', S_k = K K' and L'K = U s V', P^2 = X X' for X = L'^-1 U s^(1/2): nothing is squared.
    """
    L, K = (cholesky(_regular(x.T @ x / len(x)), lower=True) for x in (seen_query, seen_key))
    U, s, _ = svd(L.T @ K)
    vectors, values, _ = svd(solve_triangular(L, U * np.sqrt(s), lower=True, trans="T"))
    values = np.maximum(values, values[0] / 10)
    return query @ (vectors * values @ vectors.T), key @ (vectors / values @ vectors.T)


def _regular(S):
    mean = np.trace(S) / len(S)
    return S + (1e-2 * mean if mean > 0 else 1.0) * np.eye(len(S))


def _support(query, key, visible, sparse, is_causal, seed):
    if isinstance(sparse, sb.AllPairs):
        return np.ones(visible.shape, dtype=bool)
    support = np.zeros(visible.shape, dtype=bool)
    if sparse is None:
        return support
    # Only a fitted radius looks at rows other than the pair's own: it is that of the rows that are seen.
    query, key = (np.where(visible.any(axis)[:, None], x, 0.0) for x, axis in ((query, -1), (key, -2)))
    for q_codes, k_codes, direction in hash_tables(query, key, sparse, seed):
        meets = (q_codes[:, None, :] == k_codes[None, :, :]).all(-1) & visible
        for i in range(len(query)):
            bucket = list(np.flatnonzero(meets[i]))
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
            rotated = (x * d1 @ H * d2 @ H * d3 @ H)[:, : sparse.n_coordinates]
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
