r"""Random-hyperplane hashing (SimHash): K bits a table, T tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.sparse.hashing import MAX_BITS, Hashing, along, angle, join_digits


@dataclass(frozen=True)
class RandomHyperplanes(Hashing):
    r"""Exact pairs are those whose codes agree in some table, a code being K signs of random projections.

    Two vectors at angle θ agree in one table with probability :math:`p_1 = (1 - θ/π)^K`, and in one of T
    tables at least with :math:`p = 1 - (1 - p_1)^T`. A pair that agrees in several tables counts once.

    Parameters
    ----------
    n_bits : int, optional
        K, at most 24. By default the budget of the call chooses it, so that a bucket holds about twice as
        many keys as a query may see, and sets `max_bucket` too.
    n_tables : int, optional
        T; by default 1, whose far field needs no subtraction. At the same budget more tables find
        somewhat more of the weight and take longer.
    max_bucket : int, optional
        The most keys a query sees in one table; with `n_bits` given the default is no limit. A larger
        bucket is cut: not causal, into equal pieces along one more random projection, of which a query
        sees the one it falls into; causal, a query sees the latest `max_bucket` of its past. p above
        then is an upper bound.

    References
    ----------
    Charikar, *Similarity estimation techniques from rounding algorithms*, STOC 2002.
    """

    n_bits: int | None = None
    n_tables: int | None = None
    max_bucket: int | None = None

    def __post_init__(self) -> None:
        set_count(self, "n_bits", at_least=0, at_most=MAX_BITS)
        self._check_counts()

    @property
    def is_sized(self) -> bool:
        """Whether K is stated."""
        return self.n_bits is not None

    @property
    def depth(self) -> int:
        """K; 0 before it is planned."""
        return self.n_bits or 0

    def planned(self, pairs: int, n_keys: int, dim: int) -> RandomHyperplanes:
        """The same part with K, T and the largest bucket chosen for `pairs` exact keys a query."""
        del dim
        bits, n_tables, max_bucket = self._budgeted(pairs, n_keys)
        n_bits = bits if self.n_bits is None else self.n_bits
        return replace(self, n_bits=n_bits, n_tables=n_tables, max_bucket=max_bucket)

    def draw(self, generator: Any, dim: int, n_queries: int = 0, n_keys: int = 0) -> tuple[Any, ...]:
        """Normals of the hyperplanes, shape (T, K, dim), and directions of the cuts, shape (T, dim)."""
        del n_queries, n_keys
        assert self.n_tables is not None
        projections = generator.standard_normal((self.n_tables, self.depth + 1, dim))
        return projections[:, :-1, :], projections[:, -1, :]

    def codes(self, xp: Namespace, draws: tuple[Array, ...], query: Array, key: Array) -> tuple[Array, Array]:
        """Codes in one table: K signs as the digits of an int."""
        (normals,) = draws
        return self._code(xp, normals, query), self._code(xp, normals, key)

    def hashed(
        self, backend: Backend, draws: tuple[Array, ...], query: Array, key: Array, *, is_cut: bool
    ) -> tuple[tuple[Array, Array], tuple[Array, Array] | None]:
        """By the backend, which may take codes and projections in one pass."""
        normals, direction = draws

        def of_rows(x: Array) -> tuple[Array, Array | None]:
            def generic() -> tuple[Array, Array | None]:
                return self._code(backend.xp, normals, x), along(backend.xp, x, direction) if is_cut else None

            return backend.hyperplane_codes(x, normals, direction if is_cut else None, generic)

        (query_code, of_query), (key_code, of_key) = of_rows(query), of_rows(key)
        return (query_code, key_code), None if of_query is None or of_key is None else (of_query, of_key)

    def _code(self, xp: Namespace, normals: Array, x: Array) -> Array:
        if not self.depth:
            return join_digits(xp, x, (), 1)
        signs = xp.matmul(x, xp.matrix_transpose(normals)) >= 0
        return join_digits(xp, x, (signs[..., bit] for bit in range(self.depth)), 1)

    def one_table_probability(self, xp: Namespace, query: Array, key: Array) -> Array:
        r""":math:`(1 - θ/π)^K` for every pair."""
        if self.n_bits is None:
            raise ValueError("n_bits must be given for a collision probability, got None")
        return (1 - angle(xp, query, key) / math.pi) ** self.n_bits
