"""What tiles of queries see of clusters, and of the keys of those that they open, in compiled loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from array_api_compat import numpy as xp

from scatterbrain_backends.numpy_.clustering import of_second_order
from scatterbrain_backends.numpy_.threads import spare_threads
from scatterbrain_core.normalization import Partial
from scatterbrain_core.routing.layout import TILE, Layout
from scatterbrain_core.routing.query_tiles import QueryTiles
from scatterbrain_core.routing.spending import MOST
from scatterbrain_core.routing.view import bounded
from scatterbrain_core.routing.visits import Keys

Map = Callable[[Callable[[Any], None], Iterable[Any]], Any]


def solve(
    on_threads: Map, tiles: QueryTiles, layout: Layout, keys: Keys, query: Any, near: Partial
) -> Partial:
    """Partial results of queries (H, Lq, D), merged into `near`."""
    from scatterbrain_backends.numpy_.compiled import query_tiles, visiting

    n_heads, length = tiles.order.shape
    query = np.ascontiguousarray(query)
    columns: Any = tiles.columns
    places: Any = tiles.order
    heads = [_head(tiles, h) for h in range(n_heads)]
    limits = (float(layout.refined), MOST * layout.refined, float(layout.looked))
    # What a thread has at a time changes no bit; the more, the more queries there are at each cluster.
    n_pieces = -(-spare_threads() // n_heads)
    size = -(-length // (TILE * n_pieces)) * TILE

    def solve_piece(piece: tuple[int, int]) -> None:
        h, first = piece
        order: Any = places[h, first : first + size]
        is_row = tiles.is_row[h, first : first + size]
        widths = ((query.shape[2],), (), near.acc.shape[2:])
        in_order = tuple(np.empty((len(order), *width), query.dtype) for width in widths)
        own = near.ref[h], near.acc[h]
        opened = query_tiles.solve(query[h], order, is_row, *heads[h], limits, own, in_order)
        visits = query_tiles.by_cluster(*opened, columns.start[h], columns.count[h])
        visiting.merge(in_order[0], *visits, keys.order, keys.key, keys.weighted_value, *in_order[1:])
        query_tiles.to_own_order(order, in_order, own)

    on_threads(solve_piece, [(h, first) for h in range(n_heads) for first in range(0, length, size)])
    return near


def _head(tiles: QueryTiles, h: int) -> tuple[Any, ...]:
    """Axes, clusters, groups and the group of each cluster of a head, as `compiled.query_tiles` has them."""
    columns: Any = tiles.columns
    overview: Any = tiles.overview
    group, count, members = columns.group[h], columns.count[h], overview.members[h]
    away = bounded(xp, ((columns.mean[h] - overview.mean[h][group]) ** 2).sum(axis=-1))
    part = count / np.maximum(overview.count[h][group], 1)
    clusters, groups = (
        _numbered(x.mean[h], x.variance[h], x.value[h], x.count[h], further)
        for x, further in ((columns, (away, part)), (overview, (members,)))
    )
    return np.ascontiguousarray(columns.axes[h]), clusters, groups, group


def _numbered(mean: Any, variance: Any, value: Any, count: Any, further: tuple[Any, ...]) -> tuple[Any, ...]:
    """Means, variances in units, values, and numbers, the width of a key and `further` ones last."""
    *known, in_units = of_second_order(variance, count)
    with np.errstate(over="ignore"):
        width = bounded(xp, variance.sum(axis=-1))
    numbers = np.stack([count, *known, width / np.maximum(count, 1), *further])
    values = np.concatenate([value, np.ones((len(value), 1), value.dtype)], axis=1)
    return np.ascontiguousarray(mean), in_units, values, numbers.astype(mean.dtype)
