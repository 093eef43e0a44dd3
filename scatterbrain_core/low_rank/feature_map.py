"""What every feature map gives, and what its rows are to the tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial


class Kernel(Protocol):
    """How feature rows of queries and keys become weights φ(q)·φ(k). Rows are opaque to the tiles."""

    is_positive: bool

    def group(self, xp: Namespace, rows: Array, features: slice) -> Array:
        """Rows with some of the features alone."""
        ...

    def hide(self, xp: Namespace, rows: Array, visible: Array) -> Array:
        """Rows whose weights are zero where `visible`, shape (..., L), is False."""
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


@dataclass(frozen=True, repr=False)
class FeatureMap(ABC):
    """Base of all feature maps.

    Parameters
    ----------
    n_features : int, optional
        m, the rank. By default the budget of the call chooses it.
    """

    n_features: int | None = None

    is_random: ClassVar[bool] = True
    kernel: ClassVar[Kernel]

    def __post_init__(self) -> None:
        set_count(self, "n_features", at_least=1)
        if self.n_features is not None and self.n_features % self.unit:
            raise ValueError(
                f"n_features must be even, two features a row of W, got {self.n_features} for "
                f"{type(self).__name__}"
            )

    def __repr__(self) -> str:
        """The call that makes it, without what is left at its default."""
        stated = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in stated)})"

    @property
    def unit(self) -> int:
        """Features that one row of W makes: no group of independent features is smaller."""
        return 1

    @property
    def is_fitted(self) -> bool:
        """Whether it takes statistics of all queries and keys of a head."""
        return False

    @property
    def is_open(self) -> bool:
        """Whether the rank is left to the budget."""
        return self.n_features is None

    def planned(self, rank: int, dim: int) -> FeatureMap:
        """The same map with its rank chosen: `n_features` if given, else `rank`."""
        del dim
        if self.n_features is not None:
            return self
        return replace(self, n_features=max(self.unit, rank - rank % self.unit))

    @abstractmethod
    def draw(self, generator: Any, dim: int) -> tuple[Any, ...]:
        """Host arrays that the map draws, from NumPy's generator."""

    def fit(
        self, xp: Namespace, query: Array, key: Array, row_mask: Array | None, key_mask: Array | None
    ) -> Any:
        """Statistics of queries (H, Lq, D) and keys (H, Lk, D), by head; None unless `is_fitted`."""
        del xp, query, key, row_mask, key_mask

    @abstractmethod
    def query_rows(self, xp: Namespace, drawn: tuple[Array, ...], fitted: Any, x: Array) -> Array:
        """Feature rows of queries (H, Lq, D), the 1/m of the inner product with them."""

    @abstractmethod
    def key_rows(self, xp: Namespace, drawn: tuple[Array, ...], fitted: Any, x: Array) -> Array:
        """Feature rows of keys (H, Lk, D)."""


def square_norm(xp: Namespace, x: Array) -> Array:
    """‖x‖² along the last axis, which is kept."""
    return xp.sum(x * x, axis=-1)[..., None]


def pair_products(xp: Namespace, query: Array, key: Array) -> tuple[Array, Array, Array]:
    """Logits q·k, and ‖q + k‖² and ‖q - k‖², for every pair."""
    logits = xp.matmul(query, xp.matrix_transpose(key))
    norms = square_norm(xp, query) + xp.matrix_transpose(square_norm(xp, key))
    return logits, norms + 2 * logits, norms - 2 * logits


def require_rank(n_features: int | None) -> int:
    """The rank where it is known; an error where the budget has yet to choose it."""
    if n_features is None:
        raise ValueError("n_features must be given for a variance, got None")
    return n_features
