"""Global tokens: keys that every query sees, and queries that see every key."""

from __future__ import annotations

from dataclasses import dataclass

from scatterbrain_core._checks import as_index, set_count, type_name
from scatterbrain_core._typing import Array
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.choosing import visible_keys
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.sparse.whole import common_keys, full_rows
from scatterbrain_core.tables import Table
from scatterbrain_core.tiles import integers


@dataclass(frozen=True, repr=False)
class GlobalTokens(Support):
    """Exact pairs are those of a few keys with all queries, and of a few queries with all keys.

    With `is_causal` or a mask each sees what it may see of the others. The low-rank part leaves these keys,
    and to these queries all keys, out of its sums: nothing is subtracted.

    Parameters
    ----------
    n_first : int
        The first keys of each head, of those that a mask of keys leaves: attention sinks.
    positions : tuple of int
        More keys, by position.
    n_queries : int
        The first queries, which see every key.

    References
    ----------
    Beltagy, Peters, Cohan, *Longformer: The Long-Document Transformer*, arXiv 2004.05150, section 3.1; Zaheer
    et al., *Big Bird: Transformers for Longer Sequences*, arXiv 2007.14062 (BigBird-ITC); Xiao et al.,
    *Efficient Streaming Language Models with Attention Sinks*, arXiv 2309.17453.
    """

    n_first: int = 1
    positions: tuple[int, ...] = ()
    n_queries: int = 0

    def __post_init__(self) -> None:
        for name in ("n_first", "n_queries"):
            set_count(self, name, at_least=0)
            if getattr(self, name) is None:
                raise TypeError(f"{name} must be an int, got NoneType")
        if not isinstance(self.positions, tuple):
            raise TypeError(f"positions must be a tuple of int, got {type_name(self.positions)}")
        numbers = [as_index(place) for place in self.positions]
        for place, number in zip(self.positions, numbers, strict=True):
            if number is None:
                raise TypeError(f"positions must be a tuple of int, got {type_name(place)} in it")
            if number < 0:
                raise ValueError(f"positions must not be negative, got {number}")
        object.__setattr__(self, "positions", tuple(numbers))
        if not (self.n_first or self.positions or self.n_queries):
            raise ValueError("n_first, positions and n_queries must not all be empty")

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The keys, and what the queries see shared among all queries."""
        n_global = min(self.n_first + len(set(self.positions)), n_keys)
        n_full = min(self.n_queries, n_queries)
        return n_global + -(-n_full * (n_keys - n_global) // max(n_queries, 1))

    def planned(self, pairs: int, n_keys: int, dim: int) -> GlobalTokens:
        """The same part; an error where a position is none of a key."""
        del pairs, dim
        for place in self.positions:
            if place >= n_keys:
                raise ValueError(f"positions must be below the number of keys, {n_keys}, got {place}")
        return self

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """A table of the keys, where there are any, and one of the queries."""
        del draws
        found: list[Table] = []
        if self.n_first or self.positions:
            found.append(self._keys(problem))
        if self.n_queries:
            found.append(self._queries(problem))
        return found

    def _keys(self, problem: Problem) -> Table:
        xp, is_visible = problem.xp, visible_keys(problem)
        position = integers(xp, problem.n_keys, problem.query)
        is_common = xp.cumulative_sum(xp.astype(is_visible, position.dtype), axis=1) <= self.n_first
        for place in self.positions:
            is_common = is_common | (position == place)[None, :]
        return common_keys(problem, is_common & is_visible)

    def _queries(self, problem: Problem) -> Table:
        is_full = integers(problem.xp, problem.n_queries, problem.query) < self.n_queries
        return full_rows(problem, problem.xp.tile(is_full, (problem.n_heads,)))
