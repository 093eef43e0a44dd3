"""How the queries of a chunk or a tile share what they may add to their coarsest view of the keys."""

from __future__ import annotations

from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import Layout
from scatterbrain_core.tiles import zeros

# What a head may spend beyond its entries in all, as a fraction.
SLACK = 0.03
# A single query may have so many times the mean.
MOST_CAUSAL, MOST = 3.0, 8.0
# How much of the mean a chunk makes up for what the chunks before it saved or overdrew.
CORRECTION = 0.3


@dataclass(frozen=True)
class Allowance:
    """What the queries of a chunk may add to their coarsest view.

    Attributes
    ----------
    mean : array, shape (H, 1, 1)
        Entries of a query, on average.
    most : array, shape (H, 1, 1)
        Entries of any one query.
    bars : tuple of array, shape (H, 1, 1), or None
        Gains an entry below which nothing is refined, groups and then clusters; None lets the queries of the
        chunk share: the bars are then those at which they spend the mean.
    """

    mean: Array
    most: Array
    bars: tuple[Array, Array] | None


def of_tiles(xp: Namespace, is_row: Array, layout: Layout, like: Array) -> Allowance:
    """What the queries of tiles (n_tiles, TILE) may spend: each tile the mean of those that are queries."""
    part = xp.mean(xp.astype(is_row, like.dtype), axis=-1)[:, None, None]
    mean = layout.refined * part
    return Allowance(mean, xp.full_like(mean, MOST * layout.refined), None)


@dataclass(frozen=True)
class Spending:
    """What the causal chunks of a head have spent so far, and the bars of the last one.

    A chunk's bars are those of the chunk before it: nothing depends on a later query.

    Attributes
    ----------
    saved : array, shape (H, 1, 1)
        Entries that the queries so far left of their mean; negative where they overdrew it.
    bars : tuple of array, shape (H, 1, 1), or None
    """

    saved: Array
    bars: tuple[Array, Array] | None = None

    @classmethod
    def start(cls, problem: Problem) -> Spending:
        """Before the first chunk."""
        return cls(zeros(problem.xp, (problem.n_heads, 1, 1), problem.query))

    def allowance(self, problem: Problem, layout: Layout) -> Allowance:
        """What the next chunk may spend."""
        xp, saved = problem.xp, self.saved
        mean = xp.full_like(saved, float(layout.refined))
        if self.bars is None:
            return Allowance(mean, mean, (xp.zeros_like(saved), xp.zeros_like(saved)))
        spare = saved / layout.chunk
        slack = mean * (SLACK * problem.n_queries / layout.chunk)
        most = xp.minimum(xp.maximum(mean + spare + slack, xp.zeros_like(mean)), MOST_CAUSAL * mean)
        correction = xp.minimum(xp.maximum(spare, -CORRECTION * mean), CORRECTION * mean)
        return Allowance(mean + correction, most, self.bars)

    def after(self, problem: Problem, saved: Array, bars: tuple[Array, Array]) -> Spending:
        """Behind a chunk whose queries each left so much of the mean, shape (H, R)."""
        return Spending(self.saved + problem.xp.sum(saved, axis=-1)[:, None, None], bars)
