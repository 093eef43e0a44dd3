"""Items that gain most an entry, of the queries of a head: `routing.selection` in loops.

Every query has items of two kinds, groups and then clusters, or of one with no rows of the other. A cluster
costs its keys, one less where its group is split already. The items of all queries are a tuple of gains of
groups (G, R) and of clusters (K, R), the group of each cluster, costs of groups (G,), keys of clusters (K,),
and 1.0 where a group is split already, of all groups by queries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_core.routing.selection import PART_OF_ENTRY, SAMPLED_ROWS, TIES

# Queries that are worked on together.
BLOCK = 128
# A search for a bar ends with items that gain the same within so much, or cost so little: they are sorted.
NEAR, FEW_ENTRIES = 1.0001, 256
# A step of the search leaves at least so much on either side.
LEAST_PART = 0.2
# The largest step of a search, and what it never goes below.
LARGEST_STEP, LEAST = 2.0**32, 1e-300


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
def bar_at(items: Any, room: float, hint: float) -> float:
    """The greatest gain that no longer fits into the room, those above it all taken; 0 if all fit.

    Parameters
    ----------
    hint : float
        Near what is found, for speed.
    """
    # All above `high` fit, all above `low` do not.
    low, high, step = 0.0, hint if hint > LEAST else 1.0, 1.1
    above = below = _spent_in_all(high, items)
    if above > room:
        while above > room:
            low, high, below, step = high, high * step, above, min(step * step, LARGEST_STEP)
            above = _spent_in_all(high, items)
    else:
        low = high / step
        below = _spent_in_all(low, items)
        while below <= room and low > LEAST:
            step = min(step * step, LARGEST_STEP)
            low, high, above = low / step, low, below
            below = _spent_in_all(low, items)
        if low <= LEAST:
            low = 0.0
            below = _spent_in_all(low, items)
            if below <= room:
                return 0.0
    while low > 0 and low * NEAR < high < np.inf and below - above > FEW_ENTRIES:
        # As if what is spent fell evenly; from the middle of what is left where that goes wrong.
        part = (below - room) / (below - above)
        middle = low * math.pow(high / low, min(max(part, LEAST_PART), 1 - LEAST_PART))
        found = _spent_in_all(middle, items)
        if found <= room:
            high, above = middle, found
        else:
            low, below = middle, found
    gain, cost = _between(low, high, items)
    return _first_that_does_not_fit(gain, cost, room - above)


@loop
def _spent_in_all(bar: float, items: Any) -> float:
    """What all queries spend on what gains more than a bar."""
    groups, clusters, group, group_cost, count, is_split = items
    number, n, total = clusters.dtype.type, clusters.shape[1], 0.0
    least, zero, one = number(bar), number(0), number(1)
    for g in range(len(groups)):
        gain, n_above = groups[g], zero
        for j in range(n):
            n_above += one if gain[j] > least else zero
        total += n_above * group_cost[g]
    for k in range(len(clusters)):
        gain, apart, n_keys, spent = clusters[k], is_split[group[k]], count[k], zero
        for j in range(n):
            spent += n_keys - apart[j] if gain[j] > least else zero
        total += spent
    return total


@loop
def _between(low: float, high: float, items: Any) -> Any:
    """Gains and costs of the items above one bar and not above another."""
    groups, clusters, group, group_cost, count, is_split = items
    number, n_queries, n = clusters.dtype.type, clusters.shape[1], 0
    least, most = number(low), number(high)
    gain, cost = np.empty(BLOCK, clusters.dtype), np.empty(BLOCK, clusters.dtype)
    for i in range(len(groups) + len(clusters)):
        k = i - len(groups)
        row = groups[i] if k < 0 else clusters[k]
        below_most = below_least = number(0)
        for j in range(n_queries):
            below_most += number(1) if row[j] <= most else number(0)
            below_least += number(1) if row[j] <= least else number(0)
        n_found = int(below_most - below_least)
        if n_found == 0:
            continue
        if n + n_found > len(gain):
            gain, cost = longer(gain, n + n_found), longer(cost, n + n_found)
        for j in range(n_queries):
            if least < row[j] <= most:
                gain[n] = row[j]
                cost[n] = group_cost[i] if k < 0 else count[k] - is_split[group[k], j]
                n += 1
    return gain[:n], cost[:n]


@loop
def longer(x: Any, least: int) -> Any:
    """An array with the same numbers, and place for at least so many."""
    found = np.empty(max(2 * len(x), least), x.dtype)
    found[: len(x)] = x
    return found


@loop
def _first_that_does_not_fit(gain: Any, cost: Any, room: float) -> float:
    """The gain of the first item, the greatest first, with which they cost more than the room; 0 if none."""
    order, total = np.argsort(gain), 0.0
    for i in range(len(gain) - 1, -1, -1):
        total += cost[order[i]]
        if total > room:
            return gain[order[i]]
    return 0.0


@loop
def bar_at_mean(items: Any, mean: float, is_part: bool, hint: float) -> float:
    """The bar at which queries spend the mean: all, or a sample of them."""
    groups, clusters, group, group_cost, count, is_split = items
    n_queries = clusters.shape[1]
    stride = max(1, n_queries // SAMPLED_ROWS) if is_part else 1
    if stride > 1:
        groups, clusters, is_split = (
            groups[:, ::stride].copy(),
            clusters[:, ::stride].copy(),
            is_split[:, ::stride].copy(),
        )
        n_queries = clusters.shape[1]
    items = (groups, clusters, group, group_cost, count, is_split)
    return bar_at(items, max(mean * n_queries + PART_OF_ENTRY, 0.0), hint)


@loop
def bars_of_queries(bar: Any, items: Any, most: Any, first: int, last: int, bars: Any) -> None:
    """What gains of a query must exceed: the bar, or the greatest that no longer fits within its most."""
    number, spent = bars.dtype.type, np.empty_like(bars)
    tied = number(1) + number(TIES) * np.finfo(bars.dtype).eps
    for j in range(last - first):
        bars[j] = bar * tied
    spent_above(bars, items, first, last, spent)
    for j in range(last - first):
        room = most[first + j] + number(PART_OF_ENTRY)
        if not spent[j] <= room:
            bars[j] = max(bar, _bar_of_query(items, room, first + j)) * tied


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
    return clusters.dtype.type(_first_that_does_not_fit(gain, cost, room))
