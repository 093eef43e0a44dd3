"""Every random draw, made on the host by NumPy from one seed, so that all libraries see the same numbers."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from scatterbrain_core._checks import as_index, type_name
from scatterbrain_core._typing import Array, Namespace, Seed
from scatterbrain_core.tiles import integers

Host: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Draws:
    """Independent streams of random numbers, one a part of the method.

    The low-rank part and the sparse part never share projections: the estimator is unbiased only when
    the feature map is independent of the support (arXiv 2110.15343, Theorem 2).

    Parameters
    ----------
    seed : int or numpy.random.Generator
        A non-negative int gives the same draws at every call; a generator gives an int and moves on.

    Attributes
    ----------
    seed : int
        The int that gives these draws again.

    Raises
    ------
    TypeError, ValueError
        `seed` is something else, or negative.
    """

    def __init__(self, seed: Seed) -> None:
        self.seed = _as_int(seed)
        streams = np.random.default_rng(self.seed).integers(0, 2**63, size=3)
        self._features, self._supports, self._columns = map(int, streams)

    def feature_generator(self) -> np.random.Generator:
        """Generator of the low-rank part, from its start."""
        return np.random.default_rng(self._features)

    def support_generator(self, number: int = 0) -> np.random.Generator:
        """Generator of a sparse part, by its number among them, from its start."""
        return np.random.default_rng(self._supports if number == 0 else [self._supports, number])

    def columns_generator(self) -> np.random.Generator:
        """Generator of the sampled keys, from its start."""
        return np.random.default_rng(self._columns)

    def columns(self, n_sampled: int, n_keys: int) -> Host:
        """Positions of sampled keys, ascending, shape (n_sampled,)."""
        return stratified(self.columns_generator().random(n_sampled), n_keys)


def _as_int(seed: Seed) -> int:
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(0, 2**63))
    number = as_index(seed)
    if number is None:
        raise TypeError(f"seed must be an int or a numpy.random.Generator, got {type_name(seed)}")
    if number < 0:
        raise ValueError(f"seed must not be negative, got {number}")
    return number


def stratified(within: Host, n_keys: int) -> Host:
    """A position in each of s equal stretches of n keys, from its place within the stretch in [0, 1).

    If the places are uniform, every key is expected s/n times; one that lies in two stretches may come twice.
    """
    n = len(within)
    return np.minimum(((np.arange(n) + within) * (n_keys / n)).astype(np.int64), n_keys - 1)


def normal_rows(generator: np.random.Generator, n: int, dim: int, coupling: str) -> Host:
    """Standard normal vectors as rows, shape (n, dim), coupled or not within blocks of `dim`.

    Parameters
    ----------
    coupling : str
        "independent"; "orthogonal": pairwise at right angles (arXiv 2009.14794, section 2.3); "simplex":
        pairwise at the angle of a simplex, cosine -1/(dim - 1) (arXiv 2301.13856, section 3). Norms stay
        independent, so that every row alone is standard normal.
    """
    rows = generator.standard_normal((n, dim))
    if coupling == "independent":
        return rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    blocks = [_rotation(generator, dim) for _ in range(0, n, dim)]
    if coupling == "simplex" and dim > 1:
        blocks = [_simplex(dim) @ block for block in blocks]
    directions: Host = np.concatenate(blocks)[:n]
    return norms * directions


def _rotation(generator: np.random.Generator, dim: int) -> Host:
    """A rotation or reflection drawn uniformly (Haar): QR of normal numbers, with the signs fixed."""
    q, r = np.linalg.qr(generator.standard_normal((dim, dim)))
    signed: Host = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return signed


def _simplex(dim: int) -> Host:
    """Unit vectors as rows, each at cosine -1/(dim - 1) to every other."""
    simplex: Host = math.sqrt(dim / (dim - 1)) * (np.eye(dim) - 1 / dim)
    return simplex


def to_device(xp: Namespace, draws: Host, like: Array) -> Array:
    """Host draws on the device of `like`: in its dtype, integers in the default one."""
    import array_api_compat

    if np.issubdtype(draws.dtype, np.integer):
        return xp.asarray(draws, dtype=integers(xp, 1, like).dtype, device=array_api_compat.device(like))
    dtype = {"float32": np.float32, "float64": np.float64}[str(like.dtype).rpartition(".")[2]]
    return xp.asarray(draws.astype(dtype), device=array_api_compat.device(like))
