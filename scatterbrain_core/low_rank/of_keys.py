"""What the low-rank parts share that are made from the keys of a call: a size, which is their rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from scatterbrain_core._checks import set_count
from scatterbrain_core.low_rank.low_rank import LowRank


@dataclass(frozen=True, repr=False)
class OfKeys(LowRank):
    """Base of low-rank parts with as many features as they make of the keys: segments, clusters, columns."""

    size_name: ClassVar[str]
    """Name of the parameter that is the rank, None to leave it to the budget."""

    def __post_init__(self) -> None:
        set_count(self, self.size_name, at_least=1)

    @property
    def is_open(self) -> bool:
        """Whether the rank is left to the budget."""
        return getattr(self, self.size_name) is None

    @property
    def rank(self) -> int:
        """m; 0 before it is planned."""
        return getattr(self, self.size_name) or 0

    def planned(self, rank: int, n_keys: int, dim: int) -> Self:
        """The same part with its rank chosen; an error where it says one larger than the number of keys."""
        del dim
        if self.is_open:
            return replace(self, **{self.size_name: max(1, min(rank, n_keys))})
        if self.rank > n_keys:
            raise ValueError(
                f"{self.size_name} must be at most the number of keys, {n_keys}, got {self.rank}"
            )
        return self
