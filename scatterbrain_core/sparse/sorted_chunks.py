r"""Reformer's chunks of sorted angular hashes (arXiv 2001.04451)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import HashTable, Runs, Table
from scatterbrain_core.tiles import Sorted, integers, invert, jointly_sorted, positions, power_of_two

# Measured on MiniLM-L6: rounds find more of the weight than longer chunks do, and so do buckets of 4 chunks,
# as of hashes: smaller ones leave most of the budget.
MOST_ROUNDS = 4
LEAST_CHUNK = 8
CHUNKS_A_BUCKET = 4
# With more buckets than these the projections would cost more than the pairs they save.
MOST_PLANNED = 256
MOST_CODES = 2**16


@dataclass(frozen=True, repr=False)
class SortedChunks(Support):
    r"""Exact pairs are those of one bucket that lie in one chunk, or in a chunk and the one before it.

    In each round a vector's bucket is the largest of :math:`[xR;\ -xR]`, R a matrix of standard normal
    numbers that queries and keys share, and the keys, sorted by bucket and then by position, are cut into
    chunks of m. A query has the place of the last key of its bucket that is not behind its own position, or
    else of the first: with queries equal to keys, as in Reformer, the place of its own key. It sees the keys
    of its bucket in the chunk of that place and in the one before. A pair that several rounds bring together
    counts once.

    With `is_causal` the chunks are counted from the start of each bucket instead of that of the sequence, and
    end at the query's own position: no key of the future moves a chunk. A mask that is neither of keys nor of
    queries would need chunks of each query's own, and is refused.

    Reformer is trained with keys that are its normalised queries, and keeps a token from itself; here queries
    and keys are those of the call.

    Parameters
    ----------
    chunk_size : int, optional
        m; a query sees 2m keys a round at most. By default the budget of the call chooses it.
    n_codes : int, optional
        Buckets of a head, an even number of at most 2**16; hashing takes time in proportion. By default the
        budget chooses them, at most 256, so that one holds about twice as many keys as two chunks; Reformer
        has :math:`2n/m`, a quarter of that.
    n_rounds : int, optional
        Rounds; by default up to 4, as many as have chunks of 8 keys. The far field of one needs no
        subtraction.

    References
    ----------
    Kitaev, Kaiser, Levskaya, *Reformer: The Efficient Transformer*, arXiv 2001.04451, section 2.
    """

    chunk_size: int | None = None
    n_codes: int | None = None
    n_rounds: int | None = None

    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_count(self, "chunk_size", at_least=1)
        set_count(self, "n_codes", at_least=2, at_most=MOST_CODES)
        set_count(self, "n_rounds", at_least=1)
        if self.n_codes is not None and self.n_codes % 2:
            raise ValueError(f"n_codes must be even, two for each axis, got {self.n_codes}")

    @property
    def reason_not_masked(self) -> str | None:
        """It sorts; only the past of a causal call keeps its chunks whatever is hidden."""
        return "sort all keys into chunks"

    @property
    def is_open(self) -> bool:
        """Whether the chunks are left to the budget."""
        return self.chunk_size is None

    @property
    def table_count(self) -> int:
        """Rounds."""
        return self.n_rounds or 1

    @property
    def least_pairs(self) -> int:
        """Two chunks of a key a round."""
        return 2 * self.table_count

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The most that two chunks a round hold."""
        del n_queries
        return min(2 * (self.chunk_size or 0), n_keys) * self.table_count

    @property
    def depth(self) -> int:
        """Bits of a code."""
        return ((self.n_codes or 2) - 1).bit_length()

    @property
    def n_buckets(self) -> int:
        """Leaves of the tree of codes."""
        return 2**self.depth

    def planned(self, pairs: int, n_keys: int, dim: int) -> SortedChunks:
        """The same part with chunks and buckets for `pairs` exact keys a query, if it says none."""
        del dim
        n_rounds = self.n_rounds or min(MOST_ROUNDS, max(1, pairs // (2 * LEAST_CHUNK)))
        size = self.chunk_size or max(1, pairs // (2 * n_rounds))
        n_axes = round(n_keys / (2 * CHUNKS_A_BUCKET * size))
        n_codes = self.n_codes or 2 * min(max(1, n_axes), MOST_PLANNED // 2)
        return replace(self, chunk_size=size, n_codes=n_codes, n_rounds=n_rounds)

    def draw(self, generator: Any, dim: int, n_queries: int, n_keys: int) -> tuple[Any, ...]:
        """R of each round, shape (n_rounds, dim, n_codes / 2)."""
        del n_queries, n_keys
        assert self.n_codes is not None
        return (generator.standard_normal((self.n_rounds, dim, self.n_codes // 2)),)

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Near what the queries of a chunk see."""
        size = min(self.chunk_size or n_keys, n_keys)
        n_chunks = math.ceil(n_keys / max(size, 1))
        return power_of_two(n_queries // max(n_chunks, 1), 8, 64), power_of_two(size, 16, 64)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """A table a round."""
        assert self.chunk_size is not None
        # No larger than the sequence, so that no sum leaves the integers.
        size = min(self.chunk_size, problem.n_keys)
        chunks = self._from_buckets if problem.is_causal else self._from_heads
        rounds = (draws[0][round_, ...] for round_ in range(draws[0].shape[0]))
        return [chunks(problem, *self._sorted(problem, normals), size) for normals in rounds]

    def _sorted(self, problem: Problem, normals: Array) -> tuple[Sorted, Array, Array]:
        """Queries and keys by bucket and position, and the buckets of both by row."""
        xp, constant = problem.xp, problem.backend.stop_gradient
        query_code, key_code = (_codes(xp, constant(x), normals) for x in (problem.query, problem.key))
        n_buckets = self.n_buckets
        if problem.key_mask is not None:
            # Hidden keys go to a bucket of their own, which no query looks into.
            key_code = xp.where(problem.key_mask, key_code, n_buckets)
            n_buckets *= 2  # the buckets of a head stay a tree
        head = integers(xp, problem.n_heads, key_code)[:, None] * n_buckets
        buckets = [xp.reshape(head + code, (-1,)) for code in (key_code, query_code)]
        ranks = [positions(xp, problem.n_heads, code.shape[1], code) for code in (key_code, query_code)]
        return jointly_sorted(problem.backend, *buckets, *ranks), *buckets

    def _from_buckets(
        self, problem: Problem, joint: Sorted, key_bucket: Array, query_bucket: Array, size: int
    ) -> Table:
        """Chunks from the start of each bucket, up to the query's own position."""
        xp = problem.xp
        place = xp.maximum(joint.rank - 1, 0)
        lo = joint.start + xp.maximum(place - place % size - size, 0)
        return HashTable(
            joint.key_order,
            lo[:, None],
            (joint.start + joint.rank)[:, None],
            invert(xp, joint.key_order),
            self.tile_shape(problem.n_queries, problem.n_keys),
            joint.key_bucket,
            joint,
            key_bucket,
            query_bucket,
            self.depth,
            2 * size,
        )

    def _from_heads(
        self, problem: Problem, joint: Sorted, key_bucket: Array, query_bucket: Array, size: int
    ) -> Table:
        """Chunks from the start of each head, as far as they are of the query's bucket."""
        del key_bucket
        xp, n_keys = problem.xp, problem.n_keys
        first = integers(xp, query_bucket.shape[0], query_bucket) // problem.n_queries * n_keys
        place = joint.start + xp.maximum(joint.rank - 1, 0)
        own = place - (place - first) % size
        edges = xp.maximum(joint.start, own - size), xp.minimum(joint.stop, own + size)
        # Nothing is seen at the start of a head, no edge of which is that of another.
        lo, hi = (xp.where(joint.start < joint.stop, edge, first)[:, None] for edge in edges)
        tile = self.tile_shape(problem.n_queries, n_keys)
        return Runs(
            joint.key_order, lo, hi, invert(xp, joint.key_order), tile, _runs(xp, joint, n_keys, size)
        )


def _codes(xp: Namespace, x: Array, normals: Array) -> Array:
    """Index of the largest of [xR; -xR], shape (H, L)."""
    rotated = xp.matmul(x, normals)
    return xp.argmax(xp.concat([rotated, -rotated], axis=-1), axis=-1)


def _runs(xp: Namespace, joint: Sorted, n_keys: int, size: int) -> Array:
    """Ascending numbers of the keys of one bucket in one chunk, chunks counted from the start of a head."""
    slots = integers(xp, joint.key_bucket.shape[0], joint.key_bucket)
    starts = slots == xp.searchsorted(joint.key_bucket, joint.key_bucket, side="left")
    starts = starts | (slots % n_keys % size == 0)
    return xp.cumulative_sum(xp.astype(starts, slots.dtype))
