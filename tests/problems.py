"""Test data: seeded normal queries, keys and values."""

from __future__ import annotations

import numpy as np


def draw_problem(rng, n_queries, n_keys, dim=5, lead=(2,), columns=3, dtype="float64"):
    """Query (..., n_queries, dim), key and value of independent standard normal entries."""
    shapes = ((*lead, n_queries, dim), (*lead, n_keys, dim), (*lead, n_keys, columns))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def eps(dtype):
    """Rounding unit of a dtype."""
    return float(np.finfo(dtype).eps)
