r"""SMYRF's clusters of equal size: queries and keys sorted by one asymmetric hash (arXiv 2010.05315)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.e2lsh import fitted_radius, lift
from scatterbrain_core.sparse.hashing import along
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import Runs, Table
from scatterbrain_core.tiles import integers, power_of_two


@dataclass(frozen=True, repr=False)
class SortedClusters(Support):
    r"""Exact pairs are those of one cluster: the n-th of the sorted queries with the n-th of the sorted keys.

    Queries and keys are brought to one length by the transform of `E2LSH`, F(q) and G(k), and in each round
    sorted by one projection of it, :math:`a\cdot F(q)` and :math:`a\cdot G(k)` with a standard normal: near
    in it is likely a large inner product. Both orders are cut into the same number of clusters of nearly
    equal size, the longer ones first. Fewer queries than clusters look into clusters spread evenly. A pair
    that several rounds bring together counts once, where SMYRF counts it as often.

    The hash takes all queries and keys: not with `is_causal=True`, nor with a mask that is neither of keys
    nor of queries. SMYRF can be trained or fine-tuned with its clusters in place; nothing is trained here.

    Parameters
    ----------
    cluster_size : int, optional
        The most keys of a cluster: C clusters for n keys are :math:`\lceil n/\text{cluster\_size}\rceil`. By
        default the budget of the call chooses it.
    n_rounds : int, optional
        Rounds; by default 1, whose far field needs no subtraction.

    References
    ----------
    Daras, Kitaev, Odena, Dimakis, *SMYRF: Efficient Attention using Asymmetric Clustering*,
    arXiv 2010.05315, section 3.
    """

    cluster_size: int | None = None
    n_rounds: int | None = None

    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_count(self, "cluster_size", at_least=1)
        set_count(self, "n_rounds", at_least=1)

    @property
    def reason_not_causal(self) -> str | None:
        """It sorts."""
        return "sort all queries and keys"

    @property
    def is_open(self) -> bool:
        """Whether the size is left to the budget."""
        return self.cluster_size is None

    @property
    def table_count(self) -> int:
        """Rounds."""
        return self.n_rounds or 1

    @property
    def least_pairs(self) -> int:
        """An exact key a round."""
        return self.table_count

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """A cluster a round."""
        del n_queries
        return min(self.cluster_size or 0, n_keys) * self.table_count

    def planned(self, pairs: int, n_keys: int, dim: int) -> SortedClusters:
        """The same part with clusters for `pairs` exact keys a query, if it says no size."""
        del n_keys, dim
        n_rounds = self.table_count
        size = self.cluster_size or max(1, pairs // n_rounds)
        return replace(self, cluster_size=size, n_rounds=n_rounds)

    def draw(self, generator: Any, dim: int, n_queries: int, n_keys: int) -> tuple[Any, ...]:
        """Normals of each round, shape (n_rounds, dim + 2), the last two of the axes of keys and queries."""
        del n_queries, n_keys
        return (generator.standard_normal((self.n_rounds, dim + 2)),)

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Near what a cluster holds."""
        size = min(self.cluster_size or n_keys, n_keys)
        n_clusters = math.ceil(n_keys / max(size, 1))
        return power_of_two(n_queries // max(n_clusters, 1), 8, 64), power_of_two(size, 16, 64)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """A table a round."""
        xp, constant = problem.xp, problem.backend.stop_gradient
        query, key = constant(problem.query), constant(problem.key)
        radius = fitted_radius(xp, query, key)
        query, key = query / radius, key / radius
        lifts = lift(xp, query), lift(xp, key)
        found: list[Table] = []
        for round_ in range(draws[0].shape[0]):
            normal = draws[0][round_, :]
            of_query = along(xp, query, normal[:-2]) + lifts[0] * normal[-1]
            of_key = along(xp, key, normal[:-2]) + lifts[1] * normal[-2]
            found.append(self._table(problem, of_query, of_key))
        return found

    def _table(self, problem: Problem, of_query: Array, of_key: Array) -> Table:
        """The table of one round from its projections, shape (H, Lq) and (H, Lk)."""
        assert self.cluster_size is not None
        xp, n_keys = problem.xp, problem.n_keys
        _, query_rank, n_seeing = _sorted(xp, of_query, problem.row_mask)
        order, key_rank, n_seen = _sorted(xp, of_key, problem.key_mask)
        n_clusters = xp.maximum((n_seen - 1) // self.cluster_size + 1, 1)
        number = _query_cluster(xp, query_rank, n_seeing, n_clusters)
        head = n_keys * integers(xp, problem.n_heads, order)[:, None]
        lo, hi = (head + _first(xp, number + more, n_seen, n_clusters) for more in (0, 1))
        # Hidden keys stand last in their head, in a run of their own.
        place = integers(xp, n_keys, order)[None, :]
        run = xp.where(place < n_seen, _number(xp, place, n_seen, n_clusters), n_keys)
        order, slot, run = order + head, key_rank + head, run + head + head // n_keys
        order, slot, run, lo, hi = (xp.reshape(x, (-1,)) for x in (order, slot, run, lo, hi))
        tile = self.tile_shape(problem.n_queries, n_keys)
        return Runs(order, lo[:, None], hi[:, None], slot, tile, run)


def _sorted(xp: Namespace, x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Order and ranks (H, L) of numbers in each head, hidden ones last, and how many are not, (H, 1)."""
    if mask is not None:
        x = xp.where(mask, x, math.inf)
    order = xp.argsort(x, axis=-1, stable=True)
    if mask is None:
        count = xp.full_like(order[:, :1], x.shape[-1])
    else:
        count = xp.sum(xp.astype(mask, order.dtype), axis=-1, keepdims=True)
    return order, xp.argsort(order, axis=-1), count


def _first(xp: Namespace, part: Array, count: Array, n_parts: Array) -> Array:
    """Where a part begins of so many things cut into nearly equal parts, the longer ones first."""
    size = count // n_parts
    return part * size + xp.minimum(part, count - n_parts * size)


def _number(xp: Namespace, place: Array, count: Array, n_parts: Array) -> Array:
    """The part in which a place below `count` lies: the inverse of `_first`."""
    size = count // n_parts
    n_longer = count - n_parts * size
    of_longer = n_longer * (size + 1)
    behind = n_longer + (place - of_longer) // xp.maximum(size, 1)
    return xp.where(place < of_longer, place // (size + 1), behind)


def _query_cluster(xp: Namespace, rank: Array, count: Array, n_clusters: Array) -> Array:
    """Cluster of each query; hidden ones get some cluster."""
    rank = xp.minimum(rank, xp.maximum(count - 1, 0))
    # Of fewer queries than clusters each has a stretch of clusters, and looks into the one in its middle.
    some = xp.maximum(count, 1)
    middle = (_first(xp, rank, n_clusters, some) + _first(xp, rank + 1, n_clusters, some) - 1) // 2
    return xp.where(count < n_clusters, middle, _number(xp, rank, count, n_clusters))
