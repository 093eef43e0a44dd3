"""Running merges of partial results, one after the other: the states are small, and few of them are large."""

from __future__ import annotations

from typing import Any

import numpy as np


def running_merge(ref: Any, acc: Any, segment: Any) -> tuple[Any, Any]:
    """As `normalization.running_merge`, in order, with sums in float64."""
    refs, sums = np.empty_like(ref), np.empty_like(acc)
    starts = np.concatenate([[True], segment[1:] != segment[:-1]])[: len(ref)].tolist()
    top, total = np.empty(0), np.empty(0)
    for i, is_start in enumerate(starts):
        if is_start:
            top, total = ref[i], acc[i].astype(np.float64)
        else:
            together = np.maximum(top, ref[i])
            base = np.where(together == -np.inf, 0, together)
            total *= np.exp(top - base)[:, None]
            total += acc[i] * np.exp(ref[i] - base)[:, None]
            top = together
        refs[i], sums[i] = top, total
    return refs, sums
