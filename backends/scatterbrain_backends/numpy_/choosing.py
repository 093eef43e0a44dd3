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
        _of_head((logit[h], spread[h], ref[h], near_weight[h], is_row[h]), known, own_limits)
        for h, (known, own_limits) in enumerate(zip(_known(v), limits, strict=True))
    ]
    opened, apart, weight, at_mean = (_stack(x) for x in zip(*found, strict=True))
    first, second = at_mean.T.astype(ref.dtype)[..., None, None]
    opened, apart = (np.swapaxes(x, 1, 2) for x in (opened, apart))
    return Weighted(opened, apart, ref, weight), (first, second)


def _of_head(seen: tuple[Any, ...], known: tuple[Any, ...], limits: Any) -> tuple[Any, Any, Any, Any]:
    """What is opened and apart, the weights that are left, and the bars at which the mean is spent."""
    from scatterbrain_backends.numpy_.compiled import choosing as compiled

    (mean, most), given, at_mean = limits[:2].tolist(), limits[2:], np.zeros(2)
    opened, is_split, weight = compiled.choose(seen, known, (mean, most), given, at_mean)
    return opened, is_split.astype(bool).take(known[1], axis=0), weight, at_mean


def _stack(arrays: tuple[Any, ...]) -> Any:
    return np.asarray(arrays[0])[None] if len(arrays) == 1 else np.stack(arrays)


def far_partial(view: View, choice: Weighted) -> Partial:
    """As `routing.view.far_partial`, with the reference of all clusters."""
    value: Any = view.value
    values = np.concatenate([value, np.ones((*value.shape[:2], 1), value.dtype)], axis=2)
    acc = np.swapaxes(choice.weight, 1, 2) @ values
    # Where an opened cluster alone has weight, its estimate may exceed what its keys have: nothing is left.
    return Partial(np.where(acc[..., -1] != 0, choice.ref, -np.inf), acc)


def _known(view: Any) -> list[tuple[Any, ...]]:
    """What is known of the clusters of each head and of their groups, as `compiled.choosing` has it."""
    distance, part = distances(xp, view)
    found = []
    for head, (count, one_hot) in enumerate(zip(view.count, view.group, strict=True)):
        members = (count > 0).astype(count.dtype) @ one_hot
        of_squares = view.width[head] / np.maximum(count, 1)
        group, group_cost = one_hot.argmax(axis=1), np.maximum(members - 1, 0)
        found.append((count, group, of_squares, distance[head], part[head], group_cost))
    return found
