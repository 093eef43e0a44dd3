"""What every sparse part gives: tables of the keys that each query sees exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, Self

from scatterbrain_core._checks import call_of
from scatterbrain_core._typing import Array
from scatterbrain_core.problem import Problem
from scatterbrain_core.tables import Table


class Support(ABC):
    """Base of all sparse parts: sets of exact pairs. A part is a frozen dataclass."""

    is_random: ClassVar[bool] = False
    """Whether anything is drawn."""

    def __repr__(self) -> str:
        """The call that makes it, for parts whose dataclass has no repr of its own."""
        return call_of(self)

    @property
    def reason_not_causal(self) -> str | None:
        """What it does that lets the future in, such as "sort all keys"; None where nothing does."""
        return None

    @property
    def reason_not_masked(self) -> str | None:
        """What it does that lets in what an attn_mask hides from some queries only."""
        return self.reason_not_causal

    @property
    def is_open(self) -> bool:
        """Whether the number of its pairs is left to the budget."""
        return False

    @property
    def is_default(self) -> bool:
        """Whether it says nothing of itself: with a budget of all keys it is every pair."""
        stated = (f for f in fields(self) if getattr(self, f.name) != f.default)  # type: ignore[arg-type]
        return self.is_open and not any(stated)

    @property
    def least_pairs(self) -> int:
        """Exact keys a query of the least form that an open part may be planned to."""
        return 1

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """Exact keys a query, on average, by what a part says itself; 0 where the data decide."""
        del n_queries, n_keys
        return 0

    @property
    def n_visits(self) -> int:
        """The most intervals of a query in one table of a planned part."""
        return 1

    @property
    def table_count(self) -> int:
        """Tables of a planned part."""
        return 1

    @property
    def is_matrix(self) -> bool:
        """Whether a table holds every pair of a query and a key."""
        return False

    @property
    def columns_of_key(self) -> int:
        """Numbers that a planned part gives every key at a time while it lays out its table."""
        return 0

    @property
    def n_buckets(self) -> int:
        """Groups of a head's keys whose edges no block of them crosses."""
        return 1

    @abstractmethod
    def planned(self, pairs: int, n_keys: int, dim: int) -> Self:
        """The same part with all chosen that it leaves open.

        Parameters
        ----------
        pairs : int
            Exact keys a query, at least `least_pairs` where the part is open.
        n_keys, dim : int
            Lk and D.
        """

    def draw(self, generator: Any, dim: int, n_queries: int, n_keys: int) -> tuple[Any, ...]:
        """Host arrays that a planned part draws, from NumPy's generator; integers stay integers."""
        del generator, dim, n_queries, n_keys
        return ()

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Queries and keys in a block of a planned part."""
        del n_queries, n_keys
        return 64, 64

    @abstractmethod
    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """Tables of a planned part for all heads of a problem.

        What they are made from queries and keys is a choice without a derivative: take `stop_gradient` of
        both.
        """
