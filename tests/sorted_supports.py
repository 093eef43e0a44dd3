"""Supports of SMYRF, Reformer and BigBird by their definitions, in loops: for the dense oracle.

Each takes queries and keys of one head with the scale folded in, which pairs no mask hides, the part, whether
the call is causal and the part's generator, and gives the pairs that the part makes exact.
"""

from __future__ import annotations

import math

import numpy as np


def smyrf(query, key, visible, part, is_causal, generator):
    """arXiv 2010.05315, section 3: F(q) = [q; 0; sqrt(R² - |q|²)], G(k) = [k; sqrt(R² - |k|²); 0]."""
    assert not is_causal
    support = np.zeros(visible.shape, dtype=bool)
    queries, keys = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    a = generator.standard_normal((part.n_rounds or 1, query.shape[1] + 2))
    if not len(keys):
        return support
    longest = [max((x[rows] ** 2).sum(-1)) for x, rows in ((query, queries), (key, keys))]
    R2 = sum(longest)
    for normal in a:

        def hashed(x, axis, normal=normal):
            lifted = [*x, 0.0, 0.0]
            lifted[axis] = math.sqrt(max(R2 - x @ x, 0.0))
            return normal @ lifted

        sorted_queries = sorted(queries, key=lambda i: hashed(query[i], -1))
        sorted_keys = sorted(keys, key=lambda j: hashed(key[j], -2))
        clusters = np.array_split(sorted_keys, math.ceil(len(keys) / part.cluster_size))
        if len(queries) >= len(clusters):
            for rows, columns in zip(np.array_split(sorted_queries, len(clusters)), clusters, strict=True):
                support[np.ix_(rows, columns)] = True
        else:
            stretches = np.array_split(np.arange(len(clusters)), len(queries))
            for i, stretch in zip(sorted_queries, stretches, strict=True):
                support[i, clusters[stretch[(len(stretch) - 1) // 2]]] = True
    return support


def reformer(query, key, visible, part, is_causal, generator):
    """arXiv 2001.04451, section 2: h(x) = argmax([xR; -xR]), keys sorted by (h, position), chunks of m.

    Causal, each bucket begins a chunk.
    """
    support = np.zeros(visible.shape, dtype=bool)
    m, keys = part.chunk_size, np.flatnonzero(visible.any(0))
    for R in generator.standard_normal((part.n_rounds or 1, query.shape[1], part.n_codes // 2)):
        h_q, h_k = (np.argmax(np.concatenate([x @ R, -x @ R], axis=1), axis=1) for x in (query, key))
        order = sorted(keys, key=lambda j: (h_k[j], j))
        for i in range(len(query)):
            bucket = [j for j in order if h_k[j] == h_q[i]]
            row = bucket if is_causal else order
            before = [n for n, j in enumerate(row) if h_k[j] == h_q[i] and j <= i]
            within = [n for n, j in enumerate(row) if h_k[j] == h_q[i]]
            if not within:
                continue
            chunk = (before or within[:1])[-1] // m
            for n in within:
                support[i, row[n]] |= n // m in (chunk - 1, chunk) and (row[n] <= i or not is_causal)
    return support


def bigbird(query, key, visible, part, is_causal, generator):
    """arXiv 2007.14062, section 2: a window of w blocks, and r random ones of the others for each block."""
    support = np.zeros(visible.shape, dtype=bool)
    b, w, r = part.block_size, part.n_window, part.n_random
    n_blocks = math.ceil(max(np.flatnonzero(visible.any(0)) + 1, default=0) / b)  # the rest is padding
    drawn = generator.integers(0, 2**31, (math.ceil(len(query) / b), r))
    for t, numbers in enumerate(drawn):
        window = range(t - w + 1, t + 1) if is_causal else range(t - w // 2, t - w // 2 + w)
        others = [s for s in range(n_blocks) if s not in window and (s < t or not is_causal)]
        chosen = set()  # Floyd: r of them at random, all sets alike likely
        for top, number in zip(range(len(others) - r, len(others)), numbers, strict=True):
            if top >= 0:
                place = int(number) % (top + 1)
                chosen.add(top if place in chosen else place)
        assert len(chosen) == min(r, len(others))
        for s in [*window, *(others[place] for place in chosen)]:
            support[t * b : (t + 1) * b, max(s, 0) * b : max(s + 1, 0) * b] = True
    return np.tril(support) if is_causal else support
