"""What the queries of a head open and split, and the weights of what they do not: `routing.view` in loops.

Loops without branches and indices of others are made into vectors; those with an index stand by themselves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.exponential import exponential
from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.selection import bar_of_row
from scatterbrain_core.routing.view import LEAST_SHARE, LEAST_SPREAD

LOG_LEAST_SHARE = math.log(LEAST_SHARE)


@loop
def gains(
    logit: Any, spread: Any, ref: Any, near_weight: Any, is_row: Any, columns: Any, groups: Any, clusters: Any
) -> None:
    """What the R queries of a head gain an entry by splitting each group and by opening each cluster.

    Parameters
    ----------
    logit : ndarray, shape (R, K)
    spread : ndarray, shape (R, K)
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
    groups, clusters : ndarray, shape (R, G) and (R, K)
        Written to.
    """
    for r in range(len(logit)):
        _gains(
            logit[r], spread[r], ref[r], near_weight[r], is_row[r], columns, groups[r], clusters[r], spread[r]
        )


@loop
def split(
    bar: Any,
    groups: Any,
    clusters: Any,
    apart_gain: Any,
    group: Any,
    group_cost: Any,
    count: Any,
    most: Any,
    apart: Any,
    left: Any,
) -> None:
    """Mark the clusters of groups above the bar as apart, and bring the gains of clusters up to date.

    Parameters
    ----------
    group_cost : ndarray, shape (G,)
        0 for a group of one cluster, which is always apart.
    apart : ndarray, shape (R, K)
        Zeros, which become 1.0 where a cluster is apart.
    left : ndarray, shape (R,)
        Written to: what is left of the most that a query may spend.
    """
    for r in range(len(groups)):
        own = bar_of_row(bar, groups[r], clusters[r], group_cost, count, apart[r], most)
        left[r] = most - _split(groups[r], own, group, group_cost, apart[r])
        _gains_apart(clusters[r], apart_gain[r], count, apart[r], left[r])


@loop
def weigh(
    bar: Any,
    logit: Any,
    ref: Any,
    clusters: Any,
    group: Any,
    no_group: Any,
    count: Any,
    apart: Any,
    left: Any,
    opened: Any,
    of_group: Any,
) -> None:
    """Open the clusters above the bar, and weigh the others.

    Parameters
    ----------
    clusters : ndarray, shape (R, K)
        Gains, in whose place come the weights of clusters that are not opened, as exp(ref) * weight.
    no_group : ndarray, shape (0,)
    opened : ndarray of bool, shape (R, K)
        Written to.
    of_group : ndarray, shape (2, G)
        A temporary.
    """
    for r in range(len(clusters)):
        own = bar_of_row(bar, no_group, clusters[r], no_group, count, apart[r], left[r])
        for k in range(len(count)):
            opened[r, k] = clusters[r, k] > own
        _far(logit[r], ref[r], opened[r], apart[r], count, group, of_group[0], of_group[1], clusters[r])


@loop
def _gains(
    logit: Any,
    spread: Any,
    ref: Any,
    near_weight: Any,
    is_row: Any,
    columns: Any,
    groups: Any,
    clusters: Any,
    apart_gain: Any,
) -> None:
    """As `gains`, of one query."""
    group, of_squares, of_deviations, part, per_key, per_other, per_member = columns
    number = logit.dtype.type
    zero, one, least_spread = number(0), number(1), number(LEAST_SPREAD)
    share, of_group = np.empty_like(logit), np.zeros_like(groups)
    is_spent = _shares(logit, ref, near_weight, share) and is_row
    for k in range(len(logit)):
        share[k] = share[k] if is_spent else zero
    for k in range(len(logit)):
        of_group[group[k]] += share[k]
    for k in range(len(logit)):
        # The first order, where the difference has no digits left.
        first_order, second_order = spread[k], exponential(spread[k]) - one
        error = (second_order if second_order > first_order else first_order) + least_spread
        apart_gain[k] = error * share[k] * share[k] * of_squares[k]
    for k in range(len(logit)):
        deviation = share[k] - of_group[group[k]] * part[k]
        share[k] = deviation * deviation * of_deviations[k]
    for g in range(len(groups)):
        groups[g] = zero
    for k in range(len(logit)):
        groups[group[k]] += share[k]
    for g in range(len(groups)):
        groups[g] *= per_member[g]
    for k in range(len(logit)):
        clusters[k] = (apart_gain[k] + share[k]) * per_key[k]
        apart_gain[k] *= per_other[k]


@loop
def _shares(logit: Any, ref: Any, near_weight: Any, share: Any) -> bool:
    """Shares of the clusters in the weight of all keys; whether they are finite."""
    number = logit.dtype.type
    zero, one, least_share = number(0), number(1), number(LEAST_SHARE)
    total = near_weight
    for k in range(len(logit)):
        share[k] = exponential(logit[k] - ref)
        total += share[k]
    total = total if total != zero else one
    per_total, below_ref = one / total, number(LOG_LEAST_SHARE) + ref + np.log(total)
    for k in range(len(logit)):
        below = below_ref - logit[k]
        floor, own = least_share / (one + below), share[k] * per_total
        share[k] = floor if below > zero else own
    return np.isfinite(total)


@loop
def _split(groups: Any, bar: Any, group: Any, cost: Any, apart: Any) -> Any:
    """Mark the clusters that a query sees apart from their group; what that costs."""
    number = cost.dtype.type
    spent, split = number(0), np.empty_like(cost)
    for g in range(len(groups)):
        spent += cost[g] if groups[g] > bar else number(0)
        split[g] = number(1) if groups[g] > bar or cost[g] == number(0) else number(0)
    for k in range(len(apart)):
        apart[k] = split[group[k]]
    return spent


@loop
def _gains_apart(clusters: Any, apart_gain: Any, count: Any, apart: Any, most: Any) -> None:
    """What is gained an entry once it is settled which groups are split."""
    zero = clusters.dtype.type(0)
    for k in range(len(clusters)):
        alone, whole, cost = apart_gain[k], clusters[k], count[k] - apart[k]
        gain = alone if apart[k] > zero else whole
        clusters[k] = gain if cost <= most else zero


@loop
def _far(
    logit: Any,
    ref: Any,
    opened: Any,
    apart: Any,
    count: Any,
    group: Any,
    of_group: Any,
    keys: Any,
    weight: Any,
) -> None:
    """Weights of what a query did not open: within a group that is not split all keys weigh the same."""
    number = weight.dtype.type
    zero, one = number(0), number(1)
    keys_of, weight_of = np.empty_like(weight), np.empty_like(weight)
    for g in range(len(keys)):
        of_group[g] = keys[g] = zero
    for k in range(len(weight)):
        visible = one if logit[k] > -np.inf else zero
        closed, together = zero if opened[k] else visible, one - apart[k]
        keys_of[k] = closed * together * count[k]
        own = closed * exponential(logit[k] - ref)
        weight_of[k] = together * own
        weight[k] = apart[k] * own
    for k in range(len(weight)):
        of_group[group[k]] += weight_of[k]
        keys[group[k]] += keys_of[k]
    for g in range(len(keys)):
        of_group[g] /= keys[g] if keys[g] > one else one
    for k in range(len(weight)):
        weight[k] += of_group[group[k]] * keys_of[k]
