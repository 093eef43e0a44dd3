"""What a chunk of queries opens and splits, one head at a time, in compiled loops.

The formulas are those of `routing.view` and `routing.selection`, whose choices these are but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import numpy as xp

from scatterbrain_core.normalization import Partial
from scatterbrain_core.routing.spending import Allowance
from scatterbrain_core.routing.view import Choice, View, distances

Found = tuple[Choice, tuple[Any, Any]]


@dataclass(frozen=True)
class Weighted(Choice):
    """A choice with the weights that it leaves.

    Attributes
    ----------
    ref : ndarray, shape (H, R)
    weight : ndarray, shape (H, K, R)
        Of all keys of a cluster that is not opened, as exp(ref) * weight.
    """

    ref: Any
    weight: Any


def choose(view: View, near: Partial, is_row: Any, allowance: Allowance) -> Found:
    """As `routing.view.choose`; a query whose weights are not finite refines nothing."""
    v: Any = view
    logit, spread = (np.ascontiguousarray(np.swapaxes(x, 1, 2)) for x in (v.logit, v.spread))
    near_ref: Any = near.ref
    ref = np.maximum(near_ref, logit.max(axis=1))
    ref[ref == -np.inf] = 0
    near_weight = near.acc[..., -1] * np.exp(near_ref - ref)
    is_row = np.ones(ref.shape, bool) if is_row is None else is_row
    bars = (np.full(len(ref), np.nan),) * 2 if allowance.bars is None else allowance.bars
    limits = np.stack([np.ravel(x) for x in (allowance.mean, allowance.most, *bars)], axis=1).astype(float)
    found = [
        _of_head(logit[h], spread[h], ref[h], near_weight[h], is_row[h], columns, own_limits)
        for h, (columns, own_limits) in enumerate(zip(_columns(v), limits.tolist(), strict=True))
    ]
    opened, apart, weight, at_mean = (_stack(x) for x in zip(*found, strict=True))
    first, second = at_mean.T.astype(ref.dtype)[..., None, None]
    opened, apart = (np.swapaxes(x, 1, 2) for x in (opened, apart))
    return Weighted(opened, apart, ref, weight), (first, second)


def _of_head(
    logit: Any, spread: Any, ref: Any, near_weight: Any, is_row: Any, columns: _Columns, limits: list[float]
) -> tuple[Any, Any, Any, Any]:
    """What is opened and apart, the weights that are left, and the bars at which the mean is spent."""
    from scatterbrain_backends.numpy_.compiled.choosing import gains, split, weigh
    from scatterbrain_backends.numpy_.compiled.selection import bar_at_mean

    mean, most, *bars = limits
    is_given, number = not np.isnan(bars[0]), logit.dtype.type
    count, group, group_cost = columns.count, columns.group, columns.group_cost
    n_queries, n_groups = logit.shape[1], len(group_cost)
    groups, clusters = (np.empty((n, n_queries), logit.dtype) for n in (n_groups, len(logit)))
    gains(logit, spread, ref, near_weight, is_row, columns.within(most), groups, clusters)
    is_split, left = np.zeros_like(groups), np.full(n_queries, most, logit.dtype)
    items = (groups, clusters, group, group_cost, count, is_split)
    first = bar_at_mean(items, mean, is_given, 0.0)
    split(number(bars[0] if is_given else first), items, spread, left)
    # Which groups are split is settled.
    items, mean = (
        (groups[:0], clusters, group, group_cost[:0], count, is_split),
        mean - (most - float(left.mean())),
    )
    second = bar_at_mean(items, mean, is_given, 0.0)
    opened, apart = (np.empty(logit.shape, bool) for _ in range(2))
    weigh(number(bars[1] if is_given else second), logit, ref, items, left, opened)
    np.take(is_split.astype(bool), group, axis=0, out=apart, mode="clip")
    return opened, apart, clusters, (first, second)


def _stack(arrays: tuple[Any, ...]) -> Any:
    return np.asarray(arrays[0])[None] if len(arrays) == 1 else np.stack(arrays)


def far_partial(view: View, choice: Weighted) -> Partial:
    """As `routing.view.far_partial`, with the reference of all clusters."""
    value: Any = view.value
    values = np.concatenate([value, np.ones((*value.shape[:2], 1), value.dtype)], axis=2)
    acc = np.swapaxes(choice.weight, 1, 2) @ values
    # Where an opened cluster alone has weight, its estimate may exceed what its keys have: nothing is left.
    return Partial(np.where(acc[..., -1] != 0, choice.ref, -np.inf), acc)


@dataclass(frozen=True)
class _Columns:
    """What is known of the K clusters of a head, and of its G groups, whatever the query.

    `group` is the number of a cluster's group, `of_squares` and `of_deviations` what squares of shares and of
    their deviations count for, `part` a cluster's part of the keys of its group, `group_cost` the clusters of
    a group but one.
    """

    count: Any
    group: Any
    of_squares: Any
    of_deviations: Any
    part: Any
    group_cost: Any

    def within(self, most: float) -> tuple[Any, ...]:
        """Columns of `compiled.choosing.gains` for queries that may spend so much."""
        costs = (self.count, np.maximum(self.count - 1, 0), self.group_cost)
        limits = (most, np.inf, most)
        per_cost = (
            np.where((cost > 0) & (cost <= limit), 1 / np.maximum(cost, 1), 0).astype(cost.dtype)
            for cost, limit in zip(costs, limits, strict=True)
        )
        return (self.group, self.of_squares, self.of_deviations, self.part, *per_cost)


def _columns(view: Any) -> list[_Columns]:
    distance, part = distances(xp, view)
    found = []
    for head, (count, one_hot) in enumerate(zip(view.count, view.group, strict=True)):
        members = (count > 0).astype(count.dtype) @ one_hot
        of_squares = view.width[head] / np.maximum(count, 1)
        group, group_cost = one_hot.argmax(axis=1), np.maximum(members - 1, 0)
        found.append(_Columns(count, group, of_squares, distance[head], part[head], group_cost))
    return found
