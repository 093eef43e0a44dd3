"""Softmax-weighted sums over tiles of visits: `sparse_correction.interval_partial` in loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_backends.numpy_.compiled.exponential import exponential, logarithm
from scatterbrain_backends.numpy_.compiled.loop import loop
from scatterbrain_backends.numpy_.compiled.rows import (
    copy,
    gather,
    largest_entry,
    to_exponentials,
    to_weights,
)


@loop
def partial(
    least: Any,
    query: Any,
    key: Any,
    value: Any,
    order: Any,
    lo: Any,
    hi: Any,
    rows: Any,
    filled: Any,
    excluded: Any,
    n_visits: int,
    tile_keys: int,
    ref: Any,
    acc: Any,
) -> None:
    """Partial results of the visits of each block.

    Parameters
    ----------
    least : float
        Negative where pairs weigh exp(q·k). Else queries and keys are logs of features, whose inner product
        is the weight of a pair: products in units of the largest features are summed again below `least`.
    query, key, value : ndarray, shape (n_query_rows, D), (n_key_rows, D) and (n_key_rows, Dv + 1)
    order : ndarray of int, shape (n_slots,)
        Key row at each slot.
    lo, hi : ndarray of int, shape (n_query_rows * n_visits,)
        Slots of each visit.
    rows : ndarray of int, shape (n_blocks, size)
        Visits, query row * n_visits + r.
    filled : ndarray of bool, shape (n_blocks, size)
    excluded : tuple of ndarray of int
        Slots (T, n_key_rows) of the keys in T tables, and intervals lo and hi (n_query_rows, T, R): pairs of
        these are left out.
    ref, acc : ndarray, shape (n_blocks, size) and (n_blocks, size, Dv + 1)
        Written to.
    """
    size = rows.shape[1]
    queries = np.empty((size, query.shape[1]), query.dtype)
    keys = np.empty((tile_keys, key.shape[1]), key.dtype)
    logs, tops = (
        (np.empty_like(queries), np.empty_like(keys)),
        (np.empty(size, key.dtype), np.empty(tile_keys, key.dtype)),
    )
    of_block, slots = np.empty(size, np.int64), np.empty(tile_keys, np.int64)
    values, weights = np.empty((tile_keys, value.shape[1]), key.dtype), np.empty((size, tile_keys), key.dtype)
    sums = np.empty((size, value.shape[1]), key.dtype)
    for b in range(len(rows)):
        _clear(ref[b], acc[b])
        for i in range(size):
            of_block[i] = rows[b, i] // n_visits
        gather(query, of_block, queries)
        if least >= 0:
            _to_features(queries, logs[0], tops[0])
        start, stop = _extent(rows[b], filled[b], lo, hi, len(order))
        for first in range(start, stop, tile_keys):
            for j in range(tile_keys):
                slots[j] = order[min(first + j, len(order) - 1)]
            gather(key, slots, keys)
            gather(value, slots, values)
            if least >= 0:
                _to_features(keys, logs[1], tops[1])
            np.dot(queries, keys.T, weights)
            if least >= 0:
                _to_logits(weights, logs, tops, least)
            _hide(rows[b], filled[b], lo, hi, first, weights)
            _leave_out(of_block, slots, excluded, weights)
            _weigh(weights, ref[b], acc[b])
            np.dot(weights, values, sums)
            _add(acc[b], sums)


@loop
def _clear(ref: Any, acc: Any) -> None:
    for i in range(len(ref)):
        ref[i] = -np.inf
        for c in range(acc.shape[1]):
            acc[i, c] = 0


@loop
def _add(total: Any, more: Any) -> None:
    for i in range(len(total)):
        for c in range(total.shape[1]):
            total[i, c] += more[i, c]


@loop
def _extent(rows: Any, filled: Any, lo: Any, hi: Any, n_slots: int) -> Any:
    """Slots that some visit of a block sees: an interval."""
    start, stop = n_slots, 0
    for i in range(len(rows)):
        if filled[i] and lo[rows[i]] < hi[rows[i]]:
            start, stop = min(start, lo[rows[i]]), max(stop, hi[rows[i]])
    return start, stop


@loop
def _hide(rows: Any, filled: Any, lo: Any, hi: Any, first: int, logits: Any) -> None:
    """Hide the slots from `first` on that a visit does not see."""
    for i in range(len(rows)):
        own, n_slots = logits[i], logits.shape[1]
        own_lo, own_hi = (lo[rows[i]] - first, hi[rows[i]] - first) if filled[i] else (0, 0)
        for j in range(min(own_lo, n_slots)):
            own[j] = -np.inf
        for j in range(max(own_hi, 0), n_slots):
            own[j] = -np.inf


@loop
def _leave_out(query_rows: Any, key_rows: Any, excluded: Any, logits: Any) -> None:
    """Hide pairs that an excluded table holds."""
    slot, lo, hi = excluded
    for i in range(len(query_rows)):
        for t in range(len(slot)):
            for r in range(lo.shape[2]):
                own_lo, own_hi = lo[query_rows[i], t, r], hi[query_rows[i], t, r]
                if own_lo < own_hi:
                    for j in range(len(key_rows)):
                        if own_lo <= slot[t, key_rows[j]] < own_hi:
                            logits[i, j] = -np.inf


@loop
def _to_features(rows: Any, logs: Any, tops: Any) -> None:
    """Features of rows of logs, each in units of its largest one, whose log goes to `tops`."""
    zero = rows.dtype.type(0)
    for i in range(len(rows)):
        own = rows[i]
        copy(own, logs[i])
        top = largest_entry(own, rows.dtype.type(-np.inf))
        tops[i] = top
        to_exponentials(own, top if top > -np.inf else zero)


@loop
def _to_logits(products: Any, logs: Any, tops: Any, least: Any) -> None:
    """Logs of inner products of features, from the products of features in units of their largest."""
    top_key, before = tops[1], np.empty_like(products[0])
    for i in range(len(products)):
        own, top, smallest = products[i], tops[0][i], least
        for j in range(len(own)):
            product = own[j]
            before[j] = product
            smallest = product if product < smallest else smallest
        # All of a row in one way: how a logarithm is rounded may not depend on other, perhaps later, keys.
        for j in range(len(own)):
            own[j] = logarithm(own[j]) + top + top_key[j]
        if smallest < least:
            for j in range(len(own)):
                if before[j] < least:
                    own[j] = _log_product(logs[0][i], logs[1][j])


@loop
def _log_product(log_query: Any, log_key: Any) -> Any:
    """Log of an inner product of features, term by term."""
    number = log_query.dtype.type
    top, total = number(-np.inf), number(0)
    for c in range(len(log_query)):
        own = log_query[c] + log_key[c]
        top = own if own > top else top
    for c in range(len(log_query)):
        total += exponential(log_query[c] + log_key[c] - top)
    return top + np.log(total) if top > -np.inf else top


@loop
def _weigh(logits: Any, ref: Any, acc: Any) -> None:
    """Logits of what is seen to weights, and sums to the references of these."""
    for i in range(len(logits)):
        ref[i] = to_weights(logits[i], ref[i], acc[i])
