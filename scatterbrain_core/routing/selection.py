"""Which items a row takes: those that gain most an entry, within what rows share and what one may spend."""

from __future__ import annotations

from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.tiles import integers, where_true

# So many rows of a chunk are enough to tell at which gain the next one should stop.
SAMPLED_ROWS = 128
# In units of rounding: gains no further above a bar equal it. Two clusters of as many keys, alone in a group,
# gain the same by a split but for rounding, which takes both or neither then, in every library.
TIES = 16
# Costs are whole: with part of one more, rounding does not decide whether a sum that equals a limit fits.
PART_OF_ENTRY = 0.25


@dataclass(frozen=True)
class Curve:
    """What rows spend if they take every item above a gain.

    Attributes
    ----------
    gain : array, shape (H, n)
        Of each item, the greatest first.
    spent : array, shape (H, n)
        Cost of the items so far, of all rows.
    n_rows : int
    """

    gain: Array
    spent: Array
    n_rows: int

    def bar(self, xp: Namespace, limit: Array) -> Array:
        """The greatest gain that no longer fits limits of a row, (H, 1, 1); 0 where all fit."""
        n = self.gain.shape[-1]
        fits = self.spent <= self.n_rows * limit[..., 0] + PART_OF_ENTRY
        kept = xp.sum(xp.astype(fits, integers(xp, 1, fits).dtype), axis=-1)[..., None]
        gain = xp.take_along_axis(self.gain, xp.minimum(kept, n - 1), axis=-1)
        return xp.where(kept < n, gain, 0.0)[..., None]


def curve_of(xp: Namespace, gain: Array, cost: Array) -> Curve:
    """Of rows (H, R, n) together."""
    flat = (gain.shape[0], -1)
    flat_gain, flat_cost = xp.reshape(gain, flat), xp.reshape(cost, flat)
    order = xp.argsort(flat_gain, axis=-1, descending=True, stable=False)
    spent = xp.cumulative_sum(xp.take_along_axis(flat_cost, order, axis=-1), axis=-1)
    return Curve(xp.take_along_axis(flat_gain, order, axis=-1), spent, gain.shape[1])


def select(
    xp: Namespace, gain: Array, cost: Array, mean: Array, most: Array, bar: Array | None
) -> tuple[Array, Array]:
    """Items of a gain above the bar, the greatest first where a row would spend more than its most.

    Parameters
    ----------
    gain : array, shape (H, R, n)
        Of each item an entry, not negative.
    cost : array, shape (H, R, n) or (H, 1, n)
        Entries.
    mean : array, shape (H, 1, 1)
        Entries of a row, on average.
    most : array, shape (H, R, 1) or (H, 1, 1)
        Entries of any one row.
    bar : array, shape (H, 1, 1), or None
        None for that at which these rows spend the mean.

    Returns
    -------
    chosen : array of bool, shape (H, R, n)
    at_mean : array, shape (H, 1, 1)
        The bar at which these rows spend the mean, as a sample of them has it where `bar` is given.
    """
    cost = xp.broadcast_to(cost, gain.shape)
    gain = gain * xp.astype(cost <= most, gain.dtype)
    stride = 1 if bar is None else max(1, gain.shape[1] // SAMPLED_ROWS)
    at_mean = curve_of(xp, gain[:, ::stride, :], cost[:, ::stride, :]).bar(xp, mean)
    chosen = _is_above(xp, gain, at_mean if bar is None else bar)
    over = xp.sum(xp.astype(chosen, cost.dtype) * cost, axis=-1) > most[..., 0] + PART_OF_ENTRY
    if bool(xp.any(over)):
        chosen = chosen & _is_above(xp, gain, _bars_of_rows(xp, gain, cost, most, over))
    return chosen, at_mean


def _is_above(xp: Namespace, gain: Array, bar: Array) -> Array:
    return gain > bar * (1 + TIES * float(xp.finfo(gain.dtype).eps))


def _bars_of_rows(xp: Namespace, gain: Array, cost: Array, most: Array, over: Array) -> Array:
    """What each row that is over its most may not gain less than, shape (H, R, 1); 0 for the other rows."""
    row, number = where_true(xp, xp.reshape(over, (-1,)))
    gains, costs = (xp.take(xp.reshape(x, (-1, 1, x.shape[-1])), row, axis=0) for x in (gain, cost))
    limit = xp.take(xp.reshape(xp.broadcast_to(most, (*over.shape, 1)), (-1, 1, 1)), row, axis=0)
    bars = curve_of(xp, gains, costs).bar(xp, limit)[:, 0, 0]
    bars = xp.take(bars, xp.maximum(number - 1, xp.zeros_like(number)))
    return xp.where(over, xp.reshape(bars, over.shape), 0.0)[..., None]
