r"""Positive random features of the softmax kernel (Performer's FAVOR+, arXiv 2009.14794)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from scatterbrain_core._checks import require_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.random import Draws


@dataclass(frozen=True)
class PositiveFeatures:
    r"""Positive random features, :math:`\phi(x) = \exp(Wx - \|x\|^2/2)/\sqrt m`.

    The rows of W are independent standard normal vectors. The estimate of
    :math:`A = e^{q\cdot k}` is :math:`L = \phi(q)\cdot\phi(k)`:

    - unbiased, :math:`E[L] = A`;
    - :math:`\mathrm{Var}\,L = \tfrac1m A^2 (e^{\|q+k\|^2} - 1)`.

    Parameters
    ----------
    n_features : int, optional
        m, the rank. By default the budget of the call chooses it.

    References
    ----------
    Choromanski et al., *Rethinking Attention with Performers*, arXiv 2009.14794, Lemma 1.
    """

    n_features: int | None = None

    def __post_init__(self) -> None:
        require_count("n_features", self.n_features, at_least=1)

    def planned(self, rank: int) -> PositiveFeatures:
        """The same part with its rank chosen: `n_features` if given, else `rank`."""
        return self if self.n_features is not None else replace(self, n_features=rank)

    def draw(self, draws: Draws, dim: int) -> Any:
        """W, shape (m, dim), on the host."""
        assert self.n_features is not None
        return draws.features(self.n_features, dim)

    def log_features(self, xp: Namespace, projections: Array, x: Array) -> Array:
        r"""Log of the features without their 1/√m, :math:`Wx - \|x\|^2/2`.

        Parameters
        ----------
        projections : array, shape (m, D)
            Rows of W.
        x : array, shape (..., L, D)

        Returns
        -------
        array, shape (..., L, m)
        """
        half_norms = xp.sum(x * x, axis=-1) / 2
        return xp.matmul(x, xp.matrix_transpose(projections)) - half_norms[..., None]

    def variance(self, xp: Namespace, query: Array, key: Array) -> Array:
        r"""Closed-form variance of the estimate of exp(q·k), for every pair.

        Parameters
        ----------
        query : array, shape (..., Lq, D)
            With the scale folded in.
        key : array, shape (..., Lk, D)

        Returns
        -------
        array, shape (..., Lq, Lk)
            :math:`\tfrac1m A^2 (e^{\|q+k\|^2} - 1)`.
        """
        if self.n_features is None:
            raise ValueError("n_features must be given for a variance, got None")
        logits = xp.matmul(query, xp.matrix_transpose(key))
        norms = xp.sum(query * query, axis=-1)[..., :, None] + xp.sum(key * key, axis=-1)[..., None, :]
        return xp.exp(2 * logits) * xp.expm1(norms + 2 * logits) / self.n_features


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
