"""Parts for tests alone: they use what the parts of the library leave unused of what a part may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scatterbrain_core.low_rank import Features, IndicatorKernel, LowRank, indicator_rows
from scatterbrain_core.sparse import Support
from scatterbrain_core.tables import Clusters, Runs, Table, by_position
from scatterbrain_core.tiles import integers, invert

# Chunks to draw from, some of them behind the last key: what is drawn does not depend on the lengths.
N_CHUNKS = 20


@dataclass(frozen=True, repr=False)
class DrawnChunks(Support):
    """Each query sees a few chunks of consecutive keys, drawn for its position: several intervals a query."""

    n_drawn: int
    size: int

    is_random: ClassVar[bool] = True

    @property
    def n_visits(self):
        return self.n_drawn

    def planned(self, pairs, n_keys, dim):
        return self

    def draw(self, generator, dim, n_queries, n_keys):
        return (np.stack([generator.permutation(N_CHUNKS)[: self.n_drawn] for _ in range(n_queries)]),)

    def tables(self, problem, draws):
        xp, n_keys = problem.xp, problem.n_keys
        keys = by_position(xp, problem.n_heads, n_keys, problem.key_mask, problem.query)
        position = integers(xp, problem.n_queries, problem.query)[:, None]
        end = position + 1 if problem.is_causal else xp.full_like(position, n_keys)
        edges = (xp.minimum(xp.minimum(draws[0] * self.size + more, n_keys), end) for more in (0, self.size))
        lo, hi = (xp.reshape(keys.slots(xp, xp.reshape(x, (-1,))), (-1, self.n_drawn)) for x in edges)
        return [Table(keys.key_order, lo, hi, keys.slot, (8, 16))]


@dataclass(frozen=True, repr=False)
class Segments(LowRank):
    """Weights exp(q·w_c + k·u) with c the segment of the key, w and u drawn: the kernel of labels."""

    n_segments: int = 3

    is_random: ClassVar[bool] = True

    @property
    def rank(self):
        return self.n_segments

    @property
    def is_open(self):
        return False

    def planned(self, rank, n_keys, dim):
        return self

    def draw(self, generator, dim, n_keys):
        return (generator.standard_normal((self.n_segments, dim)), generator.standard_normal((dim, 1)))

    def features(self, problem, drawn):
        xp = problem.xp
        kernel = IndicatorKernel(self.n_segments)
        label = integers(xp, problem.n_keys, problem.query) // 7 % (self.n_segments + 1) - 1
        label = xp.broadcast_to(label, problem.key.shape[:2])
        log_weight = xp.matmul(problem.key, drawn[1])[..., 0]
        key = indicator_rows(xp, label, log_weight)
        if problem.key_mask is not None:
            key = kernel.hide(xp, key, problem.key_mask)
        return Features(xp.matmul(problem.query, xp.matrix_transpose(drawn[0])), key, kernel)


@dataclass(frozen=True, repr=False)
class RunsOfBlocks(Support):
    """Each query sees a block of consecutive keys and the one before it: one interval of whole runs."""

    size: int

    def planned(self, pairs, n_keys, dim):
        return self

    def tables(self, problem, draws):
        xp, n_keys = problem.xp, problem.n_keys
        keys = by_position(xp, problem.n_heads, n_keys, problem.key_mask, problem.query)
        position = integers(xp, problem.n_queries, problem.query)
        first = position // self.size * self.size
        edges = (xp.clip(x, 0, n_keys) for x in (first - self.size, first + self.size))
        if problem.is_causal:
            edges = (next(edges), xp.clip(position + 1, 0, n_keys))
        lo, hi = (keys.slots(xp, x)[:, None] for x in edges)
        head = integers(xp, keys.slot.shape[0], position) // n_keys
        # Hidden keys stand last in their head, in a run of their own.
        count = xp.take(keys.n_before[:, -1], head)
        of_key = keys.key_order % n_keys // self.size
        is_seen = integers(xp, head.shape[0], head) % n_keys < count
        run = head * (n_keys + 1) + xp.where(is_seen, of_key, n_keys)
        return [Runs(keys.key_order, lo, hi, keys.slot, (16, 16), run)]


@dataclass(frozen=True, repr=False)
class Combs(Support):
    """Cluster c of C is every C-th key; each query opens a few clusters, drawn for its position."""

    n_drawn: int
    n_clusters: int

    is_random: ClassVar[bool] = True

    @property
    def n_visits(self):
        return self.n_drawn

    def planned(self, pairs, n_keys, dim):
        return self

    def draw(self, generator, dim, n_queries, n_keys):
        return (
            np.stack([generator.permutation(self.n_clusters + 1)[: self.n_drawn] for _ in range(n_queries)]),
        )

    def tables(self, problem, draws):
        xp, n_keys, n_labels = problem.xp, problem.n_keys, self.n_clusters
        position = integers(xp, n_keys, problem.query)
        label = xp.broadcast_to(position % n_labels, (problem.n_heads, n_keys))
        if problem.key_mask is not None:
            label = xp.where(problem.key_mask, label, n_labels)
        first = integers(xp, problem.n_heads, position)[:, None] * (n_labels + 1)
        label = xp.reshape(first + label, (-1,))
        order = xp.argsort(label, stable=True)
        opened = draws[0]  # the last, which does not exist, is an empty interval
        number = xp.reshape(first[:, :, None] + opened[None, :, :], (-1, self.n_drawn))
        flat, ordered = xp.reshape(number, (-1,)), xp.take(label, order)
        lo, hi = (
            xp.reshape(xp.searchsorted(ordered, flat, side=side), number.shape) for side in ("left", "right")
        )
        is_none = number % (n_labels + 1) == n_labels
        hi = xp.where(is_none, lo, hi)
        if problem.is_causal:
            hi = xp.minimum(hi, lo + xp.reshape(self._past(problem, opened), lo.shape))
        number = xp.where(is_none, -1, number % (n_labels + 1))
        return [Clusters(order, lo, hi, invert(xp, order), (8, 8), number, self.n_clusters)]

    def _past(self, problem, opened):
        """Keys that are seen of each cluster that a query opens, up to its position: (H, Lq, R)."""
        xp, n_labels = problem.xp, self.n_clusters
        position = integers(xp, problem.n_keys, opened)
        member = xp.astype(position[:, None] % n_labels == integers(xp, n_labels + 1, opened), opened.dtype)
        member = xp.broadcast_to(member, (problem.n_heads, *member.shape))
        if problem.key_mask is not None:
            member = xp.where(problem.key_mask[..., None], member, 0)
        count = xp.cumulative_sum(member, axis=1)
        last = xp.minimum(integers(xp, problem.n_queries, opened), problem.n_keys - 1)
        opened = xp.broadcast_to(opened, (problem.n_heads, *opened.shape))
        return xp.take_along_axis(xp.take(count, last, axis=1), opened, axis=2)


@dataclass(frozen=True, repr=False)
class CombWeights(Segments):
    """The kernel of labels over the clusters of `Combs`: those opened are left out by their labels."""

    def features(self, problem, drawn):
        features = super().features(problem, drawn)
        label = integers(problem.xp, problem.n_keys, problem.query) % self.n_segments
        label = problem.xp.broadcast_to(label, problem.key.shape[:2])
        key = indicator_rows(problem.xp, label, features.key[..., 1])
        return Features(features.query, key, features.kernel, self.n_segments)
