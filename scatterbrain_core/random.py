"""Every random draw, made on the host by NumPy from one seed, so that all libraries see the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_core._checks import as_index, type_name
from scatterbrain_core._typing import Array, Namespace, Seed


class Draws:
    """Independent streams of random numbers, one a purpose.

    The low-rank part and the sparse part never share projections: the estimator is unbiased only when
    the feature map is independent of the support (arXiv 2110.15343, Theorem 2).

    Parameters
    ----------
    seed : int or numpy.random.Generator
        A non-negative int gives the same draws at every call; a generator moves on.

    Raises
    ------
    TypeError, ValueError
        `seed` is something else, or negative.
    """

    def __init__(self, seed: Seed) -> None:
        features, hashes = _generator(seed).integers(0, 2**63, size=2)
        self._features, self._hashes = int(features), int(hashes)

    def features(self, *shape: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Standard normal numbers of the low-rank part, the same at every call."""
        return np.random.default_rng(self._features).standard_normal(shape)

    def hash_generator(self) -> np.random.Generator:
        """A fresh generator of all that the sparse part draws, the same at every call."""
        return np.random.default_rng(self._hashes)


def _generator(seed: Seed) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    number = as_index(seed)
    if number is None:
        raise TypeError(f"seed must be an int or a numpy.random.Generator, got {type_name(seed)}")
    if number < 0:
        raise ValueError(f"seed must not be negative, got {number}")
    return np.random.default_rng(number)


def to_device(xp: Namespace, draws: np.ndarray[Any, Any], like: Array) -> Array:
    """Host draws, rounded to the dtype of `like`, as an array on its device."""
    import array_api_compat

    dtype = {"float32": np.float32, "float64": np.float64}[str(like.dtype).rpartition(".")[2]]
    return xp.asarray(draws.astype(dtype), device=array_api_compat.device(like))
