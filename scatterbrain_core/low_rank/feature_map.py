"""Feature maps: low-rank parts whose features of a row are a function of it, and of statistics if any."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from scatterbrain_core._checks import STATISTICS, set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.low_rank.low_rank import Features, Kernel, LowRank
from scatterbrain_core.problem import Problem


@dataclass(frozen=True, repr=False)
class FeatureMap(LowRank):
    """Base of all feature maps: features of a query or key are a function of it and of the draws.

    Parameters
    ----------
    n_features : int, optional
        m, the rank. By default the budget of the call chooses it.
    """

    n_features: int | None = None

    is_random: ClassVar[bool] = True
    has_error: ClassVar[bool] = True
    kernel: ClassVar[Kernel]

    def __post_init__(self) -> None:
        set_count(self, "n_features", at_least=1)
        if self.n_features is not None and self.n_features % self.unit:
            raise ValueError(
                f"n_features must be even, two features a row of W, got {self.n_features} for "
                f"{type(self).__name__}"
            )

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

    @property
    def rank(self) -> int:
        """m, the number of features; 0 before it is planned."""
        return self.n_features or 0

    @property
    def is_positive(self) -> bool:
        """Whether all features are positive."""
        return self.kernel.is_positive

    @property
    def reason_not_causal(self) -> str | None:
        """Statistics, where it takes any."""
        return STATISTICS if self.is_fitted else None

    def planned(self, rank: int, n_keys: int, dim: int) -> Self:
        """The same map with its rank chosen: `n_features` if given, else `rank`."""
        del n_keys, dim
        if self.n_features is not None:
            return self
        return replace(self, n_features=max(self.unit, rank - rank % self.unit))

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Features of all queries and keys of a problem; statistics are constants."""
        of_queries, of_keys = self.row_functions(problem, drawn)
        key = of_keys(problem.key)
        if problem.key_mask is not None:
            key = self.kernel.hide(problem.xp, key, problem.key_mask)
        return Features(of_queries(problem.query), key, self.kernel)

    def row_functions(
        self, problem: Problem, drawn: tuple[Array, ...]
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """What gives the feature rows of any queries and of any keys of a problem's heads, (H, ·, D)."""
        xp, constant = problem.xp, problem.backend.stop_gradient
        fitted = self.fit(
            xp, constant(problem.query), constant(problem.key), problem.row_mask, problem.key_mask
        )
        return partial(self.query_rows, xp, drawn, fitted), partial(self.key_rows, xp, drawn, fitted)

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
