r"""E2LSH on SMYRF's asymmetric transform: hashing for large inner products (arXiv 2010.05315)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from scatterbrain_core._checks import set_at_least, set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.quadrature import gauss_legendre
from scatterbrain_core.sparse.hashing import MAX_BITS, Hashing, join_digits

# Normal projections beyond this many standard deviations, 2e-9 of them, go to the cells at the edges.
REACH = 6.0
MAX_HASHES = MAX_BITS // 2
LEAST_WIDTH = 1e-6
# Width of a unit cell whose quantised standard normal has an entropy of 0 bits.
ENTROPY_WIDTH = math.sqrt(2 * math.pi * math.e)


@dataclass(frozen=True)
class E2LSH(Hashing):
    r"""Exact pairs are those whose codes agree in some table, a code being K cells of random projections.

    Queries and keys are brought to one length R by two more axes,

    .. math:: F(q) = [q;\ 0;\ \sqrt{R^2 - \|q\|^2}], \qquad G(k) = [k;\ \sqrt{R^2 - \|k\|^2};\ 0],

    so that :math:`\|F - G\|^2 = 2(R^2 - q\cdot k)`: near is a large inner product. A hash is the cell
    :math:`\lfloor (a\cdot x + b)/w \rfloor`, a standard normal and b uniform in [0, w). Two vectors at
    distance c agree in it with probability

    .. math:: p_1 = \int_0^w \tfrac1c f(t/c)\,(1 - t/w)\,dt, \qquad f(t) = \sqrt{2/π}\,e^{-t^2/2},

    and over K hashes and T tables with :math:`p = 1 - (1 - p_1^K)^T`. Projections beyond ±6R, 2e-9 of
    them, share the cells at the edges. A pair that agrees in several tables counts once.

    Parameters
    ----------
    n_hashes : int, optional
        K. By default the budget of the call chooses it and `width`, about 3 bits of information a hash,
        so that a bucket holds about twice as many keys as a query may see, and sets `max_bucket` too.
    width : float, optional
        w in units of R, at least 1e-6. A code has K·(1 + ⌈log2(1 + ⌈6/w⌉)⌉) bits, at most 24.
    radius : float, optional
        R, in the units of queries and keys with the scale folded in (times √abs(scale) each). Longer
        vectors get a zero in place of the root, and their projections reach further. By default
        :math:`R^2 = \max\|q\|^2 + \max\|k\|^2` of each head, which depends on all its rows: not with
        `is_causal=True`, nor with a mask that is neither of keys nor of queries.
    n_tables : int, optional
        T; by default 1.
    max_bucket : int, optional
        As in `RandomHyperplanes`; with `n_hashes` and `width` given the default is no limit.

    References
    ----------
    Datar, Immorlica, Indyk, Mirrokni, *Locality-sensitive hashing scheme based on p-stable distributions*,
    SCG 2004. Daras, Kitaev, Odena, Dimakis, *SMYRF: Efficient Attention using Asymmetric Clustering*,
    arXiv 2010.05315.
    """

    n_hashes: int | None = None
    width: float | None = None
    radius: float | None = None
    n_tables: int | None = None
    max_bucket: int | None = None

    def __post_init__(self) -> None:
        set_count(self, "n_hashes", at_least=0, at_most=MAX_HASHES)
        set_at_least(self, "width", LEAST_WIDTH)
        set_at_least(self, "radius", 0.0, is_open=True)
        self._check_counts()
        if self.depth > MAX_BITS:
            raise ValueError(
                f"n_hashes and width must make a code of at most {MAX_BITS} bits, "
                f"got {self.n_hashes} hashes of {self._hash_bits} bits"
            )

    @property
    def is_sized(self) -> bool:
        """Whether K and w are stated."""
        return self.n_hashes is not None and self.width is not None

    @property
    def is_fitted(self) -> bool:
        """Whether R is taken from the data."""
        return self.radius is None

    @property
    def _hash_bits(self) -> int:
        # Cells -c to c with c = ceil(6/w): a projection within reach, plus the shift, falls into no other.
        return 0 if self.width is None else 1 + math.ceil(REACH / self.width).bit_length()

    @property
    def depth(self) -> int:
        """K·(1 + ⌈log2(1 + ⌈6/w⌉)⌉); 0 before both are planned."""
        return (self.n_hashes or 0) * self._hash_bits

    @property
    def entropy(self) -> float:
        """Bits of information in a code, fewer than its length: outer cells are rare."""
        return (self.n_hashes or 0) * _hash_entropy(self.width or 1.0)

    def planned(self, pairs: int, n_keys: int, dim: int) -> E2LSH:
        """The same part with K, w, T and the largest bucket chosen for `pairs` exact keys a query."""
        del dim
        bits, n_tables, max_bucket = self._budgeted(pairs, n_keys)
        n_hashes, width = self._sizes(bits)
        return replace(self, n_hashes=n_hashes, width=width, n_tables=n_tables, max_bucket=max_bucket)

    def _sizes(self, bits: int) -> tuple[int, float]:
        """K and w for codes of about `bits` bits of information."""
        n_hashes = self.n_hashes
        if n_hashes is None and self.width is None:
            n_hashes = min(-(-bits // 3), 4)  # 4 hashes leave each 6 bits of the code
        elif n_hashes is None:
            wanted = max(1, round(bits / _hash_entropy(self.width or 1.0))) if bits else 0
            n_hashes = min(wanted, MAX_BITS // self._hash_bits)
        if self.width is not None:
            return n_hashes, self.width
        share = max(n_hashes, 1)
        least = REACH / (2 ** (MAX_BITS // share - 1) - 1)
        return n_hashes, max(ENTROPY_WIDTH * 2.0 ** (-bits / share), least)

    def draw(self, generator: Any, dim: int, n_queries: int = 0, n_keys: int = 0) -> tuple[Any, ...]:
        """a, shape (T, K, dim + 2); b/w, shape (T, K); directions of the cuts, shape (T, dim)."""
        del n_queries, n_keys
        assert self.n_tables is not None
        normals = generator.standard_normal((self.n_tables, self.n_hashes, dim + 2))
        shifts = generator.random((self.n_tables, self.n_hashes))
        return normals, shifts, generator.standard_normal((self.n_tables, dim))

    def codes(self, xp: Namespace, draws: tuple[Array, ...], query: Array, key: Array) -> tuple[Array, Array]:
        """Codes in one table: K cells, counted from the lowest, as digits of an int."""
        normals, shifts = draws
        radius = self._radius(xp, query, key)
        return (
            self._code(xp, normals[:, :-2], normals[:, -1], shifts, query / radius),
            self._code(xp, normals[:, :-2], normals[:, -2], shifts, key / radius),
        )

    def _code(self, xp: Namespace, normals: Array, last: Array, shifts: Array, x: Array) -> Array:
        """Code of vectors in units of R, `last` the normals of the axis that holds the root."""
        if not self.n_hashes:
            return join_digits(xp, x, (), 0)
        assert self.width is not None
        projections = xp.matmul(x, xp.matrix_transpose(normals)) + lift(xp, x)[..., None] * last
        half = 2 ** (self._hash_bits - 1)
        cells = xp.clip(xp.floor(projections / self.width + shifts) + half, 0, 2 * half - 1)
        cells = xp.where(xp.isnan(cells), 0.0, cells)
        return join_digits(xp, x, (cells[..., hash_] for hash_ in range(self.n_hashes)), self._hash_bits)

    def _radius(self, xp: Namespace, query: Array, key: Array) -> Any:
        """R of every head, shape (..., 1, 1), or the one that is stated."""
        return fitted_radius(xp, query, key) if self.radius is None else self.radius

    def one_table_probability(self, xp: Namespace, query: Array, key: Array) -> Array:
        r""":math:`p_1^K` for every pair of queries and keys, with the scale folded in."""
        if self.n_hashes is None or self.width is None:
            raise ValueError(
                "n_hashes and width must be given for a collision probability, "
                f"got {self.n_hashes} and {self.width}"
            )
        radius = self._radius(xp, query, key)
        query, key = query / radius, key / radius
        # A vector beyond R keeps its own length.
        q2, k2 = (xp.maximum(xp.sum(x * x, axis=-1), 1.0) for x in (query, key))
        square = q2[..., :, None] + k2[..., None, :] - 2 * xp.matmul(query, xp.matrix_transpose(key))
        return collision_at(xp, xp.sqrt(xp.maximum(square, 0.0)) / self.width) ** self.n_hashes


def fitted_radius(xp: Namespace, query: Array, key: Array) -> Array:
    r""":math:`R = \sqrt{\max\|q\|^2 + \max\|k\|^2}` of every head, shape (..., 1, 1); 1 where that is 0."""
    squares = [xp.max(xp.sum(x * x, axis=-1), axis=-1)[..., None, None] for x in (query, key)]
    total = squares[0] + squares[1]
    return xp.sqrt(xp.where(total > 0, total, 1.0))


def lift(xp: Namespace, x: Array) -> Array:
    r"""Entry that brings vectors in units of R to length R on one more axis, :math:`\sqrt{1 - \|x\|^2}`."""
    return xp.sqrt(xp.maximum(1 - xp.sum(x * x, axis=-1), 0.0))


def collision_at(xp: Namespace, distance: Array) -> Array:
    r"""P that two vectors share a cell, their distance c in units of its width.

    With x = 1/c it is :math:`\int_0^x f(s)(1 - s/x)\,ds`, cut where :math:`f` has no more to give.
    """
    reach = 9.0
    end = 1 / xp.maximum(distance, 1 / reach)
    total = xp.zeros_like(distance)
    for z, weight in gauss_legendre(32):
        s = end * z
        total = total + weight * xp.exp(-s * s / 2) * (1 - s * distance)
    return end * total * math.sqrt(2 / math.pi)


def _hash_entropy(width: float) -> float:
    """Entropy in bits of a standard normal number in cells of this width, nearly; 0.1 at least."""
    return max(math.log2(ENTROPY_WIDTH / width), 0.1)
