"""NumPy: heads on threads, tiles in the cache, temporaries overwritten, rows added without a sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from scatterbrain_backends.numpy_ import (
    choosing,
    clustering,
    compiled,
    merging,
    query_tiles,
    runs,
    tile_partial,
    visiting,
)
from scatterbrain_backends.numpy_.sorting import stable_argsort
from scatterbrain_backends.numpy_.threads import map_on_threads, raise_if_stopped
from scatterbrain_core.backend import Backend
from scatterbrain_core.estimator import Projections
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import Partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import Layout
from scatterbrain_core.routing.query_tiles import QueryTiles
from scatterbrain_core.routing.spending import Allowance
from scatterbrain_core.routing.view import Choice, View
from scatterbrain_core.routing.visits import Keys, Opened
from scatterbrain_core.sparse.routed_clusters import RoutedClusters
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.threads import get_num_threads
from scatterbrain_core.tiles import Sorted, sort_jointly

T = TypeVar("T")
R = TypeVar("R")


def is_compiled_for(problem: Problem, method: Scatterbrain) -> bool:
    """Whether compiled loops do most of the work of a planned method."""
    if isinstance(method.sparse, RoutedClusters):
        return compiled.is_available() and problem.dense_mask is None
    return runs.is_taken(problem, method)


class NumpyBackend(Backend):
    """Backend for `numpy.ndarray`."""

    # Heads are work for threads, but small ones share the cost of a call.
    group_elements = 2**19
    # Every thread has so many at a time.
    checked_elements = 2**20
    # Of a visit nothing is kept but its row and slots.
    visit_elements = 2**30

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of every item, on threads."""
        return map_on_threads(function, items, self.most_heads)

    def within(self, chunk_limit: int, most_heads: int) -> Self:
        """Each thread has one head at a time."""
        backend = super().within(chunk_limit, most_heads)
        backend.group_elements = 1
        backend.visit_elements = self.visit_elements
        return backend

    def checked_bytes(self, item_size: int) -> int:
        """As many as there are threads."""
        return get_num_threads() * super().checked_bytes(item_size)

    def joined_bytes(self, output_bytes: int) -> int:  # noqa: ARG002
        """Nothing: each head is written where it belongs."""
        return 0

    def attend(
        self,
        groups: Sequence[Problem],
        method: Scatterbrain,
        projections: Projections,
        generic: Callable[[Problem, Projections], Any],
    ) -> Any:
        """Output of a planned method, on threads; each group of heads is written where it belongs."""
        first = groups[0]
        n_heads = sum(group.n_heads for group in groups)
        output = np.empty((n_heads, first.n_queries, first.dim_value), first.like.dtype)
        ends = np.cumsum([group.n_heads for group in groups])

        def write(i: int) -> None:
            part = output[ends[i] - groups[i].n_heads : ends[i]]
            if not runs.is_taken(groups[i], method):
                part[...] = generic(groups[i], projections)
                return
            for h in range(groups[i].n_heads):  # what one head is left to does not depend on another
                own = groups[i].of_heads(slice(h, h + 1))
                if not runs.attend(own, method, projections, part[h : h + 1]):
                    part[h : h + 1] = generic(own, projections)

        self.map(write, range(len(groups)))
        return output

    def checkpoint(self, function: Callable[[], Any], terms: Any = None) -> Any:
        """A worker ends here what nobody waits for any more: an interrupt waits for a block, not a head."""
        del terms
        raise_if_stopped()
        return function()

    def exp_below(self, logits: Any, reference: Any) -> Any:
        """exp(logits - reference), written over `logits`."""
        np.subtract(logits, reference, out=logits)
        return np.exp(logits, out=logits)

    def hyperplane_codes(
        self,
        x: Any,
        normals: Any,
        direction: Any | None,
        generic: Callable[[], tuple[Any, Any | None]],  # noqa: ARG002
    ) -> tuple[Any, Any | None]:
        """Codes, and projections on what buckets are cut along: each in a call or two."""
        # Digits of a float64 are exact: a code has far fewer than 53.
        x = np.ascontiguousarray(x)  # in another layout equal vectors could be rounded otherwise
        digit = 2.0 ** np.arange(normals.shape[0])[::-1]
        codes = ((x @ normals.T >= 0) @ digit).astype(np.intp)
        # Not a matrix product: equal vectors are given equal numbers.
        return codes, None if direction is None else np.einsum("...d,d->...", x, direction)

    def sort_jointly(
        self,
        key_bucket: Any,
        query_bucket: Any,
        key_rank: Any,
        query_rank: Any,
        generic: Callable[[], Sorted],  # noqa: ARG002
    ) -> Sorted:
        """Queries and keys sorted by bucket, then by rank."""
        return sort_jointly(self.xp, key_bucket, query_bucket, key_rank, query_rank, stable_argsort)

    def tile_partial(self, visits: Visits, generic: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """In compiled loops."""
        is_compiled = compiled.is_available() and tile_partial.is_taken(visits)
        return tile_partial.tile_partial(visits) if is_compiled else generic()

    def running_merge(
        self, ref: Any, acc: Any, segment: Any, generic: Callable[[], tuple[Any, Any]]
    ) -> tuple[Any, Any]:
        """One after the other."""
        del generic
        return merging.running_merge(ref, acc, segment)

    def kmeans(self, x: Any, weight: Any, metric: Any, n_clusters: int, generic: Callable[[], Any]) -> Any:
        """In compiled loops."""
        return clustering.kmeans(x, weight, metric, n_clusters) if compiled.is_available() else generic()

    def two_largest(self, x: Any, generic: Callable[[], Any]) -> Any:
        """In a compiled loop."""
        return clustering.two_largest(x) if compiled.is_available() else generic()

    def cluster_statistics(
        self,
        key: Any,
        value: Any,
        weight: Any,
        labels: Any,
        axes: Any,
        n_clusters: int,
        generic: Callable[[], tuple[Any, Any, Any, Any]],
    ) -> tuple[Any, Any, Any, Any]:
        """In compiled loops."""
        if not compiled.is_available():
            return generic()
        return clustering.statistics(key, value, weight, labels, axes, n_clusters)

    def cluster_logits(
        self,
        query: Any,
        axes: Any,
        mean: Any,
        variance: Any,
        count: Any,
        generic: Callable[[], tuple[Any, Any]],
    ) -> tuple[Any, Any]:
        """In compiled loops."""
        if not compiled.is_available():
            return generic()
        return clustering.logits(query, axes, mean, variance, count)

    def true_places(self, mask: Any, generic: Callable[[], Any]) -> Any:
        """In one pass."""
        del generic
        return np.flatnonzero(mask)

    def choose(
        self,
        view: View,
        near: Partial,
        is_row: Any,
        allowance: Allowance,
        generic: Callable[[], choosing.Found],
    ) -> choosing.Found:
        """In compiled loops."""
        return choosing.choose(view, near, is_row, allowance) if compiled.is_available() else generic()

    def far_partial(self, view: View, choice: Choice, generic: Callable[[], Partial]) -> Partial:
        """From the weights that the choice was made from."""
        return choosing.far_partial(view, choice) if isinstance(choice, choosing.Weighted) else generic()

    def solve_tiles(
        self, tiles: QueryTiles, layout: Layout, keys: Keys, query: Any, near: Callable[[], Partial]
    ) -> Partial | None:
        """In compiled loops, a run of tiles at a time on each thread."""
        if not compiled.is_available():
            return None
        return query_tiles.solve(self.map, tiles, layout, keys, query, near())

    def with_opened(
        self, near: Partial, query: Any, visits: Opened, keys: Keys, generic: Callable[[], Partial]
    ) -> Partial:
        """A cluster at a time."""
        del generic
        return visiting.with_opened(near, query, visits, keys)

    def scatter_add(self, total: Any, index: Any, rows: Any) -> Any:
        """`total` with rows added in place; NumPy's loops run along the longer side of `rows`."""
        width = math.prod(total.shape[1:])
        sums, rows = total.reshape(len(total), width), rows.reshape(len(rows), width)
        # Sums in float64 either way: how many other rows there are changes no bit.
        if len(rows) < width:
            exact = np.zeros(sums.shape)
            for i, row in zip(index, rows, strict=True):
                exact[i] += row
            sums += exact
        else:
            for c in range(width):
                sums[:, c] += np.bincount(index, rows[:, c], len(sums))
        return sums.reshape(total.shape)
