"""Items that gain most an entry, of the rows of a head: `routing.selection` in loops.

Every row has items of two kinds, groups and then clusters, or of one with no columns of the other. A cluster
costs its keys, one less where it is seen apart from its group already.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_core.routing.selection import CORRECTIONS, PART_OF_ENTRY, ROOM, SAMPLED_ROWS

# Gains are counted by their leading digits: sign, exponent and seven bits behind it.
DROPPED_BITS, N_DIGITS = 16, 2**15


@loop
def digit(gain: Any) -> Any:
    """Leading digits of a gain, larger for a larger one."""
    return np.float32(gain).view(np.int32) >> DROPPED_BITS


@loop
def sampled(groups: Any, clusters: Any, group_cost: Any, count: Any, apart: Any) -> Any:
    """Gains and costs of the items of some rows that gain anything, and how many rows these are."""
    n_rows, n_groups = groups.shape
    n_clusters = clusters.shape[1]
    stride = max(1, n_rows // SAMPLED_ROWS)
    n_sampled = (n_rows + stride - 1) // stride
    gain = np.empty(n_sampled * (n_groups + n_clusters), clusters.dtype)
    cost = np.empty(len(gain), clusters.dtype)
    n = 0
    for r in range(0, n_rows, stride):
        for g in range(n_groups):
            gain[n], cost[n] = groups[r, g], group_cost[g]
            n += groups[r, g] > 0
        for k in range(n_clusters):
            gain[n], cost[n] = clusters[r, k], count[k] - apart[r, k]
            n += clusters[r, k] > 0
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
def spent_above(bar: Any, groups: Any, clusters: Any, group_cost: Any, count: Any, apart: Any) -> Any:
    """What one row spends on all that gains more than a bar, of the dtype of the gains."""
    zero = clusters.dtype.type(0)
    of_groups = of_clusters = zero
    for g in range(len(groups)):
        cost = group_cost[g]
        of_groups += cost if groups[g] > bar else zero
    for k in range(len(clusters)):
        cost = count[k] - apart[k]
        of_clusters += cost if clusters[k] > bar else zero
    return of_groups + of_clusters


@loop
def bar_at_mean(
    groups: Any, clusters: Any, group_cost: Any, count: Any, apart: Any, mean: float, is_given: bool
) -> float:
    """The bar at which rows spend the mean; where none is given, the least tried that holds for all."""
    gain, cost, n_sampled = sampled(groups, clusters, group_cost, count, apart)
    spent = counted(gain, cost)
    n_rows, number = len(clusters), clusters.dtype.type
    limit, bar = mean, np.inf
    for _ in range(CORRECTIONS):
        tried = bar_of(gain, cost, spent, limit * n_sampled + PART_OF_ENTRY)
        if is_given or n_sampled == n_rows:
            return tried
        total = 0.0
        for r in range(n_rows):
            total += spent_above(number(tried), groups[r], clusters[r], group_cost, count, apart[r])
        total /= n_rows
        if total <= ROOM * mean and tried < bar:
            bar = tried
        limit = limit * mean / (total if total > 0 else 1.0)
    return bar if bar < np.inf else max(_greatest(groups), _greatest(clusters))


@loop
def _greatest(gain: Any) -> float:
    top = 0.0
    for r in range(len(gain)):
        for k in range(gain.shape[1]):
            top = max(top, gain[r, k])
    return top


@loop
def bar_of_row(
    bar: Any, groups: Any, clusters: Any, group_cost: Any, count: Any, apart: Any, most: Any
) -> Any:
    """The bar, or where a row would spend more than its most, the greatest gain that no longer fits."""
    number = clusters.dtype.type
    if spent_above(bar, groups, clusters, group_cost, count, apart) <= most + number(PART_OF_ENTRY):
        return bar
    n_groups = len(groups)
    gain = np.empty(n_groups + len(clusters), clusters.dtype)
    cost = np.empty_like(gain)
    for g in range(n_groups):
        gain[g], cost[g] = groups[g], group_cost[g]
    for k in range(len(clusters)):
        gain[n_groups + k], cost[n_groups + k] = clusters[k], count[k] - apart[k]
    return max(bar, number(first_that_does_not_fit(gain, cost, most + PART_OF_ENTRY)))
