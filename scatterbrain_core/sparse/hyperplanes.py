r"""Random-hyperplane hashing (SimHash): K bits a table, T tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from scatterbrain_core._checks import require_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.tiles import Sorted, Table, integers, invert, piece_size, positions, sort_jointly

MAX_BITS = 24


@dataclass(frozen=True)
class RandomHyperplanes:
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
        require_count("n_bits", self.n_bits, at_least=0, at_most=MAX_BITS)
        require_count("n_tables", self.n_tables, at_least=1)
        require_count("max_bucket", self.max_bucket, at_least=1)

    @property
    def n_buckets(self) -> int:
        """Buckets of a table; 1 before K is planned."""
        return 2 ** (self.n_bits or 0)

    @property
    def is_open(self) -> bool:
        """Whether the largest bucket is left to the budget."""
        return self.n_bits is None and self.max_bucket is None

    def planned(self, pairs: int, n_keys: int) -> RandomHyperplanes:
        """The same part with K, T and the largest bucket chosen for `pairs` exact keys a query."""
        n_tables = self.n_tables or 1
        if self.n_bits is not None:
            return replace(self, n_tables=n_tables)
        max_bucket = self.max_bucket or max(1, pairs // n_tables)
        # Measured on MiniLM-L6: buckets of about twice the limit, cut, find more than deeper codes do.
        n_bits = 0 if max_bucket >= n_keys else max(1, round(math.log2(n_keys / max_bucket)) - 1)
        return replace(self, n_bits=min(n_bits, MAX_BITS), n_tables=n_tables, max_bucket=max_bucket)

    def draw(self, generator: Any, dim: int) -> Any:
        """Projections, shape (T, K + 1, dim), on the host; the last of a table orders its buckets."""
        assert self.n_tables is not None
        assert self.n_bits is not None
        return generator.standard_normal((self.n_tables, self.n_bits + 1, dim))

    def codes(self, xp: Namespace, projections: Array, x: Array) -> Array:
        """Code of each vector in one table: K signs as the digits of an int.

        Parameters
        ----------
        projections : array, shape (K + 1, D)
        x : array, shape (..., D)
        """
        code = xp.zeros_like(x[..., 0], dtype=integers(xp, 1, x).dtype)
        if not self.n_bits:
            return code
        signs = xp.matmul(x, xp.matrix_transpose(projections[:-1, :])) >= 0
        for bit in range(self.n_bits):
            code = code * 2 + xp.astype(signs[..., bit], code.dtype)
        return code

    def collision_probability(self, xp: Namespace, query: Array, key: Array) -> Array:
        r"""P of the support, :math:`1 - (1 - (1 - θ/π)^K)^T`, for every pair.

        Parameters
        ----------
        query : array, shape (..., Lq, D)
        key : array, shape (..., Lk, D)

        Returns
        -------
        array, shape (..., Lq, Lk)
        """
        if self.n_bits is None:
            raise ValueError("n_bits must be given for a collision probability, got None")
        norms = (
            xp.linalg.vector_norm(query, axis=-1)[..., :, None]
            * xp.linalg.vector_norm(key, axis=-1)[..., None, :]
        )
        cosine = xp.matmul(query, xp.matrix_transpose(key)) / norms
        one_table = (1 - xp.acos(xp.clip(cosine, -1.0, 1.0)) / math.pi) ** self.n_bits
        return 1 - (1 - one_table) ** (self.n_tables or 1)

    def tables(
        self,
        backend: Backend,
        projections: Array,
        query: Array,
        key: Array,
        key_mask: Array | None,
        is_causal: bool,
    ) -> list[Table]:
        """Hash queries (H, Lq, D) and keys (H, Lk, D) into T tables.

        Hidden keys go to a bucket of their own in each head, which no query looks into.
        """
        query, key = backend.stop_gradient(query), backend.stop_gradient(key)
        return [
            self._table(backend.xp, projections[t, ...], query, key, key_mask, is_causal)
            for t in range(projections.shape[0])
        ]

    def _table(
        self,
        xp: Namespace,
        projections: Array,
        query: Array,
        key: Array,
        key_mask: Array | None,
        is_causal: bool,
    ) -> Table:
        n_buckets = self.n_buckets
        key_code = self.codes(xp, projections, key)
        if key_mask is not None:
            key_code = xp.where(key_mask, key_code, n_buckets)
            n_buckets += 1
        head = integers(xp, key.shape[0], key)[:, None] * n_buckets
        key_bucket = xp.reshape(head + key_code, (-1,))
        query_bucket = xp.reshape(head + self.codes(xp, projections, query), (-1,))
        key_rank, query_rank = (
            tuple(positions(xp, x.shape[0], x.shape[1], x) for x in (key, query))
            if is_causal
            else tuple(_project(xp, projections, x) for x in (key, query))
        )
        joint = sort_jointly(xp, key_bucket, query_bucket, key_rank, query_rank)
        slot = invert(xp, joint.key_order)
        interval = _latest if is_causal else _pieces
        lo, hi, run = interval(xp, joint, self.max_bucket)
        return Table(joint, run, lo, hi, slot, key_bucket, query_bucket, self.n_bits or 0, self.max_bucket)


def _project(xp: Namespace, projections: Array, x: Array) -> Array:
    return xp.reshape(xp.matmul(x, projections[-1, :]), (-1,))


def _latest(xp: Namespace, joint: Sorted, limit: int | None) -> tuple[Array, Array, Array]:
    """Interval of each query row, the latest keys of its past, and run of each slot, its bucket."""
    hi = joint.start + joint.rank
    return (joint.start if limit is None else xp.maximum(joint.start, hi - limit)), hi, joint.key_bucket


def _pieces(xp: Namespace, joint: Sorted, limit: int | None) -> tuple[Array, Array, Array]:
    """Interval of each query row and run of each slot, with buckets cut into equal pieces."""
    if limit is None:
        return joint.start, joint.stop, joint.key_bucket
    size = piece_size(xp, joint.stop - joint.start, limit)
    # A query behind the bucket's last key falls into the last piece.
    piece = xp.maximum(xp.minimum(joint.rank, joint.stop - joint.start - 1), 0) // size
    lo = xp.minimum(joint.start + piece * size, joint.stop)
    hi = xp.minimum(lo + size, joint.stop)
    bucket = joint.key_bucket
    start = xp.searchsorted(bucket, bucket, side="left")
    sizes = piece_size(xp, xp.searchsorted(bucket, bucket, side="right") - start, limit)
    rank = integers(xp, bucket.shape[0], bucket) - start
    return lo, hi, xp.cumulative_sum(xp.astype(rank % sizes == 0, rank.dtype))
