"""What every low-rank part gives: rows of features for queries and keys, and what they are to the tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from scatterbrain_core._checks import call_of
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse import Support


class Kernel(Protocol):
    """How feature rows of queries and keys become weights φ(q)·φ(k). Rows are opaque to the tiles."""

    is_positive: bool

    def group(self, xp: Namespace, rows: Features, features: slice) -> Features:
        """Rows of queries and keys with some of the features alone."""
        ...

    def hide(self, xp: Namespace, key: Array, visible: Array) -> Array:
        """Rows of keys whose weights are zero where `visible`, shape (..., L), is False."""
        ...

    def states(self, backend: Backend, key: Array, weighted_values: Array) -> Partial:
        """For feature c the sum of φ_c(k_j) (v_j, 1) over the keys (..., n, ·): `ref` of shape (..., m)."""
        ...

    def apply(self, backend: Backend, query: Array, states: Partial) -> Partial:
        """Sums of φ(q)·φ(k_j) (v_j, 1) for queries (..., Lq, ·), from states with `ref` (..., m)."""
        ...

    def pairs(self, backend: Backend, query: Array, key: Array, visible: Array) -> tuple[Array, Array | None]:
        """Weights of all pairs as exp(logit) or exp(logit) * factor; logit -inf where not visible."""
        ...


@dataclass(frozen=True)
class Features:
    """Feature rows of queries and keys, and what they mean.

    Attributes
    ----------
    query, key : array, shape (H, Lq, ·) and (H, Lk, ·), or flattened to rows
        Hidden keys have no weight.
    kernel : Kernel
    clustering : object
        What the labels of an `IndicatorKernel` come from: `Clusters` of an equal one are then left out of the
        low-rank sums by their labels, without a subtraction. None where they come from nothing else.
    """

    query: Array
    key: Array
    kernel: Kernel
    clustering: Any = None


class LowRank(ABC):
    """Base of all low-rank parts: weights L_ij = φ(q_i)·φ(k_j) of a rank m. A part is a frozen dataclass."""

    is_random: ClassVar[bool] = False
    """Whether anything is drawn."""
    has_error: ClassVar[bool] = False
    """Whether groups of its features are independent, so that their spread gives a standard error."""

    def __repr__(self) -> str:
        """The call that makes it, for parts whose dataclass has no repr of its own."""
        return call_of(self)

    @property
    def is_positive(self) -> bool:
        """Whether no weight is negative."""
        return True

    @property
    def reason_not_causal(self) -> str | None:
        """What it does that lets the future in, such as "take means of all keys"; None where nothing does."""
        return None

    @property
    def reason_not_masked(self) -> str | None:
        """What it does that lets in what an attn_mask hides from some queries only."""
        return self.reason_not_causal

    def reason_not_beside(self, supports: tuple[Support, ...]) -> str | None:
        """What it would do beside these sparse parts that makes no sense; None where nothing does."""
        del supports
        return None

    @property
    @abstractmethod
    def rank(self) -> int:
        """m; 0 before it is planned."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the rank is left to the budget."""

    @property
    def unit(self) -> int:
        """No group of independent features is smaller."""
        return 1

    @abstractmethod
    def planned(self, rank: int, n_keys: int, dim: int) -> Self:
        """The same part with all chosen that it leaves open, for a rank of at least 1 and at most `rank`."""

    def draw(self, generator: Any, dim: int, n_keys: int) -> tuple[Any, ...]:
        """Host arrays that the part draws, from NumPy's generator."""
        del generator, dim, n_keys
        return ()

    @abstractmethod
    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Features of all queries (H, Lq, D) and keys (H, Lk, D) of a problem; hidden keys have no weight."""
