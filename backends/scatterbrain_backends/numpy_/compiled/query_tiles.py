"""Tiles of queries, from what they look at to what they open: `routing.query_tiles` in loops.

All arrays of a tile stay in the cache. As in `compiled.choosing`, clusters and groups are rows and queries
columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.choosing import LOG_LEAST_SHARE, NOT_GIVEN, choose
from scatterbrain_backends.numpy_.compiled.clustering import to_second_order
from scatterbrain_backends.numpy_.compiled.exponential import exponential, logarithm
from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.rows import copy, gather
from scatterbrain_backends.numpy_.compiled.selection import longer
from scatterbrain_core.routing.layout import TILE
from scatterbrain_core.routing.query_tiles import LEAST_WEIGHT
from scatterbrain_core.routing.view import LEAST_SHARE, LEAST_SPREAD

# Rows of the numbers of clusters and of groups: keys, unit of variances and most units, log of keys.
COUNT, UNIT, MOST, SIZE = range(4)
# Of clusters: what squares of shares and of their deviations count for, part of the keys of the group.
SQUARES, DEVIATIONS, PART = range(4, 7)
# Of groups: squared distance of the keys from their mean, clusters that are not empty.
WIDTH, MEMBERS = range(4, 6)
# Bits of 64, and what counts them and puts them side by side.
NO_BIT, ONE_BIT, HIGHEST_BYTE = np.uint64(0), np.uint64(1), np.uint64(56)
ONE_OF_TWO, TWO_OF_FOUR, FOUR_OF_EIGHT, A_BIT_A_BYTE, SIDE_BY_SIDE = map(
    np.uint64,
    (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101, 0x0102040810204080),
)
assert TILE == 64


@loop
def solve(
    query: Any,
    order: Any,
    is_row: Any,
    axes: Any,
    clusters: Any,
    groups: Any,
    group_of: Any,
    limits: Any,
    near: Any,
    in_order: Any,
) -> Any:
    """Merge what tiles of queries see of clusters into their partial results; gives what they open.

    Parameters
    ----------
    query : ndarray, shape (Lq, D)
    order, is_row : ndarray of int and of bool, shape (L,), whole tiles
        Place of a query, in the order of their tiles, Lq or more for none; and whether there is one.
    axes : ndarray, shape (D, D)
    clusters, groups : tuple of ndarray
        Of K clusters and of G groups: means (K, D), variances in units (K, D), values with 1.0 behind them
        (K, Dv + 1), and numbers (7, K) and (6, G).
    group_of : ndarray of int, shape (K,)
    limits : tuple
        Entries that a query may add on average, those that any may add, clusters that a tile looks at.
    near : tuple of ndarray, shape (Lq,) and (Lq, Dv + 1)
        Reference and sums of each query on other keys.
    in_order : tuple of ndarray, shape (L, D), (L,) and (L, Dv + 1)
        Written to: queries, references and sums in the order of the tiles, near each other as visits are.

    Returns
    -------
    tile, cluster : ndarray of int, shape (n,)
        Tiles, and clusters that queries of them open.
    opened : ndarray of uint64, shape (n,)
        By which queries of the tile, a bit each.
    """
    queries, ref, acc = in_order
    tile, cluster, opened = (
        np.empty(len(order), np.int64),
        np.empty(len(order), np.int64),
        np.empty(len(order), np.uint64),
    )
    n, bars = 0, np.zeros(2)
    for first in range(0, len(order), TILE):
        last = first + TILE
        there, own, own_ref, own_acc = (
            is_row[first:last],
            queries[first:last],
            ref[first:last],
            acc[first:last],
        )
        _gather_tile(query, near, order[first:last], own, own_ref, own_acc)
        columns, numbers, values, logit, spread = _see(
            own, there, axes, clusters, groups, group_of, limits[2]
        )
        top, near_weight = _tops(logit, own_ref, own_acc)
        seen = (logit, spread, top, near_weight, there)
        weights, is_opened = _choose(seen, columns, group_of, numbers, groups[3], limits, bars)
        _merge(np.dot(weights.T, values), top, own_ref, own_acc)
        if n + len(columns) > len(tile):
            tile, cluster, opened = (
                longer(tile, n + len(columns)),
                longer(cluster, n + len(columns)),
                longer(opened, n + len(columns)),
            )
        for c in range(len(columns)):
            if columns[c] < len(group_of):
                tile[n], cluster[n], opened[n] = first // TILE, columns[c], _bits(is_opened[c])
                n += opened[n] != NO_BIT
    return tile[:n], cluster[:n], opened[:n]


@loop
def to_own_order(order: Any, in_order: Any, near: Any) -> None:
    """Partial results in the order of tiles to where their queries are."""
    for i in range(len(order)):
        if order[i] < len(near[0]):
            near[0][order[i]] = in_order[1][i]
            copy(in_order[2][i], near[1][order[i]])


@loop
def _gather_tile(query: Any, near: Any, places: Any, own: Any, own_ref: Any, own_acc: Any) -> None:
    """Queries of a tile and their partial results; where there is none, what has seen nothing."""
    for j in range(TILE):
        i = places[j]
        if i < len(query):
            own_ref[j] = near[0][i]
            copy(query[i], own[j])
            copy(near[1][i], own_acc[j])
        else:
            own[j], own_ref[j], own_acc[j] = 0.0, -np.inf, 0.0


@loop
def _see(
    query: Any, there: Any, axes: Any, clusters: Any, groups: Any, group_of: Any, n_looked: float
) -> Any:
    """What a tile has columns for, their numbers and values, and its logits and spreads of them."""
    along = np.dot(query, axes)
    along *= along
    shape = (len(groups[0]), TILE)
    logit, spread = np.empty(shape, query.dtype), np.empty(shape, query.dtype)
    value = np.empty((len(groups[0]), clusters[2].shape[1]), query.dtype)
    parts = _groups(query, along, there, axes, clusters, groups, group_of, logit, spread)
    is_looked = _looked(logit, spread, there, groups[3], n_looked)
    _values(is_looked, *parts, clusters[2], groups[2], group_of, value)
    columns = _columns(is_looked, group_of, clusters[3][COUNT], groups[3][COUNT])
    numbers, values = _gathered(columns, clusters, groups, value)
    own_logit, own_spread = _logits(query, along, columns, clusters, numbers, logit, spread)
    return columns, numbers, values, own_logit, own_spread


@loop
def _merge(sums: Any, top: Any, ref: Any, acc: Any) -> None:
    """Add the sums of a tile, as exp(top) * sums, to the partial results of its queries."""
    for j in range(TILE):
        if sums[j, -1] != 0:  # what is not finite is not left out
            kept, own, more = exponential(ref[j] - top[j]), acc[j], sums[j]
            for c in range(len(own)):
                own[c] = own[c] * kept + more[c]
            ref[j] = top[j]


@loop
def _bits(opened: Any) -> Any:
    """The bools of the queries of a tile as bits."""
    eights, bits = opened.view(np.uint64), NO_BIT
    for i in range(len(eights)):
        # The lowest bits of eight bytes, each of which is 0 or 1, side by side in the highest byte.
        bits |= (eights[i] * SIDE_BY_SIDE >> HIGHEST_BYTE) << np.uint64(8 * i)
    return bits


@loop
def _n_ones(bits: Any) -> Any:
    """How many bits are 1."""
    bits -= bits >> np.uint64(1) & ONE_OF_TWO
    bits = (bits & TWO_OF_FOUR) + (bits >> np.uint64(2) & TWO_OF_FOUR)
    return np.int64(((bits + (bits >> np.uint64(4)) & FOUR_OF_EIGHT) * A_BIT_A_BYTE) >> HIGHEST_BYTE)


@loop
def by_cluster(tile: Any, cluster: Any, opened: Any, start: Any, count: Any) -> Any:
    """Visits of clusters in order of the clusters' slots: query row, first slot and last."""
    n_clusters = len(start)
    at = np.zeros(n_clusters + 1, np.int64)
    for i in range(len(cluster)):
        at[cluster[i] + 1] += _n_ones(opened[i])
    for k in range(n_clusters):
        at[k + 1] += at[k]
    n_visits = at[n_clusters]
    rows, lo, hi = np.empty(n_visits, np.int64), np.empty(n_visits, np.int64), np.empty(n_visits, np.int64)
    for i in range(len(tile)):
        k, left = cluster[i], opened[i]
        place, last = at[k], start[k] + np.int64(count[k])
        while left != NO_BIT:
            below = (left - ONE_BIT) & ~left  # ones below the lowest that is left
            rows[place], lo[place], hi[place] = tile[i] * TILE + _n_ones(below), start[k], last
            left &= left - ONE_BIT
            place += 1
        at[k] = place
    return rows, lo, hi


@loop
def _groups(
    query: Any,
    along: Any,
    there: Any,
    axes: Any,
    clusters: Any,
    groups: Any,
    group_of: Any,
    logit: Any,
    spread: Any,
) -> Any:
    """Logits and spreads of groups as one cluster each; weights of clusters, and one over sums of groups'."""
    number = query.dtype.type
    zero, one = number(0), number(1)
    _second_order(query, along, groups, logit, spread)
    centre = _centre(query, there)
    squares = np.dot(centre, axes)
    squares *= squares
    as_one, apart = _at(groups, centre, squares), _at(clusters, centre, squares)
    top = max(zero if len(apart) == 0 else apart.max(), np.finfo(query.dtype).min)
    total = np.zeros(len(logit), query.dtype)
    for k in range(len(apart)):
        apart[k] = exponential(apart[k] - top)
    for k in range(len(apart)):
        total[group_of[k]] += apart[k]
    for g in range(len(total)):
        is_known = total[g] > number(LEAST_WEIGHT)
        more = logarithm(total[g] if is_known else one) + top - as_one[g] if is_known else zero
        for j in range(TILE):
            logit[g, j] += more
        total[g] = one / total[g] if is_known else zero
    return apart, total


@loop
def _values(
    is_looked: Any, weight: Any, per_total: Any, values: Any, of_keys: Any, group_of: Any, value: Any
) -> None:
    """Values of groups seen as one: by the parts of clusters in their weight, or of keys where it is lost."""
    zero, one = weight.dtype.type(0), weight.dtype.type(1)
    for g in range(len(value)):
        is_known = per_total[g] > zero
        for c in range(value.shape[1]):
            value[g, c] = zero if is_known else of_keys[g, c]
    for k in range(len(weight)):
        part = weight[k] * per_total[group_of[k]]
        if part > zero and not is_looked[group_of[k]]:
            own, of_group = values[k], value[group_of[k]]
            for c in range(len(own)):
                of_group[c] += part * own[c]
    for g in range(len(value)):
        value[g, -1] = one


@loop
def _second_order(query: Any, along: Any, groups: Any, logit: Any, spread: Any) -> None:
    """Logits and spreads of groups as one cluster each."""
    numbers = groups[3]
    np.dot(groups[0], query.T, logit)
    np.dot(groups[1], along.T, spread)
    for g in range(len(logit)):
        row = logit[g], spread[g]
        to_second_order(*row, numbers[UNIT, g], numbers[MOST, g], numbers[SIZE, g], *row)


@loop
def _centre(query: Any, there: Any) -> Any:
    """Mean of the queries of a tile that are rows."""
    one, centre = query.dtype.type(1), np.zeros(query.shape[1], query.dtype)
    n = query.dtype.type(0)
    for j in range(TILE):
        if there[j]:
            n += one
            for d in range(len(centre)):
                centre[d] += query[j, d]
    for d in range(len(centre)):
        centre[d] /= n if n > one else one
    return centre


@loop
def _at(clusters: Any, query: Any, squares: Any) -> Any:
    """Logits of clusters for one query."""
    numbers, half = clusters[3], query.dtype.type(0.5)
    found, variances = np.dot(clusters[0], query), np.dot(clusters[1], squares)
    for k in range(len(found)):
        most = numbers[MOST, k]
        own = (variances[k] if variances[k] < most else most) * numbers[UNIT, k]
        found[k] += half * own + numbers[SIZE, k]
    return found


@loop
def _looked(logit: Any, spread: Any, there: Any, numbers: Any, n_looked: float) -> Any:
    """Which groups a tile looks at."""
    n_groups, number = len(logit), logit.dtype.type
    zero, one, least = number(0), number(1), np.finfo(logit.dtype).tiny
    error, total, top = np.empty_like(logit), np.zeros(TILE, logit.dtype), np.full(TILE, -np.inf, logit.dtype)
    for g in range(n_groups):
        for j in range(TILE):
            top[j] = logit[g, j] if logit[g, j] > top[j] else top[j]
    for j in range(TILE):
        top[j] = top[j] if top[j] > -np.inf else zero
    for g in range(n_groups):
        width = numbers[WIDTH, g]
        for j in range(TILE):
            below = number(LOG_LEAST_SHARE) - (logit[g, j] - top[j])
            floor, plain = number(LEAST_SHARE) / (one + below), exponential(logit[g, j] - top[j])
            share, first_order = floor if below > zero else plain, spread[g, j]
            second_order = exponential(first_order) - one
            within = (second_order if second_order > first_order else first_order) + number(LEAST_SPREAD)
            error[g, j] = share * share * within * width if there[j] else zero
            total[j] += error[g, j]
    for j in range(TILE):
        total[j] = one / total[j] if total[j] > least else zero
    score = np.zeros(n_groups, logit.dtype)
    for g in range(n_groups):
        for j in range(TILE):
            score[g] -= error[g, j] * total[j]
    n_clusters, is_looked = zero, np.empty(n_groups, np.bool_)
    for g in np.argsort(score, kind="mergesort"):
        is_looked[g] = n_clusters < number(n_looked)
        n_clusters += numbers[MEMBERS, g]
    return is_looked


@loop
def _columns(is_looked: Any, group_of: Any, count: Any, group_count: Any) -> Any:
    """Numbers of the clusters that a tile looks at, and behind them of the other groups, from K on."""
    n_clusters, n_groups = len(group_of), len(is_looked)
    chosen = np.empty(n_clusters + n_groups, np.int64)
    n = 0
    for k in range(n_clusters):
        chosen[n] = k
        n += is_looked[group_of[k]] and count[k] > 0
    for g in range(n_groups):
        chosen[n] = n_clusters + g
        n += not is_looked[g] and group_count[g] > 0
    return chosen[:n]


@loop
def _gathered(columns: Any, clusters: Any, groups: Any, value: Any) -> Any:
    """Numbers and values of what a tile has columns for; a group is of no width, alone in its group."""
    n_clusters, zero, one = len(clusters[0]), value.dtype.type(0), value.dtype.type(1)
    numbers = np.empty((7, len(columns)), value.dtype)
    values = np.empty((len(columns), value.shape[1]), value.dtype)
    for c in range(len(columns)):
        k = columns[c]
        is_cluster = k < n_clusters
        g = 0 if is_cluster else k - n_clusters
        copy(clusters[2][k] if is_cluster else value[g], values[c])
        for i in range(SIZE + 1):
            numbers[i, c] = clusters[3][i, k] if is_cluster else groups[3][i, g]
        numbers[SQUARES, c] = clusters[3][SQUARES, k] if is_cluster else zero
        numbers[DEVIATIONS, c] = clusters[3][DEVIATIONS, k] if is_cluster else zero
        numbers[PART, c] = clusters[3][PART, k] if is_cluster else one
    return numbers, values


@loop
def _logits(
    query: Any, along: Any, columns: Any, clusters: Any, numbers: Any, of_groups: Any, spread_of_groups: Any
) -> Any:
    """Logits and spreads of what a tile has columns for."""
    n_clusters, n = len(clusters[0]), 0
    while n < len(columns) and columns[n] < n_clusters:
        n += 1
    shape = (len(columns), TILE)
    logit, spread = np.empty(shape, query.dtype), np.empty(shape, query.dtype)
    mean, variance = np.empty((n, query.shape[1]), query.dtype), np.empty((n, query.shape[1]), query.dtype)
    gather(clusters[0], columns[:n], mean)
    gather(clusters[1], columns[:n], variance)
    np.dot(mean, query.T, logit[:n])
    np.dot(variance, along.T, spread[:n])
    for c in range(n):
        row = logit[c], spread[c]
        to_second_order(*row, numbers[UNIT, c], numbers[MOST, c], numbers[SIZE, c], *row)
    for c in range(n, len(columns)):
        g = columns[c] - n_clusters
        for j in range(TILE):
            logit[c, j], spread[c, j] = of_groups[g, j], spread_of_groups[g, j]
    return logit, spread


@loop
def _tops(logit: Any, ref: Any, acc: Any) -> Any:
    """Largest logit of each query, 0 without any, and the weight of its other keys in units of that."""
    top = ref.copy()
    for c in range(len(logit)):
        for j in range(TILE):
            top[j] = logit[c, j] if logit[c, j] > top[j] else top[j]
    weight = np.empty_like(top)
    for j in range(TILE):
        top[j] = top[j] if top[j] != -np.inf else logit.dtype.type(0)
        weight[j] = acc[j, -1] * exponential(ref[j] - top[j])
    return top, weight


@loop
def _choose(
    seen: Any, columns: Any, group_of: Any, numbers: Any, group_numbers: Any, limits: Any, bars: Any
) -> Any:
    """Weights of what is not opened, and what is; bars are those of the tile before."""
    there = seen[-1]
    n_there = 0
    for j in range(TILE):
        n_there += there[j]
    group, group_cost = _members(columns, group_of, group_numbers)
    known = (numbers[COUNT], group, numbers[SQUARES], numbers[DEVIATIONS], numbers[PART], group_cost)
    opened, _, weights = choose(seen, known, (limits[0] * n_there / TILE, limits[1]), NOT_GIVEN, bars)
    return weights, opened


@loop
def _members(columns: Any, group_of: Any, numbers: Any) -> Any:
    """The group of what a tile has columns for, and what it costs to split each group."""
    zero, one = numbers.dtype.type(0), numbers.dtype.type(1)
    group, cost = np.empty_like(columns), np.zeros(numbers.shape[1], numbers.dtype)
    for c in range(len(columns)):
        is_cluster = columns[c] < len(group_of)
        group[c] = group_of[columns[c]] if is_cluster else columns[c] - len(group_of)
        members = numbers[MEMBERS, group[c]]
        cost[group[c]] = members - one if is_cluster else zero
    return group, cost
