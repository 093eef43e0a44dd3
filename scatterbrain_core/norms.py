"""Norms of vectors, and what rounding does to their products."""

from __future__ import annotations

from scatterbrain_core._typing import Array, Namespace


def rounding(xp: Namespace, query: Array, key: Array) -> Array:
    """What rounding may add to the logits of queries (..., n, D) with keys (..., m, D): (..., n, m).

    Libraries sum the products of equal rows in several orders; such logits are equal.
    """
    eps = 2 * float(xp.finfo(query.dtype).eps)
    return eps * norms(xp, query)[..., :, None] * norms(xp, key)[..., None, :]


def norms(xp: Namespace, x: Array) -> Array:
    """Norms of vectors along the last axis, of those too whose squares vanish."""
    top = xp.max(xp.abs(x), axis=-1)
    ratio = x / xp.where(top > 0, top, 1.0)[..., None]
    return top * xp.sqrt(xp.sum(ratio * ratio, axis=-1))


def unit_rows(xp: Namespace, x: Array) -> Array:
    """Vectors divided by their norms; zeros stay."""
    norm = norms(xp, x)
    return x / xp.where(norm > 0, norm, 1.0)[..., None]
