"""Clusters of keys: each query, or block of queries, sees those nearest to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from array_api_compat import device

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.kmeans import kmeans, one_hot
from scatterbrain_core.norms import unit_rows
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.choosing import rows_at, visible_keys, visible_queries
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import Table
from scatterbrain_core.tiles import integers, invert, power_of_two, zeros


@dataclass(frozen=True, repr=False)
class KeyClusters(Support):
    r"""Exact pairs are those of each query with the keys of the clusters nearest to it: routing by content.

    The visible keys of a head, each divided by its norm, are put in C clusters by k-means, which starts from
    keys at equal distances in time and draws nothing. A query, divided by its norm, is routed to the clusters
    whose means are nearest to it, and sees their keys. Of a large cluster the `max_cluster` keys nearest to
    the mean count; the others are off the support. It cannot be causal: all keys are clustered.

    The Routing Transformer learns its centroids along training, from queries and keys; here they are fitted
    to the keys of the call. There a centroid takes as many queries too; here every query has its clusters.

    Parameters
    ----------
    n_clusters : int, optional
        C, at most the number of keys. By default 2 √Lk, more where the budget does not pay for a cluster so
        large.
    n_routes : int, optional
        Clusters that a query sees. By default as many as the budget pays for.
    max_cluster : int, optional
        The most keys of a cluster that count. By default Lk / C where the budget chooses anything, else all.
    query_block : int
        Queries, one behind the other, that are routed together, to the clusters nearest to them on average.

    Notes
    -----
    Clustering takes O(Lk · C) time and memory, routing O(Lq · C); none of it is in the budget.

    References
    ----------
    Roy et al., *Efficient Content-Based Sparse Attention with Routing Transformers*, arXiv 2003.05997,
    section 4.1 (k-means of unit vectors; the top-w tokens of each cluster, so that clusters are of one size).
    """

    n_clusters: int | None = None
    n_routes: int | None = None
    max_cluster: int | None = None
    query_block: int = 1

    def __post_init__(self) -> None:
        for name in ("n_clusters", "n_routes", "max_cluster", "query_block"):
            set_count(self, name, at_least=1)
        if self.query_block is None:
            raise TypeError("query_block must be an int of at least 1, got None")

    @property
    def reason_not_causal(self) -> str | None:
        """It clusters."""
        return "cluster all keys"

    @property
    def is_open(self) -> bool:
        """Whether clusters or routes are left to the budget."""
        return self.n_clusters is None or self.n_routes is None

    @property
    def least_pairs(self) -> int:
        """A cluster of one key, or of what is stated, a route."""
        return (self.n_routes or 1) * (self.max_cluster or 1)

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The most that clusters of a stated size hold."""
        del n_queries
        return 0 if self.is_open else min((self.n_routes or 1) * (self.max_cluster or 0), n_keys)

    @property
    def columns_of_key(self) -> int:
        """Its score at every cluster, and half as much for what is made of it."""
        return 3 * (self.n_clusters or 1) // 2

    @property
    def n_visits(self) -> int:
        """The routes of a query."""
        return self.n_routes or 1

    @property
    def n_buckets(self) -> int:
        """The clusters."""
        return self.n_clusters or 1

    def planned(self, pairs: int, n_keys: int, dim: int) -> KeyClusters:
        """The same part with clusters, routes and their size chosen; `pairs` keys a query at most."""
        del dim
        if self.n_clusters is not None and self.n_clusters > max(n_keys, 1):
            raise ValueError(
                f"n_clusters must be at most the number of keys, {n_keys}, got {self.n_clusters}"
            )
        if not self.is_open:
            return self
        n_keys = max(n_keys, 1)
        largest = pairs // (self.n_routes or 1)  # the most that a cluster may hold
        # The paper takes √Lk clusters; on MiniLM-L6 smaller ones found more for the same number of keys.
        least = max(math.isqrt(4 * n_keys), -(-n_keys // max(largest, 1)))
        n_clusters = self.n_clusters or min(n_keys, least)
        max_cluster = self.max_cluster or max(1, min(largest, -(-n_keys // n_clusters)))
        n_routes = self.n_routes or min(n_clusters, max(1, pairs // max_cluster))
        return replace(self, n_clusters=n_clusters, n_routes=n_routes, max_cluster=max_cluster)

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Near what sees a cluster and what a cluster holds if all are equal."""
        per_cluster = n_queries * self.n_visits // self.n_buckets
        return power_of_two(per_cluster, 8, 64), power_of_two(n_keys // self.n_buckets, 16, 64)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """One table, a cluster an interval."""
        del draws
        assert self.n_clusters is not None
        assert self.n_routes is not None
        xp, n_clusters, constant = problem.xp, self.n_clusters, problem.backend.stop_gradient
        query, key = (unit_rows(xp, constant(x)) for x in (problem.query, problem.key))
        label, mean, count = self._clusters(problem.backend, key, visible_keys(problem))
        distance = xp.sum((key - rows_at(xp, mean, label)) ** 2, axis=-1)
        label = xp.where(visible_keys(problem), label, n_clusters)  # hidden ones last
        first = integers(xp, problem.n_heads, label)[:, None] * (n_clusters + 1)
        cluster = xp.reshape(first + label, (-1,))
        order = xp.argsort(xp.reshape(distance, (-1,)), stable=True)
        order = xp.take(order, xp.argsort(xp.take(cluster, order), stable=True))

        route = self._routes(xp, query, visible_queries(problem), mean, count)
        number = xp.reshape(first[..., None] + route, (-1,))
        cluster = xp.take(cluster, order)
        lo, hi = (
            xp.reshape(xp.searchsorted(cluster, number, side=side), (-1, route.shape[-1]))
            for side in ("left", "right")
        )
        if self.max_cluster is not None:
            hi = xp.minimum(hi, lo + self.max_cluster)
        tile = self.tile_shape(problem.n_queries, problem.n_keys)
        return [Table(order, lo, hi, invert(xp, order), tile)]

    def _clusters(self, backend: Backend, key: Array, is_visible: Array) -> tuple[Array, Array, Array]:
        """Cluster of each key (H, Lk), means (H, C, D) and sizes (H, C), of the visible keys alone."""
        assert self.n_clusters is not None
        xp = backend.xp
        weight = xp.astype(is_visible, key.dtype)
        metric = xp.eye(key.shape[-1], dtype=key.dtype, device=device(key))
        label = kmeans(backend, key, weight, metric, self.n_clusters)
        member = one_hot(xp, label, self.n_clusters, key) * weight[..., None]
        count = xp.sum(member, axis=1)
        total = xp.matmul(xp.matrix_transpose(member), key)
        return label, total / xp.where(count > 0, count, xp.ones_like(count))[..., None], count

    def _routes(self, xp: Namespace, query: Array, is_visible: Array, mean: Array, count: Array) -> Array:
        """Clusters of each query, nearest first: (H, Lq, R)."""
        assert self.n_routes is not None
        n_heads, n_queries, dim = query.shape
        n_blocks = -(-n_queries // self.query_block)
        weight = xp.astype(is_visible, query.dtype)[..., None]
        weighted = xp.concat([query * weight, weight], axis=-1)
        more = n_blocks * self.query_block - n_queries
        weighted = xp.concat([weighted, zeros(xp, (n_heads, more, dim + 1), query)], axis=1)
        total = xp.sum(xp.reshape(weighted, (n_heads, n_blocks, self.query_block, dim + 1)), axis=2)
        # Of the sum over the block of ‖q - μ‖², what depends on the mean μ.
        scores = xp.matmul(total[..., :-1], xp.matrix_transpose(mean))
        scores = scores - total[..., -1:] * xp.sum(mean * mean, axis=-1)[:, None, :] / 2
        scores = xp.where(count[:, None, :] > 0, scores, -math.inf)
        route = xp.argsort(scores, axis=-1, descending=True, stable=True)[..., : self.n_routes]
        return xp.take(route, integers(xp, n_queries, query) // self.query_block, axis=1)
