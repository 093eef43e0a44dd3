r"""Changes of query and key that leave :math:`e^{q\cdot k}` and lower the variance of its features."""

from __future__ import annotations

from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.tiles import integers

# Share of the mean eigenvalue that is added to second moments, which may be singular. Any is exact.
RIDGE = 1e-3


@dataclass(frozen=True)
class Preconditioner:
    r"""Statistics of the queries and keys of each head.

    :math:`e^{q\cdot k} = e^{q\cdot c}\,e^{\mu\cdot(k-c)}\,e^{P(q-\mu)\cdot P^{-1}(k-c)}`, P symmetric.

    Attributes
    ----------
    mean_query, mean_key : array, shape (H, 1, D), or None
        μ and c; None without centring.
    transform, inverse : array, shape (H, D, D), or None
        P and its inverse; None without whitening.
    square : array, shape (H, 1, 1)
        Mean of ‖P(q - μ) + P⁻¹(k - c)‖² over all pairs of a head.
    """

    mean_query: Array | None
    mean_key: Array | None
    transform: Array | None
    inverse: Array | None
    square: Array


def fit_preconditioner(
    xp: Namespace,
    query: Array,
    key: Array,
    row_mask: Array | None,
    key_mask: Array | None,
    centred: bool,
    whitened: bool,
) -> Preconditioner:
    """Statistics of queries (H, Lq, D) and keys (H, Lk, D); what a mask hides is zero and takes no part."""
    mean_query, mean_key = _mean(xp, query, row_mask), _mean(xp, key, key_mask)
    second_query = _second_moment(xp, query, row_mask, mean_query if centred else None)
    second_key = _second_moment(xp, key, key_mask, mean_key if centred else None)
    transform = inverse = None
    if whitened:
        transform, inverse = _balance(xp, second_query, second_key)
        second_query = xp.matmul(xp.matmul(transform, second_query), transform)
        second_key = xp.matmul(xp.matmul(inverse, second_key), inverse)
    square = _trace(xp, second_query) + _trace(xp, second_key)
    if centred:
        return Preconditioner(mean_query, mean_key, transform, inverse, square)
    square = square + 2 * xp.sum(mean_query * mean_key, axis=-1)[..., None]
    return Preconditioner(None, None, transform, inverse, square)


def optimal_rho(xp: Namespace, square: Array, dim: int) -> Array:
    """ρ of least variance at a given ‖z‖² (arXiv 2205.15317, theorem 3.3, in the form 2D / ...)."""
    return 2 * dim / (xp.sqrt((2 * square + dim) ** 2 + 8 * dim * square) + 2 * square + dim)


def _count(xp: Namespace, x: Array, mask: Array | None) -> Array:
    if mask is None:
        return xp.ones_like(x[:, :1, :1]) * x.shape[1]
    count = xp.astype(xp.sum(xp.astype(mask, integers(xp, 1, x).dtype), axis=-1), x.dtype)
    return xp.where(count > 0, count, 1.0)[:, None, None]


def _mean(xp: Namespace, x: Array, mask: Array | None) -> Array:
    return xp.sum(x, axis=1)[:, None, :] / _count(xp, x, mask)


def _second_moment(xp: Namespace, x: Array, mask: Array | None, mean: Array | None) -> Array:
    centred = x if mean is None else x - mean
    if mask is not None:
        centred = xp.where(mask[..., None], centred, 0.0)
    return xp.matmul(xp.matrix_transpose(centred), centred) / _count(xp, x, mask)


def _balance(xp: Namespace, second_query: Array, second_key: Array) -> tuple[Array, Array]:
    """P and its inverse, with P Σ_q P = P⁻¹ Σ_k P⁻¹: P² is the geometric mean of Σ_q⁻¹ and Σ_k."""
    second_query, second_key = _regular(xp, second_query), _regular(xp, second_key)
    root, inverse_root = _power(xp, second_query, 0.5), _power(xp, second_query, -0.5)
    middle = _power(xp, xp.matmul(xp.matmul(root, second_key), root), 0.5)
    square = xp.matmul(xp.matmul(inverse_root, middle), inverse_root)
    return _power(xp, square, 0.5), _power(xp, square, -0.5)


def _trace(xp: Namespace, x: Array) -> Array:
    return xp.linalg.trace(x)[:, None, None]


def _regular(xp: Namespace, second: Array) -> Array:
    dim = second.shape[-1]
    mean = _trace(xp, second) / dim
    identity = xp.zeros_like(second) + xp.eye(dim, dtype=second.dtype)
    return second + identity * xp.where(mean > 0, RIDGE * mean, 1.0)


def _power(xp: Namespace, x: Array, power: float) -> Array:
    """A power of a symmetric matrix with positive eigenvalues."""
    values, vectors = xp.linalg.eigh((x + xp.matrix_transpose(x)) / 2)
    tiny = float(xp.finfo(x.dtype).smallest_normal)
    values = xp.where(values > tiny, values, tiny) ** power
    return xp.matmul(vectors * values[..., None, :], xp.matrix_transpose(vectors))
