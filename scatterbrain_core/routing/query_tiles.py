"""Where all queries see all keys: tiles of similar queries, which look at the clusters that matter to them.

A tile looks at the clusters of some groups, and sees each other group as one cluster for good. So what a
query looks at grows neither with the number of clusters nor with that of keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from array_api_compat import device

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.kmeans import one_hot
from scatterbrain_core.normalization import finite
from scatterbrain_core.routing.layout import TILE, Layout
from scatterbrain_core.routing.nodes import Columns
from scatterbrain_core.routing.view import LEAST_SPREAD, View, bounded, cluster_logits, floored
from scatterbrain_core.sparse.choosing import listed, rows_at
from scatterbrain_core.tiles import integers, padded

# Weights of clusters, the largest being 1, that sum to less than this have lost digits.
LEAST_WEIGHT = 1e-30


@dataclass(frozen=True)
class Overview:
    """Each group of clusters as one cluster.

    Attributes
    ----------
    count : array, shape (H, G)
        Keys of a group.
    members : array, shape (H, G)
        Its clusters that are not empty.
    mean, variance : array, shape (H, G, D)
        Of the keys; the variance along the axes of the clusters.
    value : array, shape (H, G, Dv)
    one_hot : array, shape (H, K, G)
        1.0 where a cluster is in a group.
    """

    count: Array
    members: Array
    mean: Array
    variance: Array
    value: Array
    one_hot: Array


@dataclass(frozen=True)
class QueryTiles:
    """Queries in the order of their tiles, and what these look at.

    Attributes
    ----------
    columns : Columns
        All clusters.
    overview : Overview
    order : array of int, shape (H, n_tiles * TILE)
        Place of each query among those of its head; places behind the last fill the last tile.
    is_row : array of bool, shape (H, n_tiles * TILE)
        Queries in this order that are there, are not hidden and are finite.
    """

    columns: Columns
    overview: Overview
    order: Array
    is_row: Array


@dataclass(frozen=True)
class Looked:
    """What the tiles of a chunk look at.

    Attributes
    ----------
    view : View
        Of each tile as of a head: C clusters and then G groups.
    column : array of int, shape (H * n_tiles, K)
        Column of each cluster, or that of its group.
    part : array, shape (H * n_tiles, K)
        Of a cluster in the weight of its column.
    """

    view: View
    column: Array
    part: Array


def overview_of(xp: Namespace, columns: Columns) -> Overview:
    """Mean, variance and mean value of the keys of each group."""
    group = one_hot(xp, columns.group, columns.n_groups, columns.mean)
    of_keys = group * columns.count[..., None]
    count = xp.sum(of_keys, axis=-2)
    share = xp.matrix_transpose(of_keys / xp.where(count > 0, count, 1.0)[..., None, :])
    mean = xp.matmul(share, columns.mean)
    apart = xp.matmul(columns.mean - xp.matmul(group, mean), columns.axes)
    members = xp.sum(xp.where(columns.count[..., None] > 0, group, 0.0), axis=-2)
    variance = xp.matmul(share, columns.variance + apart * apart)
    return Overview(count, members, mean, variance, xp.matmul(share, columns.value), group)


def tiles_of(backend: Backend, query: Array, is_row: Array, columns: Columns) -> QueryTiles:
    """Tiles of queries that have their largest two groups in common, as far as there are enough of them.

    Parameters
    ----------
    query : array, shape (H, Lq, D)
    is_row : array of bool, shape (H, Lq)
        False for a query that is hidden.
    """
    xp, overview = backend.xp, overview_of(backend.xp, columns)
    length = -(-query.shape[1] // TILE) * TILE
    query, is_row = padded(xp, backend.stop_gradient(query), length), padded(xp, is_row, length)
    is_row = is_row & xp.isfinite(xp.sum(xp.abs(query), axis=-1))
    order = xp.argsort(_two_groups(backend, query, is_row, overview), axis=-1, stable=True)
    return QueryTiles(columns, overview, order, xp.take_along_axis(is_row, order, axis=-1))


def in_order(xp: Namespace, query: Array, tiles: QueryTiles) -> Array:
    """Queries (H, Lq, D) in the order of their tiles, zeros where these are not full."""
    return rows_at(xp, padded(xp, query, tiles.order.shape[1]), tiles.order)


def _two_groups(backend: Backend, query: Array, is_row: Array, overview: Overview) -> Array:
    """The two groups of most weight of each query as one number; the highest for what is no row."""
    xp, there = backend.xp, backend.stop_gradient(overview.count) > 0
    logit = xp.matmul(query, xp.matrix_transpose(backend.stop_gradient(overview.mean)))
    logit = logit + xp.log(xp.where(there, overview.count, 1.0))[:, None, :]
    logit = xp.where(there[:, None, :], logit, -math.inf)
    two = backend.two_largest(logit, lambda: two_largest(xp, logit))
    return xp.where(is_row, two, logit.shape[-1] ** 2)


def two_largest(xp: Namespace, x: Array) -> Array:
    """The places i, j of the two largest of each row (..., K) as i K + j; j is 0 without a second."""
    n, first = x.shape[-1], xp.argmax(x, axis=-1)
    is_first = first[..., None] == integers(xp, n, first)
    return first * n + xp.argmax(xp.where(is_first, -math.inf, x), axis=-1)


def look(backend: Backend, tiles: QueryTiles, layout: Layout, query: Array, rows: slice) -> Looked:
    """What the tiles of some queries, (H, R, D) in order, look at."""
    xp, columns, overview = backend.xp, tiles.columns, tiles.overview
    n_tiles = query.shape[1] // TILE
    query, is_row = by_tile(xp, query), by_tile(xp, tiles.is_row[:, rows])
    groups = _groups_of(backend, tiles, query, is_row)
    is_looked = _looked_groups(backend, groups, is_row, overview, layout)
    group = _of_each_tile(xp, columns.group, n_tiles)
    there = _of_each_tile(xp, columns.count > 0, n_tiles)
    chosen = there & xp.take_along_axis(is_looked, group, axis=-1)
    n_columns = max(1, int(xp.max(xp.sum(xp.astype(chosen, group.dtype), axis=-1))))
    index, filled = listed(xp, chosen, n_columns)
    view = _view(backend, tiles, query, (index, filled), groups, is_looked)
    own = xp.cumulative_sum(xp.astype(chosen, group.dtype), axis=-1) - 1
    column, part = xp.where(chosen, own, n_columns + group), xp.where(chosen, 1.0, groups.part)
    return Looked(view, column, part)


def by_tile(xp: Namespace, x: Array) -> Array:
    """Rows of whole tiles (H, R, ...), each tile as a head: (H * n_tiles, TILE, ...)."""
    return xp.reshape(x, (x.shape[0] * x.shape[1] // TILE, TILE, *x.shape[2:]))


def _of_each_tile(xp: Namespace, x: Array, n_tiles: int) -> Array:
    return x if n_tiles == 1 else xp.repeat(x, n_tiles, axis=0)


@dataclass(frozen=True)
class _Groups:
    """Groups as one cluster each, as tiles see them.

    Attributes
    ----------
    logit, spread : array, shape (n_tiles, TILE, G)
    value : array, shape (n_tiles, G, Dv)
    part : array, shape (n_tiles, K)
        Of each cluster in the weight of its group.
    """

    logit: Array
    spread: Array
    value: Array
    part: Array


def _groups_of(backend: Backend, tiles: QueryTiles, query: Array, is_row: Array) -> _Groups:
    """What a tile sees of groups: of second order, but the sum over their clusters for its mean query.

    Their values are weighted as for that query.
    """
    xp, columns, overview = backend.xp, tiles.columns, tiles.overview
    n_heads, n_groups = overview.count.shape
    seen = (columns.axes, overview.mean, overview.variance, overview.count)
    flat = xp.reshape(query, (n_heads, -1, query.shape[-1]))
    logit, spread = (by_tile(xp, x) for x in cluster_logits(backend, flat, *seen))
    centre = _centres(xp, query, is_row, n_heads)
    as_one, _ = cluster_logits(backend, centre, *seen)
    part, apart, known = _parts(backend, columns, overview, centre)
    more = xp.where(known, apart - xp.where(known, as_one, 0.0), 0.0)
    own = part[:, :, None, :] * xp.matrix_transpose(overview.one_hot)[:, None, :, :]
    n_tiles, dim = centre.shape[1], columns.value.shape[-1]
    own = xp.reshape(own, (n_heads, n_tiles * n_groups, part.shape[-1]))
    value = xp.reshape(xp.matmul(own, columns.value), (n_heads * n_tiles, n_groups, dim))
    more = xp.reshape(more, (n_heads * n_tiles, 1, n_groups))
    return _Groups(logit + more, spread, value, xp.reshape(part, (n_heads * n_tiles, -1)))


def _centres(xp: Namespace, query: Array, is_row: Array, n_heads: int) -> Array:
    """Mean query of each tile, shape (H, tiles of a head, D)."""
    n_rows = xp.sum(xp.astype(is_row, query.dtype), axis=-1)[:, None]
    total = xp.sum(xp.where(is_row[..., None], query, 0.0), axis=1)
    return xp.reshape(total / xp.where(n_rows > 0, n_rows, 1.0), (n_heads, -1, query.shape[-1]))


def _parts(
    backend: Backend, columns: Columns, overview: Overview, centre: Array
) -> tuple[Array, Array, Array]:
    """Parts of clusters in the weight of their group (H, T, K), logs of these (H, T, G), and which are known.

    Of a group whose weight is lost to underflow it is the part of its keys.
    """
    xp, constant = backend.xp, backend.stop_gradient
    logit, _ = cluster_logits(backend, centre, columns.axes, columns.mean, columns.variance, columns.count)
    top = finite(backend, xp.max(constant(logit), axis=-1))[..., None]
    weight = xp.exp(logit - top)
    total = xp.matmul(weight, overview.one_hot)
    known = constant(total) > LEAST_WEIGHT
    safe = xp.where(known, total, 1.0)

    def of_clusters(of_groups: Array) -> Array:
        return xp.matmul(of_groups, xp.matrix_transpose(overview.one_hot))

    of_keys = columns.count[:, None, :] / of_clusters(
        xp.where(overview.count > 0, overview.count, 1.0)[:, None, :]
    )
    is_known = of_clusters(xp.astype(known, total.dtype)) > 0
    part = xp.where(is_known, weight / of_clusters(safe), of_keys)
    return part, xp.log(safe) + top, known


def _looked_groups(
    backend: Backend, groups: _Groups, is_row: Array, overview: Overview, layout: Layout
) -> Array:
    """Groups that a tile looks at the clusters of, (n_tiles, G): those that leave most error as one cluster.

    Of the errors of `routing.view.choose`, each query's being 1 in all.
    """
    xp, constant, n_tiles = backend.xp, backend.stop_gradient, is_row.shape[0] // overview.count.shape[0]
    logit, spread = constant(groups.logit), constant(groups.spread)
    share = floored(xp, logit - finite(backend, xp.max(logit, axis=-1))[..., None])
    width = bounded(xp, xp.sum(constant(overview.variance), axis=-1)) / xp.where(
        overview.count > 0, overview.count, 1.0
    )
    error = share * share * (xp.expm1(spread) + LEAST_SPREAD) * _of_each_tile(xp, width, n_tiles)[:, None, :]
    total = xp.sum(error, axis=-1)[..., None]
    is_counted = is_row[..., None] & (total > float(xp.finfo(total.dtype).smallest_normal))
    score = xp.sum(xp.where(is_counted, error / xp.where(is_counted, total, 1.0), 0.0), axis=1)
    order = xp.argsort(score, axis=-1, descending=True, stable=True)
    members = xp.take_along_axis(_of_each_tile(xp, constant(overview.members), n_tiles), order, axis=-1)
    is_taken = xp.cumulative_sum(members, axis=-1) - members < layout.looked
    return xp.take_along_axis(is_taken, xp.argsort(order, axis=-1), axis=-1)


def _view(
    backend: Backend,
    tiles: QueryTiles,
    query: Array,
    looked: tuple[Array, Array],
    groups: _Groups,
    is_looked: Array,
) -> View:
    xp, columns, overview = backend.xp, tiles.columns, tiles.overview
    index, filled = looked
    n_heads = columns.count.shape[0]
    n_tiles = index.shape[0] // n_heads

    def own(x: Array) -> Array:
        """Rows (H, K, D) of the clusters that each tile looks at."""
        flat = xp.reshape(index, (n_heads, -1))
        return xp.reshape(rows_at(xp, x, flat), (*index.shape, x.shape[-1]))

    def numbers(x: Array) -> Array:
        return xp.take_along_axis(_of_each_tile(xp, x, n_tiles), index, axis=-1)

    def of_groups(x: Array) -> Array:
        return _of_each_tile(xp, x, n_tiles)

    mean, variance = own(columns.mean), own(columns.variance)
    count = xp.where(filled, numbers(columns.count), 0.0)
    axes = _of_each_tile(xp, columns.axes, n_tiles)
    own_logit, own_spread = cluster_logits(backend, query, axes, mean, variance, count)
    group_count = xp.where(is_looked, 0.0, of_groups(overview.count))
    unseen = (group_count == 0)[:, None, :]
    number = xp.broadcast_to(integers(xp, columns.n_groups, index), group_count.shape)
    group = xp.concat([numbers(columns.group), number], axis=-1)
    start = numbers(columns.start)
    return View(
        xp.concat([own_logit, xp.where(unseen, -math.inf, groups.logit)], axis=-1),
        backend.stop_gradient(xp.concat([own_spread, groups.spread], axis=-1)),
        xp.concat([count, group_count], axis=-1),
        xp.concat([own(columns.value), groups.value], axis=-2),
        xp.concat([mean, of_groups(overview.mean)], axis=-2),
        # Of no width, a group is never opened.
        xp.concat([bounded(xp, xp.sum(variance, axis=-1)), xp.zeros_like(group_count)], axis=-1),
        one_hot(xp, group, columns.n_groups, query),
        xp.concat([start, xp.zeros(number.shape, dtype=start.dtype, device=device(start))], axis=-1),
    )
