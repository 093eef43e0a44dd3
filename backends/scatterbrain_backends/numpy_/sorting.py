"""Stable sorts by NumPy's fastest means, digits for integers and vector instructions for floats; and runs."""

from __future__ import annotations

from typing import Any

import numpy as np

# NumPy sorts integers of 16 bits by their digits, in linear time.
DIGIT_BITS = 15


def stable_argsort(x: Any) -> Any:
    """The stable argsort of an array of one axis: of floats, or of integers that are not negative."""
    return _by_digits(x) if x.dtype.kind in "iu" else _by_vectors(x)


def _by_digits(x: Any) -> Any:
    """The lowest digits first; each sort keeps the order of those before it among equal digits."""
    if x.dtype.itemsize <= 2:
        return np.argsort(x, kind="stable")
    order = None
    for shift in range(0, max(int(x.max(initial=0)).bit_length(), 1), DIGIT_BITS):
        digit = ((x >> shift) & (2**DIGIT_BITS - 1)).astype(np.int16)
        if order is None:
            order = np.argsort(digit, kind="stable")
        else:
            order = order[np.argsort(digit[order], kind="stable")]
    return order


def _by_vectors(x: Any) -> Any:
    """NumPy's own choice of a sort is fast but not stable: equal numbers are put in order after it."""
    order = np.argsort(x)
    ordered = x[order]
    if ordered.size and ordered[-1] != ordered[-1]:  # NaN, which no comparison finds equal
        return np.argsort(x, kind="stable")
    is_new = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(x)]
    tied = ~is_new
    tied[:-1] |= ~is_new[1:]
    places = np.flatnonzero(tied)
    group = np.cumsum(is_new)[places]
    order[places] = np.sort(group * len(x) + order[places]) % max(len(x), 1)
    return order


def edges_of_runs(x: Any) -> Any:
    """Places at which runs of equal numbers begin, and the length of the array, of one axis and not empty."""
    return np.concatenate([[0], 1 + np.flatnonzero(x[1:] != x[:-1]), [len(x)]])
