r"""Cross-polytope hashing with fast pseudo-random rotations (arXiv 1509.02897)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.quadrature import gauss_legendre
from scatterbrain_core.sparse.hashing import MAX_BITS, Hashing, angle, join_digits
from scatterbrain_core.tiles import integers, zeros

# Fewer axes rotate too regularly: with 8 the collisions are off their closed form by 0.2, with 64 by 0.02.
LEAST_AXES = 64
# Each coordinate must beat those before it by this share, more than what rounding leaves of a tie.
TILT = 2.0**-16
# What rounding may leave of a coordinate that is zero, in units of ε and of the root mean square.
ROUNDING = 16.0
# Degree of the Chebyshev series of the collision probability in the angle.
DEGREE = 28


@dataclass(frozen=True)
class CrossPolytope(Hashing):
    r"""Exact pairs are those whose codes agree in some table, a code being K nearest signed axes.

    A vector is padded with zeros to D' axes (a power of two, D at least, and 64), rotated by
    :math:`H D_3 H D_2 H D_1`, H the normalised Walsh-Hadamard matrix and :math:`D_i` random signs, and
    hashed to the index and sign of the largest in absolute value of its first d' coordinates: 2d' values.

    With a Gaussian matrix in place of the rotation, two vectors at angle θ agree in one hash with
    probability :math:`2d'\,P[X_1 = \max_i |X_i|,\ Y_1 = \max_i |Y_i|]` for d' independent pairs
    :math:`(X_i, Y_i)` of standard normal numbers with correlation cos θ; it is 1 - θ/π for d' = 1. The fast
    rotation is pseudo-random and meets this within 0.02 for D of 5 at least and within 0.05 below (measured
    by benchmarks/rotations.py). Over K hashes and T tables, :math:`p = 1 - (1 - p_1^K)^T`. A pair that
    agrees in several tables counts once.

    Parameters
    ----------
    n_hashes : int, optional
        K. By default the budget of the call chooses it and `n_coordinates`, one hash where D' allows, so
        that a bucket holds about twice as many keys as a query may see, and sets `max_bucket` too.
    n_coordinates : int, optional
        d', a power of two, at most D'; a code has K·log2(2d') bits, at most 24.
    n_tables : int, optional
        T; by default 1.
    max_bucket : int, optional
        As in `RandomHyperplanes`; with `n_hashes` and `n_coordinates` given the default is no limit.

    References
    ----------
    Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt, *Practical and Optimal LSH for Angular Distance*,
    arXiv 1509.02897.
    """

    n_hashes: int | None = None
    n_coordinates: int | None = None
    n_tables: int | None = None
    max_bucket: int | None = None

    def __post_init__(self) -> None:
        set_count(self, "n_hashes", at_least=0, at_most=MAX_BITS)
        set_count(self, "n_coordinates", at_least=1, at_most=2 ** (MAX_BITS - 1))
        self._check_counts()
        if self.n_coordinates is not None and self.n_coordinates & (self.n_coordinates - 1):
            raise ValueError(f"n_coordinates must be a power of two, got {self.n_coordinates}")
        if self.depth > MAX_BITS:
            raise ValueError(
                f"n_hashes and n_coordinates must make a code of at most {MAX_BITS} bits, "
                f"got {self.n_hashes} hashes of {self._hash_bits} bits"
            )

    @property
    def is_sized(self) -> bool:
        """Whether K and d' are stated."""
        return self.n_hashes is not None and self.n_coordinates is not None

    @property
    def _hash_bits(self) -> int:
        return (self.n_coordinates or 1).bit_length()

    @property
    def depth(self) -> int:
        """K·log2(2d'); 0 before both are planned."""
        return (self.n_hashes or 0) * self._hash_bits if self.is_sized else 0

    def planned(self, pairs: int, n_keys: int, dim: int) -> CrossPolytope:
        """The same part with K, d', T and the largest bucket chosen for `pairs` exact keys a query.

        Raises
        ------
        ValueError
            `n_coordinates` is more than D'.
        """
        bits, n_tables, max_bucket = self._budgeted(pairs, n_keys)
        n_axes = padded_axes(dim)
        if self.n_coordinates is not None and self.n_coordinates > n_axes:
            raise ValueError(
                f"n_coordinates must be at most {n_axes} for query and key with last axis D = {dim}, "
                f"got {self.n_coordinates}"
            )
        n_hashes, n_coordinates = self._sizes(bits, n_axes.bit_length())
        return replace(
            self, n_hashes=n_hashes, n_coordinates=n_coordinates, n_tables=n_tables, max_bucket=max_bucket
        )

    def _sizes(self, bits: int, most: int) -> tuple[int, int]:
        """K and d' for codes of about `bits` bits, at most `most` of them a hash."""
        n_hashes = self.n_hashes
        if n_hashes is None and self.n_coordinates is None:
            n_hashes = -(-bits // most)
        elif n_hashes is None:
            n_hashes = min(max(1, round(bits / self._hash_bits)), MAX_BITS // self._hash_bits) if bits else 0
        if self.n_coordinates is not None:
            return n_hashes, self.n_coordinates
        share = max(n_hashes, 1)
        return n_hashes, 2 ** (min(max(1, round(bits / share)), most, MAX_BITS // share) - 1)

    def draw(self, generator: Any, dim: int, n_queries: int = 0, n_keys: int = 0) -> tuple[Any, ...]:
        """Signs of the rotations, shape (T, K, 3, D'), and directions of the cuts, shape (T, dim)."""
        del n_queries, n_keys
        assert self.n_tables is not None
        signs = generator.integers(0, 2, (self.n_tables, self.n_hashes, 3, padded_axes(dim))) * 2.0 - 1
        return signs, generator.standard_normal((self.n_tables, dim))

    def codes(self, xp: Namespace, draws: tuple[Array, ...], query: Array, key: Array) -> tuple[Array, Array]:
        """Codes in one table: K digits that name the nearest signed axis."""
        (signs,) = draws
        return self._code(xp, signs, query), self._code(xp, signs, key)

    def _code(self, xp: Namespace, signs: Array, x: Array) -> Array:
        assert self.n_coordinates is not None
        axes = signs.shape[-1]
        padded = xp.concat([x, zeros(xp, (*x.shape[:-1], axes - x.shape[-1]), x)], axis=-1)
        # By axis, so that the transform adds long rows; reshaping lays them out anew.
        by_axis = xp.reshape(xp.matrix_transpose(xp.reshape(padded, (-1, axes))), (-1,))
        by_axis = xp.reshape(by_axis, (axes, -1))
        digits = (
            xp.reshape(nearest_axis(xp, signs[hash_, :, :, None], by_axis, self.n_coordinates), x.shape[:-1])
            for hash_ in range(signs.shape[0])
        )
        return join_digits(xp, x, digits, self._hash_bits)

    def one_table_probability(self, xp: Namespace, query: Array, key: Array) -> Array:
        r""":math:`p_1^K` for every pair, with :math:`p_1` of a Gaussian matrix."""
        if self.n_hashes is None or self.n_coordinates is None:
            raise ValueError(
                "n_hashes and n_coordinates must be given for a collision probability, "
                f"got {self.n_hashes} and {self.n_coordinates}"
            )
        theta = angle(xp, query, key)
        if self.n_coordinates <= 2:
            # The cross-polytope of the plane is a square, whose sides are two signs of orthogonal axes.
            return (1 - theta / math.pi) ** (self.n_coordinates * self.n_hashes)
        series = collision_series(self.n_coordinates)
        return _chebyshev(xp, series, theta * (2 / math.pi) - 1) ** self.n_hashes


def padded_axes(dim: int) -> int:
    """D', the axes that a vector of `dim` is padded to: the next power of two, `LEAST_AXES` at least."""
    return max(LEAST_AXES, 1 << (dim - 1).bit_length())


def nearest_axis(xp: Namespace, signs: Array, x: Array, n_coordinates: int) -> Array:
    """Nearest of 2d' signed axes after the rotation, as 2·index + 1 if the coordinate is not negative.

    A coordinate that is zero but for rounding counts as not negative.

    Parameters
    ----------
    signs : array, shape (3, D', n) or (3, D', 1)
    x : array, shape (D', n)

    Returns
    -------
    array of int, shape (n,)
    """
    for i in range(3):
        x = hadamard(xp, x * signs[i, ...])
    # No more than rounding leaves of a zero: beyond, opposite vectors must not agree.
    zero = -ROUNDING * float(xp.finfo(x.dtype).eps) * xp.sqrt(xp.mean(x * x, axis=0))
    x = x[:n_coordinates, :]
    # Vectors along an axis make exact ties, which rounding would break anew for every length.
    tilt = 1 + TILT * xp.astype(integers(xp, n_coordinates, x), x.dtype)
    index = xp.argmax(xp.abs(x) / tilt[:, None], axis=0)
    largest = xp.take_along_axis(x, index[None, :], axis=0)[0, :]
    return index * 2 + xp.astype(largest >= zero, index.dtype)


def hadamard(xp: Namespace, x: Array) -> Array:
    """Normalised fast Walsh-Hadamard transform of the first axis, a power of two, in O(D' log D') a column.

    It adds elementwise, so that all libraries round alike.
    """
    shape, n = x.shape, x.shape[0]
    for _ in range(n.bit_length() - 1):
        first, second = x[: n // 2, ...], x[n // 2 :, ...]
        x = xp.reshape(xp.stack([first + second, first - second], axis=1), shape)
    return x * (1 / math.sqrt(n))


def collision_at(n_coordinates: int, theta: float) -> float:
    r"""P that two vectors at angle θ share one hash with a Gaussian matrix, within 1e-7 up to d' = 256.

    In polar coordinates of the plane of :math:`(X_1, Y_1)` the density is :math:`r e^{-r^2/2}/2π`, the
    wedge :math:`X_1, Y_1 > 0` has the opening π - θ, and all other pairs lie within :math:`|X_i| < X_1`,
    :math:`|Y_i| < Y_1`.
    """
    if theta <= 0 or theta >= math.pi:
        return float(theta <= 0)
    half, reach = (math.pi - theta) / 2, 7.0
    total = 0.0
    for s, radial in gauss_legendre(48):
        r = reach * s
        inner = math.fsum(
            weight
            * _rectangle(r * math.cos(half * z - theta / 2), r * math.cos(half * z + theta / 2), theta)
            ** (n_coordinates - 1)
            for z, weight in gauss_legendre(16)
        )
        total += radial * reach * r * math.exp(-r * r / 2) * half * inner
    return total * 2 * n_coordinates / math.pi


def _rectangle(x: float, y: float, theta: float) -> float:
    r"""P[|X| < x, |Y| < y] of standard normal numbers with correlation cos θ.

    Outside a polygon around the origin lies :math:`\frac1{2π}\int e^{-ρ(α)^2/2}\,dα`, ρ the distance of its
    edge in direction α: that is :math:`h/\cos t` at angle t off the normal of an edge at distance h.
    """
    sine, cosine = math.sin(theta), math.cos(theta)
    outside = 0.0
    for near, far in ((x, y), (y, x)):
        for corner in (far - cosine * near, far + cosine * near):
            end = math.atan2(corner, near * sine)
            outside += end * math.fsum(
                weight * math.exp(-((near / math.cos(end * z)) ** 2) / 2) for z, weight in gauss_legendre(16)
            )
    return max(0.0, 1 - outside / math.pi)


@cache
def collision_series(n_coordinates: int) -> tuple[float, ...]:
    """Chebyshev coefficients of `collision_at` in 2θ/π - 1, from its values at the extrema."""
    angles = [math.pi * j / DEGREE for j in range(DEGREE + 1)]
    values = [collision_at(n_coordinates, math.pi / 2 * (1 + math.cos(t))) for t in angles]
    ends = [0.5 if j in (0, DEGREE) else 1.0 for j in range(DEGREE + 1)]
    return tuple(
        ends[k]
        * 2
        / DEGREE
        * math.fsum(e * f * math.cos(k * t) for e, f, t in zip(ends, values, angles, strict=True))
        for k in range(DEGREE + 1)
    )


def _chebyshev(xp: Namespace, series: tuple[float, ...], x: Array) -> Array:
    """A Chebyshev series at -1 <= x <= 1 by Clenshaw's recurrence, clipped to probabilities."""
    after = later = xp.zeros_like(x)
    for coefficient in series[:0:-1]:
        after, later = coefficient + 2 * x * after - later, after
    return xp.clip(series[0] + x * after - later, 0.0, 1.0)
