"""Items that gain most an entry, of the queries of a head: `routing.selection` in loops.

Every query has items of two kinds, groups and then clusters, or of one with no rows of the other. A cluster
costs its keys, one less where its group is split already. The items of all queries are a tuple of gains of
groups (G, R) and of clusters (K, R), the group of each cluster, costs of groups (G,), keys of clusters (K,),
and 1.0 where a group is split already, of all groups by queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_core.routing.selection import CORRECTIONS, PART_OF_ENTRY, ROOM, SAMPLED_ROWS

# Queries that are worked on together.
BLOCK = 128
# Gains are counted by their leading digits: sign, exponent and seven bits behind it.
DROPPED_BITS, N_DIGITS = 16, 2**15


@loop
def digit(gain: Any) -> Any:
    """Leading digits of a gain, larger for a larger one."""
    return np.float32(gain).view(np.int32) >> DROPPED_BITS


@loop
def sampled(items: Any) -> Any:
    """Gains and costs of the items of some queries that gain anything, and how many queries these are."""
    groups, clusters, group, group_cost, count, is_split = items
    n_clusters, n_queries = clusters.shape
    stride = max(1, n_queries // SAMPLED_ROWS)
    n_sampled = (n_queries + stride - 1) // stride
    gain = np.empty(n_sampled * (len(groups) + n_clusters), clusters.dtype)
    cost = np.empty(len(gain), clusters.dtype)
    n = 0
    for g in range(len(groups)):
        for r in range(0, n_queries, stride):
            gain[n], cost[n] = groups[g, r], group_cost[g]
            n += groups[g, r] > 0
    for k in range(n_clusters):
        for r in range(0, n_queries, stride):
            gain[n], cost[n] = clusters[k, r], count[k] - is_split[group[k], r]
            n += clusters[k, r] > 0
    return gain[:n], cost[:n], n_sampled


@loop
def counted(gain: Any, cost: Any) -> Any:
    """What items of each digit cost together."""
    spent = np.zeros(N_DIGITS)
    for i in range(len(gain)):
        spent[digit(gain[i])] += cost[i]
    return spent


@loop
def bar_of(gain: Any, cost: Any, spent: Any, room: float) -> float:
    """The greatest gain that no longer fits, those above it all taken; 0 where all fit."""
    before, d = 0.0, N_DIGITS - 1
    while d >= 0 and (spent[d] == 0 or before + spent[d] <= room):
        before += spent[d]
        d -= 1
    if d < 0:
        return 0.0
    own_gain, own_cost = np.empty_like(gain), np.empty_like(cost)
    n = 0
    for i in range(len(gain)):
        own_gain[n], own_cost[n] = gain[i], cost[i]
        n += digit(gain[i]) == d
    return first_that_does_not_fit(own_gain[:n], own_cost[:n], room - before)


@loop
def first_that_does_not_fit(gain: Any, cost: Any, room: float) -> float:
    """The greatest gain with which all items that gain as much cost more than the room; 0 where all fit."""
    # The order of positive floats is that of their bits: a search by halves needs no sort.
    low, high = np.int64(0), np.float64(np.inf).view(np.int64)
    while high - low > 1:
        middle = np.int64((low + high) // 2)
        bar, total = middle.view(np.float64), 0.0
        for i in range(len(gain)):
            own = np.float64(cost[i])
            total += own if gain[i] >= bar else 0.0
        if total > max(room, 0.0):
            low = middle
        else:
            high = middle
    return np.int64(low).view(np.float64)


@loop
def spent_above(bars: Any, items: Any, first: int, last: int, spent: Any) -> None:
    """What queries [first, last) each spend on all that gains more than their bar."""
    groups, clusters, group, group_cost, count, is_split = items
    zero, n = clusters.dtype.type(0), last - first
    for j in range(n):
        spent[j] = zero
    for g in range(len(groups)):
        gain, cost = groups[g, first:last], group_cost[g]
        for j in range(n):
            spent[j] += cost if gain[j] > bars[j] else zero
    for k in range(len(clusters)):
        gain, apart, n_keys = clusters[k, first:last], is_split[group[k], first:last], count[k]
        for j in range(n):
            spent[j] += n_keys - apart[j] if gain[j] > bars[j] else zero


@loop
def bar_at_mean(items: Any, mean: float, is_given: bool) -> float:
    """The bar at which queries spend the mean; where none is given, the least tried that holds for all."""
    groups, clusters = items[0], items[1]
    gain, cost, n_sampled = sampled(items)
    digits = counted(gain, cost)
    n_queries = clusters.shape[1]
    limit, bar = mean, np.inf
    bars, spent = np.empty(BLOCK, clusters.dtype), np.empty(BLOCK, clusters.dtype)
    for _ in range(CORRECTIONS):
        tried = bar_of(gain, cost, digits, limit * n_sampled + PART_OF_ENTRY)
        if is_given or n_sampled == n_queries:
            return tried
        bars[:] = tried
        total = 0.0
        for first in range(0, n_queries, BLOCK):
            last = min(first + BLOCK, n_queries)
            spent_above(bars, items, first, last, spent)
            for j in range(last - first):
                total += spent[j]
        total /= n_queries
        if total <= ROOM * mean and tried < bar:
            bar = tried
        limit = limit * mean / (total if total > 0 else 1.0)
    return bar if bar < np.inf else max(_greatest(groups), _greatest(clusters))


@loop
def _greatest(gain: Any) -> float:
    top = 0.0
    for i in range(len(gain)):
        for r in range(gain.shape[1]):
            top = max(top, gain[i, r])
    return top


@loop
def bars_of_queries(bar: Any, items: Any, most: Any, first: int, last: int, bars: Any) -> None:
    """The bar, or where a query would spend more than its most, the greatest gain that no longer fits."""
    number, spent = bars.dtype.type, np.empty_like(bars)
    for j in range(last - first):
        bars[j] = bar
    spent_above(bars, items, first, last, spent)
    for j in range(last - first):
        room = most[first + j] + number(PART_OF_ENTRY)
        if not spent[j] <= room:
            bars[j] = max(bar, _bar_of_query(items, room, first + j))


@loop
def _bar_of_query(items: Any, room: Any, r: int) -> Any:
    """The greatest gain of one query that no longer fits."""
    groups, clusters, group, group_cost, count, is_split = items
    n_groups = len(groups)
    gain = np.empty(n_groups + len(clusters), clusters.dtype)
    cost = np.empty_like(gain)
    for g in range(n_groups):
        gain[g], cost[g] = groups[g, r], group_cost[g]
    for k in range(len(clusters)):
        gain[n_groups + k], cost[n_groups + k] = clusters[k, r], count[k] - is_split[group[k], r]
    return clusters.dtype.type(first_that_does_not_fit(gain, cost, room))
