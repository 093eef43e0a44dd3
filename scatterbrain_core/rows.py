"""What tiles gather from: queries, keys, values and log features, one row a position of a head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.low_rank import Features
from scatterbrain_core.problem import HalfPrecision, Problem
from scatterbrain_core.tiles import zeros


@dataclass(frozen=True)
class Pairs:
    """Logits of pairs, from one array by query row and one by key row.

    Attributes
    ----------
    query : array, shape (n_queries, ·)
    key : array, shape (n_keys, ·)
    weights : callable
        (query block, key block, visible) to logits, -inf where not visible, and a factor of the weights
        or None.
    half : HalfPrecision or None
        What these and the values were, where that was half precision: a kernel may multiply that instead.
    """

    query: Array
    key: Array
    weights: Callable[[Backend, Array, Array, Array], tuple[Array, Array | None]]
    half: HalfPrecision | None = None


def exact_weights(backend: Backend, query: Array, key: Array, visible: Array) -> tuple[Array, None]:
    """q·k for every pair of a tile; -inf where not visible."""
    xp = backend.xp
    return xp.where(visible, xp.matmul(query, xp.matrix_transpose(key)), -math.inf), None


def unit_weights(backend: Backend, query: Array, _: Array, visible: Array) -> tuple[Array, None]:
    """Logit 0 for every visible pair of a tile."""
    xp = backend.xp
    return xp.where(visible, zeros(xp, visible.shape, query), -math.inf), None


@dataclass(frozen=True)
class Rows:
    """Everything a tile gathers from, by row, for one group of heads.

    Attributes
    ----------
    query : array, shape (n_queries, D)
        Scale folded in.
    key : array, shape (n_keys, D)
    weighted_value : array, shape (n_keys, Dv + 1)
        Values and a last column of ones; zeros in a hidden key's row.
    features : Features or None
        Of the low-rank part.
    n_heads : int
    half : HalfPrecision or None
        What query, key and values were.
    """

    query: Array
    key: Array
    weighted_value: Array
    features: Features | None
    n_heads: int
    half: HalfPrecision | None = None

    @property
    def n_queries(self) -> int:
        """Query rows a head."""
        return self.query.shape[0] // self.n_heads

    @property
    def n_keys(self) -> int:
        """Key rows a head."""
        return self.key.shape[0] // self.n_heads

    def exact(self) -> Pairs:
        """Pairs weighted by exp(q·k)."""
        return Pairs(self.query, self.key, exact_weights, self.half)

    def counting(self) -> Rows:
        """Rows of values one, whose sums with the weights of `units` count the visible pairs."""
        return Rows(self.query[:, :1], self.key[:, :1], self.weighted_value[:, -1:], None, self.n_heads)

    def units(self) -> Pairs:
        """Pairs that all weigh one."""
        return Pairs(self.query, self.key, unit_weights)

    def low_rank(self) -> Features:
        """Features, where there is a low-rank part."""
        assert self.features is not None
        return self.features

    def low_rank_pairs(self) -> Pairs:
        """Pairs weighted by φ(q)·φ(k)."""
        features = self.low_rank()
        return Pairs(features.query, features.key, features.kernel.pairs)


def with_weights(xp: Namespace, value: Array, key: Array, key_mask: Array | None = None) -> Array:
    """Values with a last column of weights: one, or zero for a hidden key."""
    ones = xp.ones_like(key[..., :1])  # of the keys, as values may have no columns
    if key_mask is not None:
        ones = xp.where(key_mask[..., None], ones, 0.0)
    return xp.concat([value, ones], axis=-1)


def make_rows(problem: Problem, features: Features | None = None) -> Rows:
    """Rows of a problem, with those of its features or of a group of them."""
    xp = problem.xp

    def flat(x: Array) -> Array:
        return xp.reshape(x, (-1, x.shape[-1]))

    weighted_value = with_weights(xp, problem.value, problem.key, problem.key_mask)
    if features is not None:
        features = replace(features, query=flat(features.query), key=flat(features.key))
    query, key, weighted_value = flat(problem.query), flat(problem.key), flat(weighted_value)
    return Rows(query, key, weighted_value, features, problem.n_heads, problem.half)
