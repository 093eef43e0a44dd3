"""What the queries of a head open and split, and the weights of what they do not: `routing.view` in loops.

Queries are the columns of all arrays, and clusters or groups the rows: to look up the group of a cluster is
then one step for all queries of a block, whose numbers make vectors and stay in the cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.exponential import exponential, logarithm
from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.selection import BLOCK, bar_at_mean, bars_of_queries
from scatterbrain_core.routing.view import LEAST_SHARE, LEAST_SPREAD

LOG_LEAST_SHARE = math.log(LEAST_SHARE)
# Bars of queries that find their own.
NOT_GIVEN = np.full(2, np.nan)


@loop
def choose(seen: Any, known: Any, limits: Any, given: Any, at_mean: Any) -> Any:
    """What the R queries of a head, or of a tile of one, open and split, and the weights that this leaves.

    Parameters
    ----------
    seen : tuple of ndarray
        Logits and spreads (K, R), largest logits, weights of other keys, and rows (R,): as `gains` has them.
    known : tuple of ndarray
        Of each cluster, shape (K,): its keys, its group, what squares of shares and of their deviations count
        for, its part of the keys of its group; and what it costs to split each group, shape (G,).
    limits : tuple of float
        What a query may spend on average, and at most.
    given : ndarray, shape (2,)
        Bars of groups and of clusters; NaN for those at which the mean is spent.
    at_mean : ndarray, shape (2,)
        Guesses of these last, which take their place: of a sample where bars are given.

    Returns
    -------
    opened, is_split : ndarray of bool, shape (K, R), and of 0.0 and 1.0, shape (G, R)
    weight : ndarray, shape (K, R)
    """
    logit, spread, ref, near_weight, is_row = seen
    count, group, of_squares, of_deviations, part, group_cost = known
    mean, most = limits
    number, n_queries, n_groups = logit.dtype.type, logit.shape[1], len(group_cost)
    is_given = not np.isnan(given[0])
    groups, clusters = np.empty((n_groups, n_queries), logit.dtype), np.empty(logit.shape, logit.dtype)
    per_cost = _per_cost(count, group_cost, number(most))
    columns = (group, of_squares, of_deviations, part, *per_cost)
    gains(logit, spread, ref, near_weight, is_row, columns, groups, clusters)
    is_split, left = np.zeros((n_groups, n_queries), logit.dtype), np.full(n_queries, number(most))
    items = (groups, clusters, group, group_cost, count, is_split)
    at_mean[0] = bar_at_mean(items, mean, is_given, at_mean[0])
    split(number(given[0] if is_given else at_mean[0]), items, spread, left)
    spent = 0.0
    for j in range(n_queries):
        spent += most - left[j]
    # Which groups are split is settled.
    items = (groups[:0], clusters, group, group_cost[:0], count, is_split)
    at_mean[1] = bar_at_mean(items, mean - spent / n_queries, is_given, at_mean[1])
    opened = np.empty(logit.shape, np.bool_)
    weigh(number(given[1] if is_given else at_mean[1]), logit, ref, items, left, opened)
    return opened, is_split, clusters


@loop
def _per_cost(count: Any, group_cost: Any, most: Any) -> Any:
    """One over the cost of each cluster, that once it is apart, and of each group; as `gains` has them."""
    zero, one = count.dtype.type(0), count.dtype.type(1)
    per_key, per_other, per_member = np.empty_like(count), np.empty_like(count), np.empty_like(group_cost)
    for c in range(len(count)):
        per_key[c] = one / count[c] if zero < count[c] <= most else zero
        per_other[c] = one / (count[c] - one) if count[c] > one else zero
    for g in range(len(group_cost)):
        per_member[g] = one / group_cost[g] if zero < group_cost[g] <= most else zero
    return per_key, per_other, per_member


@loop
def gains(
    logit: Any, spread: Any, ref: Any, near_weight: Any, is_row: Any, columns: Any, groups: Any, clusters: Any
) -> None:
    """What the R queries of a head gain an entry by splitting each group and by opening each cluster.

    Parameters
    ----------
    logit : ndarray, shape (K, R)
    spread : ndarray, shape (K, R)
        Overwritten with what is gained by opening a cluster that is apart from its group: memory that was
        written to before is faster than what is new.
    ref : ndarray, shape (R,)
        The largest logit of a query, finite.
    near_weight : ndarray, shape (R,)
        Sum of the weights of keys that are exact anyway, as exp(ref) * near_weight.
    is_row : ndarray of bool, shape (R,)
    columns : tuple of ndarray
        Of each cluster, shape (K,): its group, what squares of shares and of their deviations count for, its
        part of the keys of its group, one over its cost, and that once it is apart; and one over the cost of
        a group, shape (G,). 0 for what nobody can spend.
    groups, clusters : ndarray, shape (G, R) and (K, R)
        Written to.
    """
    n_clusters, n_queries = logit.shape
    share, of_group = np.empty((n_clusters, BLOCK), logit.dtype), np.empty((len(groups), BLOCK), logit.dtype)
    for first in range(0, n_queries, BLOCK):
        last = min(first + BLOCK, n_queries)
        _shares(logit, first, ref[first:last], near_weight[first:last], is_row[first:last], share)
        _gains(spread, first, last, columns, share, of_group, groups, clusters)


@loop
def split(bar: Any, items: Any, apart_gain: Any, left: Any) -> None:
    """Mark the groups above the bar as split, and bring the gains of their clusters up to date.

    Parameters
    ----------
    items : tuple of ndarray
        As `compiled.selection` has them, written to: a group of one cluster costs 0 and is always split; what
        is split is 0 before.
    apart_gain : ndarray, shape (K, R)
    left : ndarray, shape (R,)
        What a query may spend at most, less what it spends here.
    """
    groups, clusters, group, group_cost, count, is_split = items
    bars = np.empty(BLOCK, clusters.dtype)
    n_queries = clusters.shape[1]
    for first in range(0, n_queries, BLOCK):
        last = min(first + BLOCK, n_queries)
        bars_of_queries(bar, items, left, first, last, bars)
        _split(groups, bars, group_cost, is_split, left, first, last)
        _gains_apart(clusters, apart_gain, group, count, is_split, left, first, last)


@loop
def weigh(bar: Any, logit: Any, ref: Any, items: Any, left: Any, opened: Any) -> None:
    """Open the clusters above the bar, and weigh the others.

    Parameters
    ----------
    items : tuple of ndarray
        Clusters alone; in the place of their gains come the weights of those that are not opened, as
        exp(ref) * weight.
    opened : ndarray of bool, shape (K, R)
        Written to.
    """
    _, clusters, group, _, count, is_split = items
    n_queries = clusters.shape[1]
    bars, n_groups = np.empty(BLOCK, clusters.dtype), len(is_split)
    of_group, keys = np.empty((n_groups, BLOCK), clusters.dtype), np.empty((n_groups, BLOCK), clusters.dtype)
    for first in range(0, n_queries, BLOCK):
        last = min(first + BLOCK, n_queries)
        bars_of_queries(bar, items, left, first, last, bars)
        for k in range(len(count)):
            gain, own = clusters[k, first:last], opened[k, first:last]
            for j in range(len(own)):
                own[j] = gain[j] > bars[j]
        _far(logit, ref, opened, is_split, count, group, of_group, keys, clusters, first, last)


@loop
def _shares(logit: Any, first: int, ref: Any, near_weight: Any, is_row: Any, share: Any) -> None:
    """Shares of the clusters in the weight of all keys; 0 for a query that is no row or is not finite."""
    number, n = logit.dtype.type, len(ref)
    zero, one, least_share = number(0), number(1), number(LEAST_SHARE)
    total, per_total, below_ref = near_weight.copy(), np.empty_like(ref), np.empty_like(ref)
    for k in range(len(logit)):
        x, own = logit[k, first : first + n], share[k]
        for j in range(n):
            own[j] = exponential(x[j] - ref[j])
            total[j] += own[j]
    is_spent = np.isfinite(total) & is_row
    for j in range(n):
        positive = total[j] if total[j] > zero else one
        per_total[j] = one / positive
        below_ref[j] = number(LOG_LEAST_SHARE) + ref[j] + logarithm(positive)
    for k in range(len(logit)):
        x, own = logit[k, first : first + n], share[k]
        for j in range(n):
            below = below_ref[j] - x[j]
            floor, plain = least_share / (one + below), own[j] * per_total[j]
            found = floor if below > zero else plain
            own[j] = found if is_spent[j] else zero


@loop
def _gains(
    spread: Any, first: int, last: int, columns: Any, share: Any, of_group: Any, groups: Any, clusters: Any
) -> None:
    """As `gains`, of some queries by their shares."""
    group, of_squares, of_deviations, part, per_key, per_other, per_member = columns
    number, n = spread.dtype.type, last - first
    zero, one, least_spread = number(0), number(1), number(LEAST_SPREAD)
    for g in range(len(groups)):
        own = groups[g, first:last]
        for j in range(n):
            own[j] = of_group[g, j] = zero
    for k in range(len(spread)):
        total, own = of_group[group[k]], share[k]
        for j in range(n):
            total[j] += own[j]
    for k in range(len(spread)):
        own, total, to_split = share[k], of_group[group[k]], groups[group[k], first:last]
        apart_gain, gain = spread[k, first:last], clusters[k, first:last]
        squares, deviations, own_part = of_squares[k], of_deviations[k], part[k]
        a_key, another = per_key[k], per_other[k]
        for j in range(n):
            # The first order, where the difference has no digits left.
            first_order, second_order = apart_gain[j], exponential(apart_gain[j]) - one
            error = (second_order if second_order > first_order else first_order) + least_spread
            within = error * own[j] * own[j] * squares
            deviation = own[j] - total[j] * own_part
            between = deviation * deviation * deviations
            to_split[j] += between
            gain[j] = (within + between) * a_key
            apart_gain[j] = within * another
    for g in range(len(groups)):
        own, another = groups[g, first:last], per_member[g]
        for j in range(n):
            own[j] *= another


@loop
def _split(groups: Any, bars: Any, cost: Any, is_split: Any, left: Any, first: int, last: int) -> None:
    """Mark the groups that queries split, and take what that costs off what is left."""
    number, rest = cost.dtype.type, left[first:last]
    for g in range(len(groups)):
        gain, own, own_cost = groups[g, first:last], is_split[g, first:last], cost[g]
        is_single = own_cost == number(0)
        for j in range(len(own)):
            is_above = gain[j] > bars[j]
            rest[j] -= own_cost if is_above else number(0)
            own[j] = number(1) if is_above or is_single else number(0)


@loop
def _gains_apart(
    clusters: Any, apart_gain: Any, group: Any, count: Any, is_split: Any, left: Any, first: int, last: int
) -> None:
    """What is gained an entry once it is settled which groups are split."""
    zero, most = clusters.dtype.type(0), left[first:last]
    for k in range(len(clusters)):
        own, alone = clusters[k, first:last], apart_gain[k, first:last]
        apart, n_keys = is_split[group[k], first:last], count[k]
        for j in range(len(own)):
            gain = alone[j] if apart[j] > zero else own[j]
            own[j] = gain if n_keys - apart[j] <= most[j] else zero


@loop
def _far(
    logit: Any,
    ref: Any,
    opened: Any,
    is_split: Any,
    count: Any,
    group: Any,
    of_group: Any,
    keys: Any,
    weight: Any,
    first: int,
    last: int,
) -> None:
    """Weights of what queries did not open: within a group that is not split all keys weigh the same."""
    number, n, own_ref = weight.dtype.type, last - first, ref[first:last]
    zero, one = number(0), number(1)
    for g in range(len(keys)):
        for j in range(n):
            of_group[g, j] = keys[g, j] = zero
    for k in range(len(weight)):
        x, is_open, own = logit[k, first:last], opened[k, first:last], weight[k, first:last]
        sums, n_keys, own_count = of_group[group[k]], keys[group[k]], count[k]
        for j in range(n):
            found = exponential(x[j] - own_ref[j])
            own[j] = zero if is_open[j] else found
            sums[j] += own[j]
            visible = own_count if x[j] > -np.inf else zero
            n_keys[j] += zero if is_open[j] else visible
    for g in range(len(keys)):
        for j in range(n):
            of_group[g, j] /= keys[g, j] if keys[g, j] > one else one
    for k in range(len(weight)):
        x, is_open, own = logit[k, first:last], opened[k, first:last], weight[k, first:last]
        mean, apart, own_count = of_group[group[k]], is_split[group[k], first:last], count[k]
        for j in range(n):
            together = mean[j] * own_count
            hidden = is_open[j] or x[j] == -np.inf
            together = zero if hidden else together
            own[j] = own[j] if apart[j] > zero else together
