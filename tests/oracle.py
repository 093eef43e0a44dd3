"""The estimator by its definition, dense, in float64 NumPy, written without the library's own code.

Only the draws are taken from the library: their layout (features (m, D); a table's K projections, then
the one that orders its buckets; of the other hash families what their `draw` says) is part of what "one
seed, one answer" means.
"""

from __future__ import annotations

import math

import numpy as np
from definitions import log_centroids, log_column_sample, log_nystrom, log_segment_means
from parts import N_CHUNKS, Combs, CombWeights, DrawnChunks, RunsOfBlocks, Segments
from scipy.linalg import cholesky, hadamard, solve_triangular, svd
from scipy.special import logsumexp
from sorted_supports import bigbird, reformer, smyrf

import scatterbrain_core as sb
from scatterbrain_core.random import Draws


def is_call(parts, is_causal=False, is_dense=False):
    """Whether a method is one that takes this kind of masks."""
    parts = parts.parts.values()
    return not (is_causal and any(part.reason_not_causal for part in parts)) and not (
        is_dense and any(part.reason_not_masked for part in parts)
    )


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
    "window": sb.Scatterbrain(None, sb.LocalWindow(6)),
    "window, features": sb.Scatterbrain(sb.PositiveFeatures(6), sb.LocalWindow(7)),
    "global": sb.Scatterbrain(sb.PositiveFeatures(6), sb.GlobalTokens(2, (5, 3), 3)),
    "longformer": sb.Scatterbrain(None, (sb.GlobalTokens(2, (), 2), sb.LocalWindow(5))),
    "global, window, tables": sb.Scatterbrain(
        sb.PositiveFeatures(5),
        (sb.RandomHyperplanes(2, 2), sb.GlobalTokens(1, (4,), 1), sb.LocalWindow(4)),
    ),
    "chunks": sb.Scatterbrain(None, DrawnChunks(3, 5)),
    "chunks, features": sb.Scatterbrain(sb.PositiveFeatures(4), DrawnChunks(4, 4)),
    "all kinds, segments": sb.Scatterbrain(
        Segments(),
        (DrawnChunks(2, 3), sb.LocalWindow(4), sb.RandomHyperplanes(3, 1, 4), sb.GlobalTokens(1)),
    ),
    "blocks, features": sb.Scatterbrain(sb.PositiveFeatures(5), RunsOfBlocks(4)),
    "clusters, weights": sb.Scatterbrain(CombWeights(5), (Combs(2, 5), sb.LocalWindow(3))),
    "clusters, features": sb.Scatterbrain(sb.PositiveFeatures(5), (sb.GlobalTokens(2), Combs(3, 7))),
    "sorted clusters": sb.Scatterbrain(None, sb.SortedClusters(5, 3)),
    "sorted clusters, features": sb.Scatterbrain(sb.PositiveFeatures(5), sb.SortedClusters(7)),
    "sorted clusters, window": sb.Scatterbrain(
        sb.PositiveFeatures(4), (sb.LocalWindow(3), sb.SortedClusters(4, 2), sb.GlobalTokens(2))
    ),
    "sorted chunks": sb.Scatterbrain(None, sb.SortedChunks(4, 6, 2)),
    "sorted chunks, features": sb.Scatterbrain(sb.PositiveFeatures(5), sb.SortedChunks(3, 4)),
    "sorted chunks, hashes": sb.Scatterbrain(
        sb.EluFeatures(), (sb.SortedChunks(3, 2, 2), sb.RandomHyperplanes(3), sb.Blocks(3, 1, 2))
    ),
    "bigbird": sb.Scatterbrain(None, (sb.GlobalTokens(2, (), 2), sb.Blocks(4, 3, 2))),
    "bigbird, features": sb.Scatterbrain(sb.PositiveFeatures(5), (sb.Blocks(3, 2, 3), sb.LocalWindow(5))),
    "key clusters": sb.Scatterbrain(None, sb.KeyClusters(4, 2, 7)),
    "key clusters, window, features": sb.Scatterbrain(
        sb.PositiveFeatures(5), (sb.LocalWindow(3), sb.KeyClusters(4, 1, query_block=3))
    ),
    "columns, features": sb.Scatterbrain(sb.PositiveFeatures(5), sb.SampledColumns(6, "uniform")),
    "columns by weights": sb.Scatterbrain(sb.GeometricMean(), sb.SampledColumns(4, "weights")),
    "selected queries": sb.Scatterbrain(sb.UniformWeights(), sb.SelectedQueries(5, 6)),
    "selected queries, window": sb.Scatterbrain(
        sb.EluFeatures(), (sb.SelectedQueries(2, 9), sb.LocalWindow(4))
    ),
    "top keys": sb.Scatterbrain(None, sb.TopKeys(5)),
    "top keys, hashes, features": sb.Scatterbrain(
        sb.PositiveFeatures(5), (sb.TopKeys(3), sb.RandomHyperplanes(2))
    ),
    "window, segment means": sb.Scatterbrain(sb.SegmentMeans(5), sb.LocalWindow(6)),
    "tables, segment means": sb.Scatterbrain(sb.SegmentMeans(4), sb.RandomHyperplanes(3, 3)),
    "centroids": sb.Scatterbrain(sb.Centroids(4)),
    "global, centroids": sb.Scatterbrain(sb.Centroids(4), sb.GlobalTokens(2, (5, 3), 3)),
    "chunks, centroids": sb.Scatterbrain(sb.Centroids(4), DrawnChunks(3, 5)),
    "columns": sb.Scatterbrain(sb.ColumnSample(6)),
    "tables, columns": sb.Scatterbrain(sb.ColumnSample(5), sb.RandomHyperplanes(2, 2)),
    "fitted": sb.Scatterbrain(sb.PositiveFeatures(5), sb.E2LSH(1, 1.0, None, 1)),
    "sampled": sb.Scatterbrain(None, (sb.RandomHyperplanes(2), sb.GlobalTokens(1)), debias=9),
    "naive sum": sb.Scatterbrain(
        sb.PositiveFeatures(6), (sb.LocalWindow(3), sb.RandomHyperplanes(2)), double_counting=True
    ),
}

# Parts in which the position of a key or a query counts.
SAMPLED = (sb.SampledColumns, sb.SelectedQueries)
POSITIONAL = (
    *SAMPLED,
    sb.Blocks,
    sb.KeyClusters,
    sb.SortedChunks,
    sb.LocalWindow,
    sb.GlobalTokens,
    RunsOfBlocks,
    Combs,
    DrawnChunks,
    Segments,
    *(sb.Centroids, sb.ColumnSample, sb.NystromLandmarks, sb.SegmentMeans),
)
BY_POSITION = [
    name
    for name, parts in METHODS.items()
    if parts.debias or any(isinstance(part, POSITIONAL) for part in parts.parts.values())
]
BY_CONTENT = [name for name in METHODS if name not in BY_POSITION]
# Those that may be causal, and those that may have a mask which is neither of keys nor of queries.
CAUSAL = [name for name, parts in METHODS.items() if is_call(parts, is_causal=True)]
MASKED = [name for name, parts in METHODS.items() if is_call(parts, is_dense=True)]
# Those of which all that is drawn is the same for any number of keys.
OF_ANY_LENGTH = [
    name
    for name, parts in METHODS.items()
    if parts.debias is None
    and not isinstance(parts.low_rank, sb.ColumnSample)
    and not any(isinstance(part, SAMPLED) for part in parts.supports)
]


def least_keys(parts):
    """The least number of keys that positions of global tokens and sizes of parts made of keys allow."""
    least = [place + 1 for part in parts.supports for place in getattr(part, "positions", ())]
    least += [part.n_clusters for part in parts.supports if isinstance(part, sb.KeyClusters)]
    if isinstance(parts.low_rank, sb.SegmentMeans | sb.Centroids | sb.ColumnSample):
        least.append(parts.rank)
    return max(least, default=1)


def oracle(query, key, value, parts, *, is_causal=False, mask=None, scale=None, seed=0):
    """Output and lse of every head; query (..., Lq, D), mask boolean and broadcastable."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    logs = log_weights(query, key, parts, value, is_causal=is_causal, mask=mask, scale=scale, seed=seed)
    lse = logsumexp(logs, axis=-1)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isneginf(lse.real)[..., None], 0.0, np.exp(logs - lse[..., None]))
    return (weights @ value).real, lse


def log_weights(query, key, parts, value=None, *, is_causal=False, mask=None, scale=None, seed=0):
    """Logs of all weights; values count for parts that sample keys by them."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    # A key of the future is one of the head all the same.
    shown = np.ones((*query.shape[:-1], key.shape[-2]), dtype=bool)
    if mask is not None:
        shown = shown & mask
    visible = shown & np.tri(query.shape[-2], key.shape[-2], dtype=bool) if is_causal else shown
    logs = np.empty(visible.shape, dtype=complex if _is_signed(parts) else float)
    root = math.sqrt(abs(scale))
    for head in np.ndindex(query.shape[:-2]):
        q, k = math.copysign(root, scale) * query[head], root * key[head]
        exact = scale * query[head] @ key[head].T
        v = None if value is None else value[head]
        support = _support(q, k, v, shown[head], visible[head], parts, is_causal, seed)
        seen = shown[head].any(-1), shown[head].any(-2)
        if isinstance(parts.low_rank, sb.GeometricMean):
            far = _log_geometric_mean(q, k, v, shown[head], parts, seed)
        else:
            far = _log_low_rank(q, k, parts.low_rank, seed, *seen)
        if parts.debias:
            far = _with_residual(far, exact, parts, seed)
        near = np.logaddexp(exact, far) if parts.double_counting else exact
        logs[head] = np.where(visible[head], np.where(support, near, far), -np.inf)
    return logs


def _is_signed(parts):
    return isinstance(parts.low_rank, sb.TrigonometricFeatures) or not parts.is_positive


def _with_residual(far, exact, parts, seed):
    """L + (n/s) · times sampled · (A - L), as a complex log where it may be negative."""
    n_keys = exact.shape[-1]
    within = Draws(seed).columns_generator().random(parts.debias)
    places = ((np.arange(parts.debias) + within) * n_keys / parts.debias).astype(int)
    share = np.bincount(places, minlength=n_keys) * n_keys / parts.debias
    with np.errstate(divide="ignore"):
        if parts.low_rank is None:
            return exact + np.log(share)
        return np.log((np.exp(far) * (1 - share) + np.exp(exact) * share).astype(complex))


def _log_low_rank(query, key, low_rank, seed, row_seen, key_seen):
    """Logs of all low-rank weights, complex where they may be negative."""
    if low_rank is None:
        return np.full((len(query), len(key)), -np.inf)
    if isinstance(low_rank, sb.UniformWeights):
        return np.zeros((len(query), len(key)))
    if isinstance(low_rank, sb.EluFeatures):
        phi_q, phi_k = (np.where(x > 0, 1 + x, np.exp(np.minimum(x, 0))) for x in (query, key))
        return np.log(phi_q @ phi_k.T)
    if isinstance(low_rank, Segments):
        W, u = low_rank.draw(Draws(seed).feature_generator(), query.shape[-1], len(key))
        label = np.arange(len(key)) // 7 % (low_rank.n_segments + 1) - 1
        if isinstance(low_rank, CombWeights):
            label = np.arange(len(key)) % low_rank.n_segments
        return np.where(label < 0, -np.inf, (query @ W.T)[:, label] + (key @ u)[:, 0])
    if isinstance(low_rank, sb.SegmentMeans | sb.Centroids | sb.NystromLandmarks):
        return _log_of_keys(query, key, low_rank, row_seen, key_seen)
    drawn = low_rank.draw(Draws(seed).feature_generator(), query.shape[-1], len(key))
    if isinstance(low_rank, sb.ColumnSample):
        return log_column_sample(query, key, low_rank.n_columns, *drawn, key_seen)
    (W,) = drawn
    if isinstance(low_rank, sb.TrigonometricFeatures):
        angles = query @ W.T, key @ W.T
        waves = [np.concatenate([np.cos(x), np.sin(x)], axis=-1) for x in angles]
        norms = (query**2).sum(-1)[:, None] / 2 + (key**2).sum(-1)[None, :] / 2
        return norms + np.log((waves[0] @ waves[1].T / len(W)).astype(complex))
    return _log_positive(query, key, low_rank, W, row_seen, key_seen)


def _log_of_keys(query, key, low_rank, row_seen, key_seen):
    """Logs of the weights of parts that are made from the keys without a draw."""
    if isinstance(low_rank, sb.SegmentMeans):
        return log_segment_means(query, key, low_rank.n_segments, key_seen)
    if isinstance(low_rank, sb.Centroids):
        return log_centroids(query, key, low_rank.n_clusters, low_rank.second_order, row_seen, key_seen)
    return log_nystrom(query, key, low_rank.n_landmarks, low_rank.iterations, row_seen, key_seen)


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


def _support(query, key, value, shown, visible, parts, is_causal, seed):
    if isinstance(parts.sparse, sb.AllPairs):
        return np.ones(visible.shape, dtype=bool)
    support = np.zeros(visible.shape, dtype=bool)
    for number, part in enumerate(parts.supports):
        if isinstance(part, sb.SampledColumns):
            support |= _columns(query, key, value, shown, part, seed, number)
            continue
        support |= SUPPORTS.get(type(part), _buckets)(query, key, visible, part, is_causal, seed, number)
    return support & visible


def _window(query, key, visible, part, is_causal, seed, number):
    i, j = np.ogrid[: len(query), : len(key)]
    if is_causal:
        return (i - part.window < j) & (j <= i)
    return (i - part.window // 2 <= j) & (j < i - part.window // 2 + part.window)


def _global(query, key, visible, part, is_causal, seed, number):
    support = np.zeros(visible.shape, dtype=bool)
    support[:, np.flatnonzero(visible.any(0))[: part.n_first]] = True
    support[:, list(part.positions)] = True
    support[: part.n_queries] = True
    return support


def _chunks(query, key, visible, part, is_causal, seed, number):
    generator = Draws(seed).support_generator(number)
    support = np.zeros(visible.shape, dtype=bool)
    for row in support:
        for chunk in generator.permutation(N_CHUNKS)[: part.n_drawn]:
            row[chunk * part.size : (chunk + 1) * part.size] = True
    return support


def _blocks(query, key, visible, part, is_causal, seed, number):
    i, j = np.ogrid[: len(query), : len(key)]
    return (i // part.size - j // part.size == 0) | (i // part.size - j // part.size == 1)


def _combs(query, key, visible, part, is_causal, seed, number):
    generator = Draws(seed).support_generator(number)
    j = np.arange(len(key))
    opened = [generator.permutation(part.n_clusters + 1)[: part.n_drawn] for _ in query]
    return np.array([np.isin(j % part.n_clusters, row) for row in opened])


def _key_clusters(query, key, visible, part, is_causal, seed, number):
    """Lloyd's k-means on the unit keys that are seen, 6 labellings from keys at equal distances in time."""
    support = np.zeros(visible.shape, dtype=bool)
    seen, rows = np.flatnonzero(visible.any(0)), visible.any(-1)
    if not len(seen):
        return support
    points = key[seen] / np.linalg.norm(key[seen], axis=-1, keepdims=True)
    first = [-((2 * c + 1) * len(seen) // (-2 * part.n_clusters)) - 1 for c in range(part.n_clusters)]
    centres = points[first]
    for _ in range(6):
        distance = ((points[:, None, :] - centres) ** 2).sum(-1)
        label = distance.argmin(-1)
        members = [np.flatnonzero(label == c) for c in range(part.n_clusters)]
        centres = np.array(
            [points[own].mean(0) if len(own) else was for own, was in zip(members, centres, strict=True)]
        )
    distance = ((points[:, None, :] - centres) ** 2).sum(-1)
    kept = [sorted(own, key=lambda j: distance[j, label[j]])[: part.max_cluster] for own in members]
    for block in range(0, len(query), part.query_block):
        own = [i for i in range(block, min(block + part.query_block, len(query))) if rows[i]]
        units = query[own] / np.linalg.norm(query[own], axis=-1, keepdims=True)
        cost = [((units - centre) ** 2).sum() for centre in centres]
        routes = sorted((c for c in range(part.n_clusters) if len(members[c])), key=lambda c: cost[c])
        for c in routes[: part.n_routes]:
            support[np.ix_(own, seen[kept[c]])] = True
    return support


def _sampled_columns(query, key, value, shown, part, seed, number):
    """Positions of the sampled keys and of the pilots."""
    gumbel, place = part.draw(Draws(seed).support_generator(number), query.shape[-1], len(query), len(key))
    seen, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(-1))
    if part.by == "uniform":
        return sorted(seen, key=lambda j: -gumbel[j])[: part.n_columns], []
    n_columns = min(part.n_columns, len(key))
    n_pilots = max(1, min(n_columns, n_columns * len(query) // len(key)))
    pilots = sorted(rows, key=lambda i: place[i])[:n_pilots]
    logits = query[pilots] @ key[seen].T
    P = logits - logsumexp(logits, axis=-1, keepdims=True) if len(seen) else logits
    score = logsumexp(2 * P, axis=0) / 2 + gumbel[seen] if len(pilots) else gumbel[seen]
    if part.by == "values" and value is not None:
        score = score + np.log(np.linalg.norm(value[seen], axis=-1))
    return list(seen[np.argsort(-score)[: part.n_columns]]), pilots


def _columns(query, key, value, shown, part, seed, number):
    columns, pilots = _sampled_columns(query, key, value, shown, part, seed, number)
    support = np.zeros(shown.shape, dtype=bool)
    support[:, columns] = True
    support[pilots] = True
    return support


def _log_geometric_mean(query, key, value, shown, parts, seed):
    (number,) = [n for n, part in enumerate(parts.supports) if isinstance(part, sb.SampledColumns)]
    part = parts.supports[number]
    columns, _ = _sampled_columns(query, key, value, shown, part, seed, number)
    mean = (query @ key[columns].T).mean(-1) if columns else np.zeros(len(query))
    return np.repeat(mean[:, None], len(key), axis=1)


def _selected(query, key, visible, part, is_causal, seed, number):
    (place,) = part.draw(Draws(seed).support_generator(number), query.shape[-1], len(query), len(key))
    seen, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(-1))
    sampled = sorted(seen, key=lambda j: place[j])[: part.n_sampled]
    support = np.zeros(visible.shape, dtype=bool)
    if not sampled:
        return support
    logits = (query[:, None, :] * key[sampled]).sum(-1)  # equal rows tie
    measure = (logits.max(-1, keepdims=True) - logits).mean(-1)
    count = max(1, part.n_selected * len(query) // len(key))
    support[sorted(rows, key=lambda i: -measure[i])[:count]] = True
    return support


def _top_keys(query, key, visible, part, is_causal, seed, number):
    support = np.zeros(visible.shape, dtype=bool)
    for i, row in enumerate(query):
        seen = np.flatnonzero(visible[i])
        support[i, seen[np.argsort(-(key[seen] * row).sum(-1), kind="stable")[: part.n_keys]]] = True
    return support


def _by_definition(function):
    def support(query, key, visible, part, is_causal, seed, number):
        return function(query, key, visible, part, is_causal, Draws(seed).support_generator(number))

    return support


SUPPORTS = {
    sb.Blocks: _by_definition(bigbird),
    sb.SortedChunks: _by_definition(reformer),
    sb.SortedClusters: _by_definition(smyrf),
    sb.LocalWindow: _window,
    sb.GlobalTokens: _global,
    RunsOfBlocks: _blocks,
    Combs: _combs,
    DrawnChunks: _chunks,
    sb.KeyClusters: _key_clusters,
    sb.SelectedQueries: _selected,
    sb.TopKeys: _top_keys,
}


def _buckets(query, key, visible, part, is_causal, seed, number):
    support = np.zeros(visible.shape, dtype=bool)
    # Only a fitted radius looks at rows other than the pair's own: it is that of the rows that are seen.
    query, key = (np.where(visible.any(axis)[:, None], x, 0.0) for x, axis in ((query, -1), (key, -2)))
    for q_codes, k_codes, direction in hash_tables(query, key, part, seed, number):
        meets = (q_codes[:, None, :] == k_codes[None, :, :]).all(-1) & visible
        for i in range(len(query)):
            bucket = list(np.flatnonzero(meets[i]))
            support[i, _seen(i, bucket, query, key, direction, part.max_bucket, is_causal)] = True
    return support


def hash_tables(query, key, sparse, seed, number=0):
    """(query codes (Lq, ·), key codes (Lk, ·), direction of the cuts) of each table, for one head."""
    family = {
        sb.RandomHyperplanes: _hyperplanes,
        sb.CrossPolytope: _cross_polytopes,
        sb.E2LSH: _cells,
    }[type(sparse)]
    return family(query, key, sparse, Draws(seed).support_generator(number))


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
