"""What a chunk of queries opens and splits: `routing.view` and `routing.selection` in few passes, in place.

The formulas are those of the array-API code, whose choices these are but for rounding. One head at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import numpy as xp

from scatterbrain_core.normalization import Partial
from scatterbrain_core.routing.selection import CORRECTIONS, PART_OF_ENTRY, ROOM, SAMPLED_ROWS, curve_of
from scatterbrain_core.routing.spending import Allowance
from scatterbrain_core.routing.view import LEAST_SHARE, LEAST_SPREAD, Choice, View, distances

Found = tuple[Choice, tuple[Any, Any]]

# Gains are counted by their leading digits: sign, exponent and seven bits behind it.
DROPPED_BITS = 16


@dataclass(frozen=True)
class Weighted(Choice):
    """A choice with what it was made from.

    Attributes
    ----------
    ref : ndarray, shape (H, R)
    weight : ndarray, shape (H, R, K)
        exp(view.logit - ref).
    apart : ndarray, shape (H, R, K)
        1.0 where a cluster is seen apart from its group.
    columns : list of _Columns
        Of each head.
    """

    ref: Any
    weight: Any
    apart: Any
    columns: list[_Columns]


def choose(view: View, near: Partial, is_row: Any, allowance: Allowance) -> Found:
    """As `routing.view.choose`; a query whose weights are not finite refines nothing."""
    v: Any = view
    parts = []
    every = _columns(v)
    for head, columns in enumerate(every):
        weights = _weights(v.logit[head], near.ref[head], near.acc[head, :, -1])
        rows = None if is_row is None else is_row[head]
        parts.append(
            _choose(columns, v.logit[head], v.spread[head], weights, rows, _Limits.of(allowance, head))
        )
    opened, apart, first, second = (np.stack(x) for x in zip(*(part[:4] for part in parts), strict=True))
    ref, weight = (np.stack([getattr(part[4], name) for part in parts]) for name in ("ref", "weight"))
    bars = (first.reshape(-1, 1, 1).astype(ref.dtype), second.reshape(-1, 1, 1).astype(ref.dtype))
    return Weighted(opened, apart > 0, ref, weight, apart, every), bars


def far_partial(view: View, choice: Weighted) -> Partial:
    """As `routing.view.far_partial`, with the reference of all clusters."""
    v: Any = view
    opened: Any = choice.opened
    parts = []
    for head, columns in enumerate(choice.columns):
        kept = 1 - opened[head].astype(choice.weight.dtype)
        kept *= v.logit[head] > -np.inf
        weight = choice.weight[head] * kept
        kept -= kept * choice.apart[head]  # what is seen with its group
        keys = (kept * columns.count) @ columns.one_hot
        of_key = (weight * kept) @ columns.one_hot
        of_key /= np.maximum(keys, 1)
        weight *= choice.apart[head]
        kept *= columns.count
        kept *= of_key.take(columns.group, axis=1)
        weight += kept
        values = np.concatenate([v.value[head], np.ones_like(columns.count)[:, None]], axis=1)
        parts.append(weight @ values)
    return Partial(choice.ref, np.stack(parts))


@dataclass(frozen=True)
class _Columns:
    """What is known of the K clusters of a head, whatever the query.

    `group` is the number of a cluster's group, `within` and `between` what squares of shares and of their
    deviations count for, `part` a cluster's part of the keys of its group, `members` the clusters of a group.
    """

    count: Any
    group: Any
    one_hot: Any
    within: Any
    between: Any
    part: Any
    members: Any


def _columns(view: Any) -> list[_Columns]:
    distance, part = distances(xp, view)
    found = []
    for head, (count, one_hot) in enumerate(zip(view.count, view.group, strict=True)):
        members = (count > 0).astype(count.dtype) @ one_hot
        within = view.width[head] / np.maximum(count, 1)
        group = one_hot.argmax(axis=1)
        found.append(_Columns(count, group, one_hot, within, distance[head], part[head], members))
    return found


@dataclass(frozen=True)
class _Limits:
    """What the queries of a head may add: the mean, the most, and the bars that are given or None."""

    mean: float
    most: float
    bars: tuple[float, float] | None

    @classmethod
    def of(cls, allowance: Allowance, head: int) -> _Limits:
        mean, most = (float(x[head, 0, 0]) for x in (allowance.mean, allowance.most))
        bars = allowance.bars
        return cls(
            mean, most, None if bars is None else (float(bars[0][head, 0, 0]), float(bars[1][head, 0, 0]))
        )


@dataclass(frozen=True)
class _Weights:
    """Weights (R, K) of whole clusters as exp(ref) * weight, and the sum of all weights of a row."""

    ref: Any
    weight: Any
    total: Any


def _weights(logit: Any, near_ref: Any, near_weight: Any) -> _Weights:
    ref = np.maximum(near_ref, logit.max(axis=1))
    ref[ref == -np.inf] = 0
    weight = logit - ref[:, None]
    np.exp(weight, out=weight)
    total = near_weight * np.exp(near_ref - ref) + weight.sum(axis=1)
    total[total <= 0] = 1
    return _Weights(ref, weight, total)


def _choose(
    columns: _Columns, logit: Any, spread: Any, weights: _Weights, is_row: Any, limits: _Limits
) -> tuple[Any, Any, float, float, _Weights]:
    """Clusters opened and seen apart, both bars, and the weights."""
    finite = np.isfinite(weights.total)
    counts = finite if is_row is None else finite & is_row
    per_weight = np.where(counts, 1 / weights.total, 0).astype(weights.weight.dtype)
    share = _share(weights, logit, per_weight)
    within, between = _errors(columns, spread, share)
    if not finite.all():
        within[~finite] = between[~finite] = 0
    count, members = columns.count, columns.members
    several = members > 1
    per_member = np.where(several, 1 / np.where(several, members - 1, 1), 0).astype(share.dtype)
    per_key = np.where(count > 0, 1 / np.where(count > 0, count, 1), 0).astype(share.dtype)
    split_cost = np.maximum(members - 1, 0)
    to_split = (between @ columns.one_hot) * (per_member * (split_cost <= limits.most))
    to_open = within + between
    to_open *= per_key * (count <= limits.most)
    bars = limits.bars or (None, None)
    first = _Selection([to_split, to_open], [split_cost, count], limits.mean, limits.most, bars[0])
    is_split = first.chosen()[0] | ~several
    spent = is_split @ split_cost
    apart = is_split.astype(share.dtype).take(columns.group, axis=1)

    # Which groups are split is settled: what the clusters gain and cost follows from it.
    most = limits.most - spent
    cost = count - apart
    cost *= count > 0
    to_open = _gains_apart(within, between, apart, count, per_key)
    to_open *= cost <= most[:, None]
    second = _Selection([to_open], [cost], limits.mean - float(spent.mean()), most, bars[1])
    (opened,) = second.chosen()
    return opened, apart, first.at_mean, second.at_mean, weights


def _share(weights: _Weights, logit: Any, per_weight: Any) -> Any:
    """Share of each cluster, those of rows that count for nothing 0."""
    share = weights.weight * per_weight[:, None]
    if share.min(initial=LEAST_SHARE) >= LEAST_SHARE:
        return share
    below = (math.log(LEAST_SHARE) + weights.ref + np.log(weights.total))[:, None] - logit
    small = (below > 0) & (per_weight > 0)[:, None]
    below += 1
    np.divide(LEAST_SHARE, below, out=share, where=small)
    return share


def _errors(columns: _Columns, spread: Any, share: Any) -> tuple[Any, Any]:
    """What closed clusters, and groups that are not split, leave in error: within them and between them."""
    within = np.exp(spread)
    within -= 1
    np.maximum(within, spread, out=within)  # the first order, where the difference has no digits left
    within += LEAST_SPREAD
    within *= share
    within *= share
    within *= columns.within
    between = (share @ columns.one_hot).take(columns.group, axis=1)
    between *= columns.part
    np.subtract(share, between, out=between)
    between *= between
    between *= columns.between
    return within, between


def _gains_apart(within: Any, between: Any, apart: Any, count: Any, per_key: Any) -> Any:
    """Gains an entry of clusters: those apart cost a key less, and gain nothing between."""
    several = count > 1
    per_other_key = np.where(several, 1 / np.where(several, count - 1, 1), 0).astype(within.dtype)
    gain = apart * (per_other_key - per_key)
    gain += per_key
    gain *= within
    between *= per_key
    between *= 1 - apart
    gain += between
    return gain


class _Selection:
    """Rows of items, each with a gain and a cost an item or an item and row, in one array or several.

    `at_mean` is the bar at which the rows spend the mean, as `selection.select` has it: as a sample of them
    does where a bar is given.
    """

    def __init__(self, gains: list[Any], costs: list[Any], mean: float, most: Any, bar: float | None) -> None:
        self.gains, self.costs, self.most = gains, costs, most
        self.tried: tuple[float, list[Any], Any] | None = None
        n_rows = len(gains[0])
        stride = max(1, n_rows // SAMPLED_ROWS)
        sample = [gain[::stride] for gain in gains]
        prices = [
            np.broadcast_to(cost if cost.ndim == 1 else cost[::stride], gain.shape)
            for gain, cost in zip(sample, costs, strict=True)
        ]
        curve = _Curve(
            np.concatenate([x.ravel() for x in sample]),
            np.concatenate([x.ravel() for x in prices]),
            len(sample[0]),
        )
        is_sample = bar is None and stride > 1
        self.at_mean = self._corrected(curve, mean) if is_sample else curve.bar(mean)
        self.bar = self.at_mean if bar is None else bar

    def _corrected(self, curve: _Curve, mean: float) -> float:
        """The least bar tried at which all rows, not those of the curve alone, spend the mean."""
        limit, bar = mean, max(float(gain.max(initial=0)) for gain in self.gains)
        for _ in range(CORRECTIONS):
            tried = curve.bar(limit)
            spent = float(self._try(tried)[1].mean())
            if spent <= ROOM * mean and tried < bar:
                bar = tried
            limit = limit * mean / (spent if spent > 0 else 1.0)
        return bar

    def _try(self, bar: float) -> tuple[list[Any], Any]:
        """What gains more than a bar, and what each row spends on it."""
        if self.tried is None or self.tried[0] != bar:
            above = [gain > bar for gain in self.gains]
            spent = sum(_spent(x, cost) for x, cost in zip(above, self.costs, strict=True))
            self.tried = bar, above, spent
        return self.tried[1:]

    def chosen(self) -> list[Any]:
        """What gains more than the bar, less the least gains where a row would spend more than its most."""
        above, spent = self._try(self.bar)
        over = np.flatnonzero(spent > self.most + PART_OF_ENTRY)
        if len(over):
            bars = self._bars_of_rows(over)
            for x, gain in zip(above, self.gains, strict=True):
                x[over] &= gain[over] > bars
        return above

    def _bars_of_rows(self, rows: Any) -> Any:
        gain = np.concatenate([x[rows] for x in self.gains], axis=1)
        prices = [x if x.ndim == 1 else x[rows] for x in self.costs]
        shapes = [(len(rows), x.shape[1]) for x in self.gains]
        cost = np.concatenate([np.broadcast_to(*x) for x in zip(prices, shapes, strict=True)], axis=1)
        most = np.broadcast_to(self.most, len(self.gains[0]))[rows]
        curve: Any = curve_of(xp, gain[:, None, :], cost[:, None, :])
        return curve.bar(xp, most[:, None, None])[:, 0]


def _spent(above: Any, cost: Any) -> Any:
    chosen = above.astype(cost.dtype)
    return chosen @ cost if cost.ndim == 1 else np.vecdot(chosen, cost)


class _Curve:
    """What rows spend if they take every item above a gain: `selection.Curve`, counted by leading digits."""

    def __init__(self, gain: Any, cost: Any, n_rows: int) -> None:
        there = np.flatnonzero(gain > 0)
        self.gain, self.cost, self.n_rows = gain[there], cost[there], n_rows
        with np.errstate(over="ignore", under="ignore"):
            self.digits = self.gain.astype(np.float32).view(np.int32) >> DROPPED_BITS
        spent = np.bincount(self.digits, self.cost, minlength=1)
        self.up_to = np.cumsum(spent[::-1])  # from the greatest gains on

    def bar(self, limit: float) -> float:
        """The greatest gain that no longer fits a limit; 0 where all fit."""
        if not len(self.gain):
            return 0.0
        room = limit * self.n_rows + PART_OF_ENTRY
        place = int(np.searchsorted(self.up_to, room, side="right"))
        if place == len(self.up_to):
            return 0.0
        digit = len(self.up_to) - 1 - place
        members = np.flatnonzero(self.digits == digit)
        members = members[np.argsort(self.gain[members])[::-1]]
        before = self.up_to[place - 1] if place else 0.0
        kept = int(
            np.searchsorted(before + np.cumsum(self.cost[members], dtype=np.float64), room, side="right")
        )
        return float(self.gain[members[min(kept, len(members) - 1)]])
