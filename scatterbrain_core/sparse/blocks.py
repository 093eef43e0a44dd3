"""BigBird's blocks: a window of blocks, and a few more at random (arXiv 2007.14062)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import Positions, Table, Windows, by_position
from scatterbrain_core.tiles import gather, integers, power_of_two

# Blocks are drawn as remainders of numbers below this, which 32 bits hold.
DRAWN_BELOW = 2**31


@dataclass(frozen=True, repr=False)
class Blocks(Support):
    r"""Exact pairs are those of a block of queries with a window of blocks of keys, and with a few at random.

    With positions cut into blocks of b, w = `n_window` and r = `n_random`, the queries of block t see the
    blocks of keys :math:`t - \lfloor w/2 \rfloor \le s < t - \lfloor w/2 \rfloor + w`, and r different ones
    drawn from the others, alike in all heads. With `is_causal` the window is :math:`t - w < s \le t`, the
    others are those before it, and of its own block a query sees the keys up to its own position. Near the
    start, and where there are few keys, there are fewer. Positions count from the first query and the first
    key, whatever their number, and hidden keys too, but for those behind the last that is visible. BigBird's
    global blocks are `GlobalTokens`.

    Parameters
    ----------
    block_size : int, optional
        b. By default the budget of the call chooses it.
    n_window : int
        w.
    n_random : int
        r.

    References
    ----------
    Zaheer et al., *Big Bird: Transformers for Longer Sequences*, arXiv 2007.14062, section 2 and appendix D.
    """

    block_size: int | None = None
    n_window: int = 3
    n_random: int = 3

    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_count(self, "block_size", at_least=1)
        for name, at_least in (("n_window", 1), ("n_random", 0)):
            set_count(self, name, at_least=at_least)
            if getattr(self, name) is None:
                raise TypeError(f"{name} must be an int of at least {at_least}, got None")

    @property
    def is_open(self) -> bool:
        """Whether the size is left to the budget."""
        return self.block_size is None

    @property
    def least_pairs(self) -> int:
        """Blocks of a key."""
        return self.n_window + self.n_random

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The blocks of a query."""
        del n_queries
        return min((self.block_size or 0) * self.least_pairs, n_keys)

    @property
    def n_visits(self) -> int:
        """The random blocks, in a table of their own."""
        return max(1, self.n_random)

    def planned(self, pairs: int, n_keys: int, dim: int) -> Blocks:
        """The same part with blocks for `pairs` exact keys a query, if it says no size."""
        del n_keys, dim
        return replace(self, block_size=self.block_size or max(1, pairs // self.least_pairs))

    def draw(self, generator: Any, dim: int, n_queries: int, n_keys: int) -> tuple[Any, ...]:
        """Ints below 2**31, shape (blocks of queries, r); those of more queries begin with those of fewer."""
        del dim, n_keys
        assert self.block_size is not None
        return (generator.integers(0, DRAWN_BELOW, (-(-n_queries // self.block_size), self.n_random)),)

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Near the size of a block."""
        size = self.block_size or 1
        return power_of_two(min(size, n_queries), 16, 64), power_of_two(min(size, n_keys), 16, 64)

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """A table of the window, and one of the random blocks, where there are any."""
        assert self.block_size is not None
        xp, n_keys = problem.xp, problem.n_keys
        # No larger than the sequence, so that no product leaves the integers.
        size = min(self.block_size, max(problem.n_queries, n_keys))
        keys = by_position(xp, problem.n_heads, n_keys, problem.key_mask, problem.query)
        tile = self.tile_shape(problem.n_queries, n_keys)
        n_blocks = (_length(problem) + size - 1) // size
        window = self._window(problem, size, n_blocks)
        lo, hi = (_slots(problem, keys, size, edge[..., None]) for edge in window)
        if problem.is_causal:
            end = xp.minimum(1 + integers(xp, problem.n_queries, lo), n_keys)
            hi = keys.slots(xp, end)[:, None]
        of_window = Windows(keys.key_order, lo, hi, keys.slot, tile, problem.n_heads)
        if not self.n_random:
            return [of_window]
        others = _others(xp, draws[0], window, n_blocks, problem.is_causal)
        edges = (xp.where(others < 0, 0, others + more) for more in (0, 1))
        lo, hi = (_slots(problem, keys, size, edge) for edge in edges)
        return [of_window, Table(keys.key_order, lo, hi, keys.slot, tile)]

    def _window(self, problem: Problem, size: int, n_blocks: Array) -> tuple[Array, Array]:
        """Blocks of keys [lo, hi) in the window of each block of queries, shape (H, blocks of queries)."""
        xp = problem.xp
        block = integers(xp, -(-problem.n_queries // size), n_blocks) + xp.zeros_like(n_blocks)
        width = min(self.n_window, 2 * (problem.n_queries + problem.n_keys))
        first = block - (width - 1 if problem.is_causal else width // 2)
        lo, hi = (xp.minimum(xp.maximum(edge, 0), n_blocks) for edge in (first, first + width))
        return lo, hi


def _slots(problem: Problem, keys: Positions, size: int, block: Array) -> Array:
    """Slots where blocks of keys begin, shape (H, blocks of queries, R), by query row: (H·Lq, R)."""
    xp, n_keys = problem.xp, problem.n_keys
    head = integers(xp, problem.n_heads, block)[:, None, None]
    place = head * (n_keys + 1) + xp.minimum(block * size, n_keys)
    slot = head * n_keys + gather(xp, xp.reshape(keys.n_before, (-1,)), place)
    of_query = integers(xp, problem.n_queries, block) // size
    return xp.reshape(xp.take(slot, of_query, axis=1), (-1, block.shape[-1]))


def _others(
    xp: Namespace, drawn: Array, window: tuple[Array, Array], n_blocks: Array, is_causal: bool
) -> Array:
    """Blocks of keys at random outside the windows, causal before them; -1 where there are fewer."""
    lo, hi = window
    number = different_numbers(xp, drawn, lo if is_causal else n_blocks - (hi - lo))
    return xp.where(number < lo[..., None], number, number + (hi - lo)[..., None])


def _length(problem: Problem) -> Array:
    """Position behind the last visible key of each head, shape (H, 1): blocks of padding are not drawn."""
    xp = problem.xp
    behind = 1 + integers(xp, problem.n_keys, problem.query)
    behind = xp.broadcast_to(behind[None, :], problem.key.shape[:2])
    seen = behind if problem.key_mask is None else xp.where(problem.key_mask, behind, 0)
    return xp.max(seen, axis=-1, keepdims=True)


def different_numbers(xp: Namespace, drawn: Array, count: Array) -> Array:
    """Of each row different numbers below its count, all sets of them alike likely; -1 where there are fewer.

    Floyd's algorithm: draw one of the numbers up to a top that rises; if it was drawn before, take the top.

    Parameters
    ----------
    drawn : array of int, shape (n, r)
    count : array of int, shape (..., n)

    Returns
    -------
    array of int, shape (..., n, r)
    """
    chosen: list[Array] = []
    for n in range(drawn.shape[1]):
        top = count - drawn.shape[1] + n
        number = drawn[:, n] % xp.maximum(top + 1, 1)
        for before in chosen:
            number = xp.where(number == before, top, number)
        chosen.append(xp.where(top < 0, -1, number))
    return xp.stack(chosen, axis=-1)
