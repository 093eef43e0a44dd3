"""What tiles gather from: queries, keys, values and log features, one row a position of a head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.low_rank import PositiveFeatures
from scatterbrain_core.low_rank.positive_features import log_kernel
from scatterbrain_core.problem import Problem


@dataclass(frozen=True)
class Pairs:
    """Logits of pairs, from one array by query row and one by key row.

    Attributes
    ----------
    query : array, shape (n_queries, ·)
    key : array, shape (n_keys, ·)
    logits : callable
        (query block, key block, visible) to logits, -inf where not visible.
    """

    query: Array
    key: Array
    logits: Callable[[Backend, Array, Array, Array], Array]


def exact_logits(backend: Backend, query: Array, key: Array, visible: Array) -> Array:
    """q·k for every pair of a tile; -inf where not visible."""
    xp = backend.xp
    return xp.where(visible, xp.matmul(query, xp.matrix_transpose(key)), -math.inf)


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
    log_query, log_key : array, shape (n_queries, m) and (n_keys, m), or None
        Logs of the features, the 1/m with the query's; -inf in a hidden key's row.
    n_heads : int
    tile : tuple of int
        Queries and keys in a block.
    """

    query: Array
    key: Array
    weighted_value: Array
    log_query: Array | None
    log_key: Array | None
    n_heads: int
    tile: tuple[int, int]

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
        return Pairs(self.query, self.key, exact_logits)

    def low_rank(self) -> Pairs:
        """Pairs weighted by φ(q)·φ(k)."""
        assert self.log_query is not None
        assert self.log_key is not None
        return Pairs(self.log_query, self.log_key, log_kernel)


def make_rows(
    problem: Problem,
    tile: tuple[int, int],
    low_rank: PositiveFeatures | None = None,
    projections: Array | None = None,
    group: slice | None = None,
) -> Rows:
    """Rows of a problem; with a low-rank part, the logs of one group of its features too."""
    xp = problem.xp

    def flat(x: Array) -> Array:
        return xp.reshape(x, (-1, x.shape[-1]))

    ones = xp.ones_like(problem.key[..., :1])
    if problem.key_mask is not None:
        ones = xp.where(problem.key_mask[..., None], ones, 0.0)
    log_query = log_key = None
    if low_rank is not None:
        assert low_rank.n_features is not None
        assert projections is not None
        chosen = projections[group, :]
        log_query = low_rank.log_features(xp, chosen, problem.query) - math.log(low_rank.n_features)
        log_key = low_rank.log_features(xp, chosen, problem.key)
        if problem.key_mask is not None:
            log_key = xp.where(problem.key_mask[..., None], log_key, -math.inf)
        log_query, log_key = flat(log_query), flat(log_key)
    weighted_value = flat(xp.concat([problem.value, ones], axis=-1))
    return Rows(
        flat(problem.query), flat(problem.key), weighted_value, log_query, log_key, problem.n_heads, tile
    )
