"""Test data: seeded normal queries, keys and values."""

from __future__ import annotations

import numpy as np

from scatterbrain_backends.numpy_ import NumpyBackend
from scatterbrain_core.backend import Backend


def draw_problem(rng, n_queries, n_keys, dim=5, lead=(2,), columns=3, dtype="float64"):
    """Query (..., n_queries, dim), key and value of independent standard normal entries."""
    shapes = ((*lead, n_queries, dim), (*lead, n_keys, dim), (*lead, n_keys, columns))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def own_coordinates(x):
    """Vectors (heads, blocks, n, d) as (heads, blocks * n, heads * blocks * d), each block in its own d.

    The draws that a block meets are independent of those of the others.
    """
    heads, n_blocks, n, d = x.shape
    apart = np.zeros((heads, n_blocks, n, heads, n_blocks, d))
    for head, block in np.ndindex(heads, n_blocks):
        apart[head, block, :, head, block] = x[head, block]
    return apart.reshape(heads, n_blocks * n, -1)


def eps(dtype):
    """Rounding unit of a dtype."""
    return float(np.finfo(dtype).eps)


def set_chunks(monkeypatch, elements):
    """Let temporaries have so many elements on the CPU, whatever the library."""
    for backend in (Backend, NumpyBackend):
        monkeypatch.setattr(backend, "chunk_elements", elements)
