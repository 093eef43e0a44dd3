"""Features of which a key has one alone: its label, such as its cluster, segment or column."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.low_rank.low_rank import Features
from scatterbrain_core.normalization import Partial, last_of_segments, running_merge, softmax_partial
from scatterbrain_core.tiles import cut, gather, integers, longest_run, power_of_two


@dataclass(frozen=True)
class IndicatorKernel:
    """Rows of queries are logs of m weights, (..., L, m); those of keys are (label, log weight), (..., L, 2).

    The weight of a pair is exp(query[label] + log weight); it is zero for the label -1. Labels are whole
    numbers below m, held in the dtype of the rows; log weights may be differentiable.

    Parameters
    ----------
    n_labels : int
        The rank, m.
    """

    n_labels: int

    is_positive = True

    def group(self, xp: Namespace, rows: Features, features: slice) -> Features:
        """Rows with some of the labels alone; the other keys get label -1."""
        label = rows.key[..., :1]
        is_in = (label >= features.start) & (label < features.stop)
        key = xp.concat([xp.where(is_in, label - features.start, -1.0), rows.key[..., 1:]], axis=-1)
        return Features(rows.query[..., features], key, IndicatorKernel(features.stop - features.start))

    def hide(self, xp: Namespace, key: Array, visible: Array) -> Array:
        """Rows with log weight -inf where not visible."""
        return xp.concat([key[..., :1], xp.where(visible[..., None], key[..., 1:], -math.inf)], axis=-1)

    def without(self, xp: Namespace, query: Array, labels: Array) -> Array:
        """Rows of queries (n, m) whose weights are zero at some labels each, (n, R); -1 is none."""
        every = integers(xp, self.n_labels, labels)[None, :]
        is_out = every == labels[:, :1]
        for r in range(1, labels.shape[1]):
            is_out = is_out | (every == labels[:, r : r + 1])
        return xp.where(is_out, -math.inf, query)

    def states(self, backend: Backend, key: Array, weighted_values: Array) -> Partial:
        """For each label the sum over its keys: they are sorted by label, and no one-hot matrix is made."""
        xp, lead = backend.xp, key.shape[:-2]
        n_keys, columns, per_lead = key.shape[-2], weighted_values.shape[-1], self.n_labels + 1
        n_lead = math.prod(lead)
        log_weight = xp.reshape(key[..., 1], (-1,))
        # Label -1 is a segment too, the first, which is dropped.
        first = (integers(xp, n_lead * n_keys, key) // n_keys) * per_lead + 1
        segment = first + xp.reshape(self._labels(backend, key), (-1,))
        order = xp.argsort(segment, stable=True)
        size = power_of_two(n_keys // self.n_labels, 4, 64)
        blocks = cut(xp, order, xp.take(segment, order), size)
        logs = xp.where(blocks.filled, gather(xp, log_weight, blocks.rows), -math.inf)
        values = gather(xp, xp.reshape(weighted_values, (-1, columns)), blocks.rows)
        of_block = xp.take(segment, blocks.rows[:, 0])
        parts = softmax_partial(backend, logs[:, None, :] + 0.0, values)
        running = running_merge(backend, parts, of_block, longest_run(xp, of_block))
        whole = last_of_segments(backend, running, of_block, n_lead * per_lead)
        ref = xp.reshape(whole.ref, (*lead, per_lead))
        acc = xp.reshape(whole.acc, (*lead, per_lead, columns))
        return Partial(ref[..., 1:], acc[..., 1:, :])

    def apply(self, backend: Backend, query: Array, states: Partial) -> Partial:
        """Queries against virtual keys, one a label: logit query[label] + ref, value acc."""
        return softmax_partial(backend, query + states.ref[..., None, :], states.acc)

    def pairs(self, backend: Backend, query: Array, key: Array, visible: Array) -> tuple[Array, None]:
        """Of each query the weight at each key's label."""
        xp = backend.xp
        label = self._labels(backend, key)[..., None, :]
        n_rows = math.prod(query.shape[:-1])
        row = xp.reshape(integers(xp, n_rows, query), query.shape[:-1])[..., None]
        index = row * self.n_labels + xp.maximum(label, 0)
        taken = gather(xp, xp.reshape(query, (-1,)), index)
        return xp.where(visible & (label >= 0), taken + key[..., None, :, 1], -math.inf), None

    def _labels(self, backend: Backend, key: Array) -> Array:
        whole = integers(backend.xp, 1, key).dtype
        return backend.xp.astype(backend.stop_gradient(key[..., 0]), whole)


def indicator_rows(xp: Namespace, label: Array, log_weight: Array) -> Array:
    """Rows of keys from their labels, ints, and log weights, both of shape (..., L)."""
    return xp.stack([xp.astype(label, log_weight.dtype), log_weight], axis=-1)


def label_means(backend: Backend, label: Array, x: Array, n_labels: int) -> tuple[Array, Array]:
    """Means of the rows of each label, and how many there are, as numbers of the dtype of `x`.

    Parameters
    ----------
    label : array of int, shape (H, L)
        -1 for a row that has none.
    x : array, shape (H, L, D)

    Returns
    -------
    mean : array, shape (H, n_labels, D)
        Zeros where no row has the label.
    count : array, shape (H, n_labels)
    """
    xp = backend.xp
    rows = indicator_rows(xp, label, xp.zeros_like(x[..., 0]))
    # All weights are 1, so that the sums are in units of 1.
    weighted = xp.concat([x, xp.ones_like(x[..., :1])], axis=-1)
    sums = IndicatorKernel(n_labels).states(backend, rows, weighted).acc
    count = backend.stop_gradient(sums[..., -1])
    return sums[..., :-1] / xp.where(count == 0, 1.0, count)[..., None], count
