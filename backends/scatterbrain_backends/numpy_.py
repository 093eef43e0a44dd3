"""NumPy: what can be written in place is, and rows are added where they belong without a sort."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scatterbrain_core.backend import Backend


class NumpyBackend(Backend):
    """Backend for `numpy.ndarray`."""

    def exp_below(self, logits: Any, reference: Any) -> Any:
        """exp(logits - reference), written over `logits`."""
        np.subtract(logits, reference, out=logits)
        return np.exp(logits, out=logits)

    def scatter_add(self, total: Any, index: Any, rows: Any) -> Any:
        """`total` with rows added in place; NumPy's loops run along the longer side of `rows`."""
        width = math.prod(total.shape[1:])
        sums, rows = total.reshape(len(total), width), rows.reshape(len(rows), width)
        # Sums in float64 either way: how many other rows there are changes no bit.
        if len(rows) < width:
            exact = np.zeros(sums.shape)
            for i, row in zip(index, rows, strict=True):
                exact[i] += row
            sums += exact
        else:
            for c in range(width):
                sums[:, c] += np.bincount(index, rows[:, c], len(sums))
        return sums.reshape(total.shape)
