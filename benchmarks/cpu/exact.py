"""Exact attention of some rows in float64, in memory that does not grow with the number of keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.shared.arrays import Array

# What a method estimates: attention, or attention whose keys are the normalised queries.
PLAIN, SHARED = "plain", "shared queries and keys"
BLOCK = 2**14
# The weight of a row's own key where queries and keys are shared: used only where there is no other.
OWN_LOGIT = -5e4


def exact_rows(
    arrays: list[Array], rows: npt.NDArray[np.intp], is_causal: bool, target: str = PLAIN
) -> npt.NDArray[np.float64]:
    """Output of these rows of every head, shape (heads, rows, dim)."""
    return np.stack([_head([x[h] for x in arrays], rows, is_causal, target) for h in range(len(arrays[0]))])


def _head(
    arrays: list[Array], rows: npt.NDArray[np.intp], is_causal: bool, target: str
) -> npt.NDArray[np.float64]:
    """The streaming softmax over blocks of keys; every row sees some key of the first block."""
    query, key, value = arrays if target == PLAIN else (arrays[0], arrays[0], arrays[2])
    chosen = query[rows].astype(np.float64) / math.sqrt(query.shape[1])
    top = np.full((len(rows), 1), -np.inf)
    total, weighted = np.zeros((len(rows), 1)), np.zeros((len(rows), value.shape[1]))
    for start in range(0, len(key), BLOCK):
        here = slice(start, start + BLOCK)
        logits = _logits(chosen, key[here].astype(np.float64), rows - start, is_causal, target)
        new_top = np.maximum(top, logits.max(axis=1, keepdims=True))
        weights, kept = np.exp(logits - new_top), np.exp(top - new_top)
        total = total * kept + weights.sum(axis=1, keepdims=True)
        weighted = weighted * kept + weights @ value[here].astype(np.float64)
        top = new_top
    return np.asarray(weighted / total)


def _logits(
    query: npt.NDArray[np.float64],
    key: npt.NDArray[np.float64],
    own: npt.NDArray[np.intp],
    is_causal: bool,
    target: str,
) -> npt.NDArray[np.float64]:
    """Of rows and a block of keys; `own` is each row's place in the block, which may lie outside."""
    place = np.arange(len(key))
    if target == SHARED:
        key = key / np.linalg.norm(key, axis=1, keepdims=True)
    logits: npt.NDArray[np.float64] = query @ key.T
    if target == SHARED:
        logits[place == own[:, None]] = OWN_LOGIT
    if is_causal:
        logits[place > own[:, None]] = -np.inf
    return logits


def relative_error(output: npt.NDArray[Any], exact: npt.NDArray[np.float64]) -> float:
    """‖output − exact‖ / ‖exact‖ over all heads and rows."""
    return float(np.linalg.norm(output.astype(np.float64) - exact) / np.linalg.norm(exact))
