"""The two kinds of feature rows: logs of positive features, and signed features with one scale a row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.low_rank.low_rank import Features
from scatterbrain_core.normalization import Partial, finite, softmax_partial


class PositiveKernel:
    """Rows are logs of positive features, shape (..., L, m)."""

    is_positive = True

    def group(self, xp: Namespace, rows: Features, features: slice) -> Features:
        """Rows with some of the features alone."""
        del xp
        return replace(rows, query=rows.query[..., features], key=rows.key[..., features])

    def hide(self, xp: Namespace, key: Array, visible: Array) -> Array:
        """Rows with -inf where not visible."""
        return xp.where(visible[..., None], key, -math.inf)

    def states(self, backend: Backend, key: Array, weighted_values: Array) -> Partial:
        """Feature c is a virtual key for all queries, with logit `ref` and value `acc`."""
        # Adding zero makes the temporary that may be overwritten.
        return softmax_partial(backend, backend.xp.matrix_transpose(key) + 0.0, weighted_values)

    def apply(self, backend: Backend, query: Array, states: Partial) -> Partial:
        """Queries against virtual keys, one a feature: logit log φ_c(q) + ref_c, value acc_c."""
        return softmax_partial(backend, query + states.ref[..., None, :], states.acc)

    def pairs(self, backend: Backend, query: Array, key: Array, visible: Array) -> tuple[Array, None]:
        """Logs of all inner products."""
        return log_kernel(backend, query, key, visible), None


class SignedKernel:
    """Rows are (log scale, m factors), shape (..., L, 1 + m): φ_c = exp(scale) * factor_c, |factor| <= 1."""

    is_positive = False

    def group(self, xp: Namespace, rows: Features, features: slice) -> Features:
        """Rows with some of the features alone."""
        query, key = (
            xp.concat([x[..., :1], x[..., 1:][..., features]], axis=-1) for x in (rows.query, rows.key)
        )
        return replace(rows, query=query, key=key)

    def hide(self, xp: Namespace, key: Array, visible: Array) -> Array:
        """Rows with scale -inf where not visible."""
        return xp.concat([xp.where(visible[..., None], key[..., :1], -math.inf), key[..., 1:]], axis=-1)

    def states(self, backend: Backend, key: Array, weighted_values: Array) -> Partial:
        """Sums of signed features, all with the reference of the scales."""
        xp = backend.xp
        scale, factor = key[..., 0], key[..., 1:]
        ref = xp.max(backend.stop_gradient(scale), axis=-1)[..., None]
        weights = factor * xp.exp(scale - finite(backend, ref))[..., None]
        acc = xp.matmul(xp.matrix_transpose(weights), weighted_values)
        return Partial(xp.broadcast_to(ref, acc.shape[:-1]), acc)

    def apply(self, backend: Backend, query: Array, states: Partial) -> Partial:
        """Signed weights of the features, all with one reference a query."""
        logits = query[..., :1] + states.ref[..., None, :]
        return softmax_partial(backend, logits, states.acc, query[..., 1:])

    def pairs(self, backend: Backend, query: Array, key: Array, visible: Array) -> tuple[Array, Array]:
        """Sums of the scales, and inner products of the factors."""
        xp = backend.xp
        logits = query[..., :1] + xp.matrix_transpose(key[..., :1])
        factor = xp.matmul(query[..., 1:], xp.matrix_transpose(key[..., 1:]))
        return xp.where(visible, logits, -math.inf), factor


def log_kernel(backend: Backend, log_query: Array, log_key: Array, visible: Array) -> Array:
    r"""Log of the inner products of features given by their logs, for every pair; -inf where hidden.

    Each row has its own reference, taken from that row alone. Where the product of two rows underflows
    (their large features do not meet), it is summed again term by term.

    Parameters
    ----------
    log_query : array, shape (..., Lq, m)
    log_key : array, shape (..., Lk, m)
        -inf along a whole row hides a key.
    visible : array of bool, shape (..., Lq, Lk)

    Returns
    -------
    array, shape (..., Lq, Lk)
    """
    xp = backend.xp
    visible = visible & (xp.max(log_key, axis=-1) > -math.inf)[..., None, :]
    top_query, top_key = _top(backend, log_query), _top(backend, log_key)
    product = xp.matmul(
        xp.exp(log_query - top_query[..., None]), xp.matrix_transpose(xp.exp(log_key - top_key[..., None]))
    )
    info = xp.finfo(product.dtype)
    # Below this the terms that underflowed may weigh more than rounding.
    lost = visible & (product < float(info.smallest_normal) / float(info.eps) * log_query.shape[-1])
    logs = xp.log(xp.where(lost | ~visible, 1.0, product)) + top_query[..., :, None] + top_key[..., None, :]
    if bool(xp.any(lost)):
        logs = xp.where(lost, _log_kernel_by_terms(backend, log_query, log_key), logs)
    return xp.where(visible, logs, -math.inf)


def _log_kernel_by_terms(backend: Backend, log_query: Array, log_key: Array) -> Array:
    xp = backend.xp

    def term(c: int) -> Array:
        return log_query[..., :, None, c] + log_key[..., None, :, c]

    rank = log_query.shape[-1]
    top = backend.stop_gradient(term(0))
    for c in range(1, rank):
        top = xp.maximum(top, backend.stop_gradient(term(c)))
    top = xp.where(top == -math.inf, 0.0, top)

    def weights() -> Iterator[tuple[Array]]:
        return ((xp.exp(term(c) - top),) for c in range(rank))

    (total,) = backend.checkpoint(lambda: (_sum_one_by_one(weights()),), weights)
    return xp.log(xp.where(total > 0, total, 1.0)) + top


def _sum_one_by_one(terms: Iterator[tuple[Array]]) -> Array:
    (total,) = next(terms)
    for (term,) in terms:
        total = total + term
    return total


def _top(backend: Backend, logs: Array) -> Array:
    xp = backend.xp
    top = backend.stop_gradient(xp.max(logs, axis=-1))
    return xp.where(top == -math.inf, 0.0, top)
