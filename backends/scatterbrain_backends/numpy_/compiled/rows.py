"""What is done to one row of an array, or to some."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.exponential import exponential
from scatterbrain_backends.numpy_.compiled.loop import loop, loop_over_numbers


@loop_over_numbers
def largest_entry(row: Any, least: Any) -> Any:
    """The largest entry of a row, no less than `least`; anything where one is NaN."""
    top = least
    for i in range(len(row)):
        x = row[i]
        top = x if x > top else top
    return top


@loop
def to_exponentials(row: Any, reference: Any) -> None:
    """exp(row - reference) in place of a row."""
    for i in range(len(row)):
        row[i] = exponential(row[i] - reference)


@loop
def gather(x: Any, index: Any, out: Any) -> None:
    """Rows of `x` into `out`, which may have more columns."""
    for i in range(len(index)):
        copy(x[index[i]], out[i])


@loop
def copy(row: Any, out: Any) -> None:
    """A row into `out`, which may be longer."""
    for c in range(len(row)):
        out[c] = row[c]


@loop
def to_weights(logits: Any, before: Any, sums: Any) -> Any:
    """Logits of a row to weights, and sums in units of exp(before) to their new reference, which it gives."""
    least, zero = logits.dtype.type(-np.inf), logits.dtype.type(0)
    top = largest_entry(logits, before)
    to_exponentials(logits, top if top > least else zero)
    kept = exponential(before - top) if top > least else zero
    for c in range(len(sums)):
        sums[c] *= kept
    return top
