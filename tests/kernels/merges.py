"""Partial results of blocks in segments, and their running merges by the definition, in float64."""

from __future__ import annotations

import numpy as np

from scatterbrain_backends.cupy_.launches import Launch, running_merge


def make_states(rng, lengths=(5, 1, 9, 2), rows=5, columns=7, dtype="float32"):
    """`ref`, `acc` and the segment of each block; their numbers stand together, in no order.

    A tenth of the states saw nothing, and a row of the first segment never does.
    """
    n = sum(lengths)
    ref = (50 * rng.standard_normal((n, rows))).astype(dtype)
    ref[rng.random(ref.shape) < 0.1] = -np.inf
    ref[: lengths[0] if lengths else 0, -1] = -np.inf
    acc = rng.standard_normal((n, rows, columns)).astype(dtype)
    acc[np.isneginf(ref)] = 0
    return ref, acc, np.repeat(rng.permutation(len(lengths)), lengths)


def prepare(ref, acc, segment) -> tuple[Launch, np.ndarray, np.ndarray]:
    """The kernel's launch and its outputs, of which every entry is to be written."""
    merged = np.full_like(ref, 7), np.full_like(acc, 7)
    return running_merge(ref, acc, segment, *merged), *merged


def by_definition(ref, acc, segment):
    """Each block with those before it in its segment, in units of the largest reference."""
    expected_ref, expected = np.full(ref.shape, -np.inf), np.zeros(acc.shape)
    for block, own in enumerate(segment):
        seen = np.flatnonzero(segment[: block + 1] == own)
        top = ref[seen].astype(np.float64).max(axis=0)
        factors = np.exp(ref[seen] - np.where(np.isneginf(top), 0, top))
        expected_ref[block] = top
        expected[block] = (factors[:, :, None] * acc[seen]).sum(axis=0)
    return expected_ref, expected


def error(ref, acc, expected_ref, expected) -> float:
    """Largest error of the sums; inf where references are others."""
    if not np.array_equal(ref, expected_ref):
        return np.inf
    off = np.abs(acc - expected).max(initial=0.0)
    return float(off) if np.isfinite(off) else np.inf
