r"""Changes of query and key that leave :math:`e^{q\cdot k}` and lower the variance of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.tiles import integers

# Share of the mean eigenvalue that is added to second moments, which may be singular. Any is exact.
RIDGE = 1e-2
# The smallest eigenvalue of P as a share of the largest, so that rounding of its entries keeps P P⁻¹ = 1 to
# about 10 ε.
LEAST_SHARE = 0.1
# The smallest ρ: at the ‖z‖² for which less is best nothing is estimated anyway, and 1/ρ may overflow.
LEAST_RHO = 1e-6


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
    # Where q ≈ -k rounding may leave less than nothing.
    square = square + 2 * xp.sum(mean_query * mean_key, axis=-1)[..., None]
    return Preconditioner(None, None, transform, inverse, xp.where(square > 0, square, 0.0))


def optimal_rho(xp: Namespace, square: Array, dim: int) -> Array:
    """ρ of least variance at a given ‖z‖² = s (arXiv 2205.15317, theorem 3.3).

    It is 2D / (√((2s + D)² + 8Ds) + 2s + D), in shares of 2s + D, which do not overflow.
    """
    of_square = square / (2 * square + dim)
    of_dim = dim / (2 * square + dim)
    rho = 2 * of_dim / (xp.sqrt(1 + 8 * of_dim * of_square) + 1)
    return xp.where(rho > LEAST_RHO, rho, LEAST_RHO)


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
    """P and its inverse, with P Σ_q P = P⁻¹ Σ_k P⁻¹: P² is the geometric mean of Σ_q⁻¹ and Σ_k.

    In double precision where the library has it; float32 alone loses all digits of nearly singular moments.
    """
    dtype = second_query.dtype
    scales = [
        xp.where(scale > 0, scale, 1.0)
        for scale in (_trace(xp, second) for second in (second_query, second_key))
    ]
    query, key = (
        _regular(xp, xp.astype(second / scale, double(xp, second)))
        for second, scale in zip((second_query, second_key), scales, strict=True)
    )
    transform, inverse = _root_of_mean(xp, query, key)
    # P² of the moments is √(tr Σ_k / tr Σ_q) times P² of moments that were divided by their traces.
    factor = (scales[1] / scales[0]) ** 0.25
    return xp.astype(transform, dtype) * factor, xp.astype(inverse, dtype) / factor


def _root_of_mean(xp: Namespace, query: Array, key: Array) -> tuple[Array, Array]:
    """Root P of the geometric mean of Σ_q⁻¹ and Σ_k, and its inverse, without squaring a condition.

    With Σ_q = LLᵀ, Σ_k = KKᵀ and LᵀK = UsVᵀ the mean is XXᵀ, X = L⁻ᵀ U s^½; P has the left singular vectors
    and the singular values of X.
    """
    left, right = xp.linalg.cholesky(query), xp.linalg.cholesky(key)
    upper = xp.matrix_transpose(left)
    turn, values, _ = xp.linalg.svd(xp.matmul(upper, right), full_matrices=False)
    half = xp.linalg.solve(upper, turn * values[..., None, :] ** 0.5)
    vectors, values, _ = xp.linalg.svd(half, full_matrices=False)
    least = values[..., :1] * LEAST_SHARE
    values = xp.where(values > least, values, least)[..., None, :]
    transposed = xp.matrix_transpose(vectors)
    return xp.matmul(vectors * values, transposed), xp.matmul(vectors / values, transposed)


def double(xp: Namespace, x: Array) -> Any:
    """float64 where the device of `x` has it, else the dtype of `x`."""
    dtypes = xp.__array_namespace_info__().dtypes(device=device(x), kind="real floating")
    return dtypes.get("float64", x.dtype)


def _trace(xp: Namespace, x: Array) -> Array:
    return xp.linalg.trace(x)[:, None, None]


def _regular(xp: Namespace, second: Array) -> Array:
    dim = second.shape[-1]
    mean = _trace(xp, second) / dim
    identity = xp.zeros_like(second) + xp.eye(dim, dtype=second.dtype, device=device(second))
    return second + identity * xp.where(mean > 0, RIDGE * mean, 1.0)
