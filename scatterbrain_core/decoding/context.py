"""The new tokens of a call with the planned parts, and how states go with their heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from scatterbrain_core._typing import Array
from scatterbrain_core.decoding.state import State
from scatterbrain_core.estimator import Projections
from scatterbrain_core.low_rank import Features
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import Partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.rows import with_weights
from scatterbrain_core.sparse import Hashing
from scatterbrain_core.tiles import integers


@dataclass(frozen=True)
class Context:
    """New tokens: causal among themselves, H query heads in groups that share a key head.

    Attributes
    ----------
    problem : Problem
        Keys repeated for every query head.
    group : int
        Query heads to a key head.
    """

    problem: Problem
    parts: Scatterbrain
    projections: Projections
    group: int

    @property
    def n_key_heads(self) -> int:
        """Heads that states are kept of."""
        return self.problem.n_heads // self.group

    @property
    def columns(self) -> int:
        """Columns of weighted values, Dv + 1."""
        return self.problem.value.shape[-1] + 1

    def once(self, x: Array) -> Array:
        """(H, ...) of keys that are repeated in a group, once for each key head."""
        return x if self.group == 1 else x[:: self.group, ...]

    def repeat(self, x: Array) -> Array:
        """(Hk, ...) for every query head, (H, ...)."""
        if self.group == 1:
            return x
        xp = self.problem.xp
        return xp.take(x, integers(xp, self.problem.n_heads, x) // self.group, axis=0)

    def weighted_value(self) -> Array:
        """New values of the key heads, shape (Hk, t, Dv + 1), with their weights as last column."""
        return with_weights(self.problem.xp, self.once(self.problem.value), self.once(self.problem.key))

    @cached_property
    def features(self) -> Features:
        """Features of the new queries and keys, all heads."""
        assert self.parts.low_rank is not None
        return self.parts.low_rank.features(self.problem, self.projections.features)

    @cached_property
    def codes(self) -> list[tuple[Array, Array]]:
        """Codes of the new queries (H, t) and keys (H, t) in each table."""
        problem, hashing, (draws,) = self.problem, self.parts.sparse, self.projections.supports
        assert isinstance(hashing, Hashing)
        constant = problem.backend.stop_gradient
        query, key = constant(problem.query), constant(problem.key)
        of_tables = [tuple(x[t, ...] for x in draws) for t in range(draws[-1].shape[0])]
        return [hashing.hashed(problem.backend, x, query, key, is_cut=False)[0] for x in of_tables]


def concat_tokens(context: Context, parts: list[Partial]) -> Partial:
    """Partial results of consecutive tokens, shape (H, ·) each, in one."""
    xp = context.problem.xp
    return Partial(
        xp.concat([part.ref for part in parts], axis=1), xp.concat([part.acc for part in parts], axis=1)
    )


class Form(Protocol):
    """A kind of state: what arrays it has, how it begins, and how tokens are added and attended."""

    def shapes(self, context: Context) -> dict[str, tuple[int | str, ...]]:
        """Shapes of the arrays; "n" stands for the number of keys."""
        ...

    def start(self, context: Context) -> State:
        """State of the tokens of the context alone."""
        ...

    def advance(self, context: Context, state: State) -> tuple[Partial, State]:
        """Partial results (H, t) of the new queries over past and new keys, and the state with them."""
        ...
