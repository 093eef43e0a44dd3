"""What a chunk of queries sees of the clusters, and which of them it refines: the choice of the support."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, finite
from scatterbrain_core.routing.selection import select
from scatterbrain_core.routing.spending import Allowance

# The Gaussian second order of a cluster's logits is trusted up to here.
MOST_SPREAD = 10.0
# The least spread lets clusters whose logits are all equal still be ordered by their weight.
LEAST_SPREAD = 1e-9
# Below it a share counts for the more the greater its logarithm: its square would be lost to underflow.
# Shares are of estimates, which may be wrong by far where logits are large: what the budget leaves goes to
# those clusters too.
LEAST_SHARE = 1e-10


@dataclass(frozen=True)
class View:
    """K clusters in G groups as a chunk of R queries sees them.

    Attributes
    ----------
    logit : array, shape (H, R, K)
        Log of the weight of a whole cluster, to second order; -inf where it may not be seen.
    spread : array, shape (H, R, K)
        Variance of the logits within a cluster, at most MOST_SPREAD.
    count : array, shape (H, K)
    value : array, shape (H, K, Dv)
    mean : array, shape (H, K, D)
        Mean of the keys.
    width : array, shape (H, K)
        Mean squared distance of the keys from their mean, bounded.
    group : array, shape (H, K, G)
        1.0 where a cluster is in a group.
    start : array of int, shape (H, K)
        Slot of a cluster's first key.
    """

    logit: Array
    spread: Array
    count: Array
    value: Array
    mean: Array
    width: Array
    group: Array
    start: Array

    def constant(self, backend: Backend) -> View:
        """The same without a gradient: what is chosen from it has none."""
        return View(*(backend.stop_gradient(getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Choice:
    """How a chunk of queries sees its clusters.

    Attributes
    ----------
    opened : array of bool, shape (H, R, K)
        All keys of the cluster are exact.
    split : array of bool, shape (H, R, K)
        The cluster is seen apart from its group.
    """

    opened: Array
    split: Array


def bounded(xp: Namespace, squares: Array) -> Array:
    """Squared distances, but for those so large that products of them would overflow."""
    return xp.minimum(squares, xp.full_like(squares, math.sqrt(float(xp.finfo(squares.dtype).max))))


def cluster_logits(
    backend: Backend, query: Array, axes: Array, mean: Array, variance: Array, count: Array
) -> tuple[Array, Array]:
    """Logits of whole clusters (H, R, K) to second order, and the variance of the logits within.

    Parameters
    ----------
    query : array, shape (H, R, D)
    axes : array, shape (H, D, D)
    mean, variance : array, shape (H, K, D)
        Of the keys of a cluster; the variance along the columns of `axes`.
    count : array, shape (H, K)
    """
    xp = backend.xp

    def generic() -> tuple[Array, Array]:
        spread = spread_of(backend, xp.matmul(query, axes), variance)
        return second_order(xp, xp.matmul(query, xp.matrix_transpose(mean)), spread, count), spread

    return backend.cluster_logits(query, axes, mean, variance, count, generic)


def spread_of(backend: Backend, along: Array, variance: Array) -> Array:
    """Variance, at most MOST_SPREAD, of the logits of queries (..., R, D) in clusters (..., K, D).

    Both are given along the same axes. In units of the largest variance of a cluster nothing overflows.
    """
    xp = backend.xp
    unit = xp.max(backend.stop_gradient(variance), axis=-1)
    least = MOST_SPREAD * float(xp.finfo(unit.dtype).smallest_normal)
    unit = xp.maximum(unit, xp.full_like(unit, least))
    in_units = xp.matmul(along * along, xp.matrix_transpose(variance / unit[..., None]))
    unit = unit[..., None, :]
    return xp.minimum(in_units, MOST_SPREAD / unit) * unit


def second_order(xp: Namespace, mean: Array, spread: Array, count: Array) -> Array:
    r"""Log of :math:`\sum_{j\in c} e^{q\cdot k_j}` for logits of a cluster's mean and variance."""
    there = count > 0
    size = xp.log(xp.where(there, count, 1.0))[:, None, :]
    logit = mean + 0.5 * spread + size
    return xp.where(there[:, None, :], logit, -math.inf)


def choose(
    backend: Backend, view: View, near: Partial, is_row: Array | None, allowance: Allowance
) -> tuple[Choice, tuple[Array, Array]]:
    r"""The clusters and groups that each query refines, those first that gain most an entry.

    The squared error that a cluster seen as one key leaves in the output is about
    :math:`p^2 (e^{\sigma^2} - 1)\, \mathrm{Var}_c(v) / n`, with p its share of all weight and σ² the variance
    of its logits; that of a group seen as one value, :math:`\sum_c (p_c - \bar p_c)^2 |v_c - \bar v|^2`. The
    distances of the keys stand for those of the values, so that the weights do not depend on the values.

    Parameters
    ----------
    near : Partial
        `ref` of shape (H, R), on the keys that are exact anyway.
    is_row : array of bool, shape (H, R), or None
        False for a query that is hidden, and refines nothing.

    Returns
    -------
    Choice
    bars : tuple of array, shape (H, 1, 1)
        Gains at which these queries spend the mean.
    """
    xp = backend.xp
    share = _share(backend, view, near)
    if is_row is not None:
        share = xp.where(is_row[..., None], share, 0.0)
    count, group = view.count[:, None, :], view.group
    within, between = _error_within(xp, view, share), _error_between(xp, view, share)
    if is_row is not None:  # the spread of a query that is not finite is not
        within = xp.where(is_row[..., None], within, 0.0)
    members = xp.matmul(xp.astype(count > 0, count.dtype), group)
    split_cost = xp.maximum(members - 1, xp.zeros_like(members))
    several = members > 1
    to_split = xp.where(several, xp.matmul(between, group) / xp.where(several, members - 1, 1.0), 0.0)
    to_open = (within + between) / xp.where(count > 0, count, 1.0)
    gain, cost = xp.concat([to_split, to_open], axis=-1), xp.concat([split_cost, count], axis=-1)
    first = None if allowance.bars is None else allowance.bars[0]
    chosen, first = select(xp, gain, cost, allowance.mean, allowance.most, first)
    split_group = xp.astype(chosen[..., : group.shape[-1]] | ~several, group.dtype)
    split = xp.matmul(split_group, xp.matrix_transpose(group)) > 0
    # Which groups are split is settled: what the clusters gain and cost follows from it.
    spent = xp.sum(split_group * split_cost, axis=-1)[..., None]
    mean = allowance.mean - xp.mean(spent, axis=-2)[..., None]
    cost = xp.where(split & (count > 0), count - 1, count)
    to_open = xp.where(
        cost > 0, xp.where(split, within, within + between) / xp.where(cost > 0, cost, 1.0), 0.0
    )
    second = None if allowance.bars is None else allowance.bars[1]
    opened, second = select(xp, to_open, cost, mean, allowance.most - spent, second)
    return Choice(opened, split), (first, second)


def _share(backend: Backend, view: View, near: Partial) -> Array:
    """Share of each cluster in the weight of all keys, estimated."""
    xp = backend.xp
    ref = finite(backend, xp.maximum(near.ref, xp.max(view.logit, axis=-1)))
    weight = xp.exp(view.logit - ref[..., None])
    total = near.acc[..., -1] * xp.exp(near.ref - ref) + xp.sum(weight, axis=-1)
    total = xp.where(total > 0, total, 1.0)
    return floored(xp, view.logit - (ref + xp.log(total))[..., None], weight / total[..., None])


def floored(xp: Namespace, log_share: Array, share: Array | None = None) -> Array:
    """Shares with these logarithms, below LEAST_SHARE the smaller the less they are, but never lost."""
    share = xp.exp(log_share) if share is None else share
    below = math.log(LEAST_SHARE) - log_share
    return xp.where(below > 0, LEAST_SHARE / (1 + xp.where(below > 0, below, 0.0)), share)


def _error_within(xp: Namespace, view: View, share: Array) -> Array:
    of_values = view.width / xp.where(view.count > 0, view.count, 1.0)
    return share * share * (xp.expm1(view.spread) + LEAST_SPREAD) * of_values[:, None, :]


def _error_between(xp: Namespace, view: View, share: Array) -> Array:
    distance, part = distances(xp, view)
    of_groups = xp.matmul(xp.matmul(share, view.group), xp.matrix_transpose(view.group))
    deviation = share - of_groups * part[:, None, :]
    return deviation * deviation * distance[:, None, :]


def distances(xp: Namespace, view: View) -> tuple[Array, Array]:
    """Squared distance of each cluster's mean from that of its group, and its part of the group's keys."""
    group, count = view.group, view.count
    weights = group * count[..., None]
    total = xp.sum(weights, axis=-2)
    total = xp.where(total > 0, total, 1.0)
    centre = xp.matmul(xp.matrix_transpose(weights), view.mean) / total[..., None]
    distance = bounded(xp, xp.sum((view.mean - xp.matmul(group, centre)) ** 2, axis=-1))
    return distance, count / xp.sum(group * total[:, None, :], axis=-1)


def far_weights(backend: Backend, view: View, choice: Choice) -> tuple[Array, Array]:
    """Weight of each cluster that is not opened, all its keys together, as exp(ref) * weight.

    Returns
    -------
    ref : array, shape (H, R)
    weight : array, shape (H, R, K)
        Within a group that is not split all keys weigh the same.
    """
    xp = backend.xp
    logit = xp.where(choice.opened, -math.inf, view.logit)
    ref = xp.max(backend.stop_gradient(logit), axis=-1)
    weight = xp.exp(logit - finite(backend, ref)[..., None])
    count = xp.where(backend.stop_gradient(logit) > -math.inf, view.count[:, None, :], 0.0)
    keys = xp.matmul(xp.where(choice.split, 0.0, count), view.group)
    of_key = xp.matmul(xp.where(choice.split, 0.0, weight), view.group) / xp.where(keys > 0, keys, 1.0)
    shared = xp.matmul(of_key, xp.matrix_transpose(view.group)) * count
    return ref, xp.where(choice.split, weight, shared)


def far_partial(backend: Backend, view: View, choice: Choice) -> Partial:
    """Partial result of all clusters that are not opened, each with the mean of its values."""
    xp = backend.xp
    ref, weight = far_weights(backend, view, choice)
    values = xp.concat([view.value, xp.ones_like(view.width)[..., None]], axis=-1)
    return Partial(ref, xp.matmul(weight, values))


def opened_pairs(xp: Namespace, view: View, choice: Choice) -> Array:
    """Keys in the clusters that each query opened, shape (H, R)."""
    return xp.sum(xp.where(choice.opened, view.count[:, None, :], 0.0), axis=-1)


def rank(xp: Namespace, view: View, choice: Choice) -> Array:
    """How many clusters and groups each query sees as one, shape (H, R)."""
    seen = (view.logit > -math.inf) & ~choice.opened
    alone = xp.astype(seen & choice.split, view.group.dtype)
    in_groups = xp.matmul(xp.astype(seen & ~choice.split, view.group.dtype), view.group) > 0
    return xp.sum(alone, axis=-1) + xp.sum(xp.astype(in_groups, alone.dtype), axis=-1)
