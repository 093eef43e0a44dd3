"""Rows of unequal length as stacks of equal ones: one call does many, at the price of what fills them up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# Elements of a stack: so long a call that threads seldom wait for the interpreter, in a shared cache.
STACK_ELEMENTS = 2**18
STACK_MATRICES = 64
# Elements of a stack for each that is not there to fill up.
MAX_FILLING = 1.3


def in_stacks(n_rows: Any, n_columns: Any) -> Iterator[Any]:
    """Indices of matrices (n_rows, n_columns), of like shape and few enough for one stack.

    Parameters
    ----------
    n_rows, n_columns : ndarray of int, shape (n,)

    Yields
    ------
    ndarray of int
        Every index is in one stack.
    """
    order = np.lexsort((n_columns, n_rows))
    shapes = zip(n_rows[order].tolist(), n_columns[order].tolist(), strict=True)
    begin = rows = columns = own = 0
    for end, (r, c) in enumerate(shapes):
        rows, columns, own = max(rows, r), max(columns, c), own + r * c
        filled = (end + 1 - begin) * rows * columns
        is_full = end - begin == STACK_MATRICES or filled > min(STACK_ELEMENTS, MAX_FILLING * own)
        if end > begin and is_full:
            yield order[begin:end]
            begin, rows, columns, own = end, r, c, r * c
    if len(order):
        yield order[begin:]


def filled_up(first: Any, length: Any) -> tuple[Any, Any]:
    """Indices first, first + 1, … of some rows, the first again where one is shorter than the longest.

    Parameters
    ----------
    first, length : ndarray of int, shape (n,)

    Returns
    -------
    index : ndarray of int, shape (n, longest)
    is_own : ndarray of bool, shape (n, longest)
        False where it only fills up.
    """
    place = np.arange(length.max(initial=0))
    is_own = place < length[:, None]
    return first[:, None] + place * is_own, is_own
