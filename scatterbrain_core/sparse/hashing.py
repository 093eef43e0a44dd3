"""What every hash family shares: T tables, their buckets, and the cut of a bucket that is too large."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from scatterbrain_core._checks import STATISTICS, set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import HashTable, Table
from scatterbrain_core.tiles import (
    Sorted,
    integers,
    invert,
    jointly_sorted,
    piece_size,
    positions,
    power_of_two,
)

MAX_BITS = 24


class Hashing(Support):
    """Exact pairs are those whose codes agree in some of T tables, each counted once.

    A family is a frozen dataclass derived from it, with the fields `n_tables`, `max_bucket` and what sizes
    its codes. A code is an int of `depth` bits, so that the buckets of a head are leaves of a binary tree.
    """

    is_random: ClassVar[bool] = True

    n_tables: int | None
    max_bucket: int | None

    @property
    @abstractmethod
    def is_sized(self) -> bool:
        """Whether all that sizes a code is stated."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Bits of a code, at most `MAX_BITS`; 0 before it is sized."""

    @abstractmethod
    def draw(self, generator: Any, dim: int, n_queries: int = 0, n_keys: int = 0) -> tuple[Any, ...]:
        """Draws from a NumPy generator, on the host: arrays with a leading axis T.

        The last, of shape (T, dim), holds the directions along which large buckets are cut.
        """

    @abstractmethod
    def codes(self, xp: Namespace, draws: tuple[Array, ...], query: Array, key: Array) -> tuple[Array, Array]:
        """Codes in one table of queries (H, Lq, D) and keys (H, Lk, D): ints, shape (H, Lq) and (H, Lk).

        Parameters
        ----------
        draws : tuple of array
            Of this table, without the direction of its cuts.
        """

    def hashed(
        self, backend: Backend, draws: tuple[Array, ...], query: Array, key: Array, *, is_cut: bool
    ) -> tuple[tuple[Array, Array], tuple[Array, Array] | None]:
        """Codes in one table of queries and of keys, and what buckets are cut along, of both, if they are.

        Parameters
        ----------
        draws : tuple of array
            Of this table.
        """
        codes = self.codes(backend.xp, draws[:-1], query, key)
        if not is_cut:
            return codes, None
        of_query, of_key = (along(backend.xp, x, draws[-1]) for x in (query, key))
        return codes, (of_query, of_key)

    @abstractmethod
    def one_table_probability(self, xp: Namespace, query: Array, key: Array) -> Array:
        """P that the codes of one table agree, for every pair, shape (..., Lq, Lk)."""

    @property
    def is_fitted(self) -> bool:
        """Whether codes depend on other rows of the head than their own."""
        return False

    @property
    def reason_not_causal(self) -> str | None:
        """Statistics, where it takes any."""
        return STATISTICS if self.is_fitted else None

    @property
    def entropy(self) -> float:
        """Bits of information in a code: about 2**entropy buckets are filled."""
        return float(self.depth)

    @property
    def n_buckets(self) -> int:
        """Codes of a table; 1 before they are sized."""
        return 2**self.depth

    @property
    def table_count(self) -> int:
        """T."""
        return self.n_tables or 1

    @property
    def is_open(self) -> bool:
        """Whether the largest bucket is left to the budget."""
        return not self.is_sized and self.max_bucket is None

    @property
    def least_pairs(self) -> int:
        """An exact key a table."""
        return self.table_count

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The most that buckets of a stated size hold."""
        del n_queries
        return 0 if self.max_bucket is None else min(self.max_bucket, n_keys) * self.table_count

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Near what a bucket holds if all are equal."""
        n_buckets = round(2**self.entropy)
        of_bucket = min(self.max_bucket or n_keys, -(-n_keys // n_buckets))
        return power_of_two(n_queries // n_buckets, 8, 64), power_of_two(of_bucket, 16, 64)

    def collision_probability(self, xp: Namespace, query: Array, key: Array) -> Array:
        r"""P of the support, :math:`1 - (1 - p_1)^T` with :math:`p_1` that of one table, for every pair.

        Parameters
        ----------
        query : array, shape (..., Lq, D)
        key : array, shape (..., Lk, D)

        Returns
        -------
        array, shape (..., Lq, Lk)
            Where `max_bucket` cuts buckets, an upper bound.

        Raises
        ------
        ValueError
            What sizes the codes is not stated.
        """
        return 1 - (1 - self.one_table_probability(xp, query, key)) ** self.table_count

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """Hash queries (H, Lq, D) and keys (H, Lk, D) into T tables.

        Hidden keys go to a bucket of their own in each head, which no query looks into. It is the first leaf
        of a second tree beside the head's own, so that no sibling subtree of a query's path holds it.
        """
        return [self._table(problem, tuple(x[t, ...] for x in draws)) for t in range(draws[-1].shape[0])]

    def _check_counts(self) -> None:
        set_count(self, "n_tables", at_least=1)
        set_count(self, "max_bucket", at_least=1)

    def _budgeted(self, pairs: int, n_keys: int) -> tuple[int, int, int | None]:
        """Bits to choose for a code, T, and the largest bucket, for `pairs` exact keys a query."""
        n_tables = self.table_count
        if self.is_sized:
            return 0, n_tables, self.max_bucket
        max_bucket = self.max_bucket or max(1, pairs // n_tables)
        # Measured on MiniLM-L6: buckets of about twice the limit, cut, find more than deeper codes do.
        bits = 0 if max_bucket >= n_keys else max(1, round(math.log2(n_keys / max_bucket)) - 1)
        return min(bits, MAX_BITS), n_tables, max_bucket

    def _table(self, problem: Problem, draws: tuple[Array, ...]) -> Table:
        xp, constant = problem.xp, problem.backend.stop_gradient
        query, key, key_mask = constant(problem.query), constant(problem.key), problem.key_mask
        n_buckets = self.n_buckets
        codes, cuts = self.hashed(problem.backend, draws, query, key, is_cut=not problem.is_causal)
        query_code, key_code = codes
        if key_mask is not None:
            key_code = xp.where(key_mask, key_code, n_buckets)
            n_buckets *= 2
        head = integers(xp, key.shape[0], key)[:, None] * n_buckets
        key_bucket = xp.reshape(head + key_code, (-1,))
        query_bucket = xp.reshape(head + query_code, (-1,))
        query_rank, key_rank = (
            (positions(xp, x.shape[0], x.shape[1], x) for x in (query, key))
            if cuts is None
            else (xp.reshape(x, (-1,)) for x in cuts)
        )
        joint = jointly_sorted(problem.backend, key_bucket, query_bucket, key_rank, query_rank)
        interval = _latest if problem.is_causal else _pieces
        lo, hi, run = interval(xp, joint, self.max_bucket)
        return HashTable(
            joint.key_order,
            lo[:, None],
            hi[:, None],
            invert(xp, joint.key_order),
            self.tile_shape(problem.n_queries, problem.n_keys),
            run,
            joint,
            key_bucket,
            query_bucket,
            self.depth,
            self.max_bucket,
        )


def along(xp: Namespace, x: Array, direction: Array) -> Array:
    """Dot products of vectors (..., D) with one direction (D,), equal for equal vectors."""
    # Not a matrix product, which may round equal rows differently: equal keys must tie, in every library.
    return xp.sum(x * direction, axis=-1)


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


def join_digits(xp: Namespace, x: Array, digits: Iterable[Array], bits: int) -> Array:
    """One int for each vector of `x` from its digits of so many bits, the first the highest."""
    code = xp.zeros_like(x[..., 0], dtype=integers(xp, 1, x).dtype)
    for digit in digits:
        code = code * 2**bits + xp.astype(digit, code.dtype)
    return code


def angle(xp: Namespace, query: Array, key: Array) -> Array:
    """Angle of every pair in [0, π]; query (..., Lq, D), key (..., Lk, D), result (..., Lq, Lk)."""
    norms = (
        xp.linalg.vector_norm(query, axis=-1)[..., :, None]
        * xp.linalg.vector_norm(key, axis=-1)[..., None, :]
    )
    return xp.acos(xp.clip(xp.matmul(query, xp.matrix_transpose(key)) / norms, -1.0, 1.0))
