"""Local windows: the keys near a query's own position."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.tables import Table, Windows, by_position
from scatterbrain_core.tiles import integers, power_of_two


@dataclass(frozen=True, repr=False)
class LocalWindow(Support):
    r"""Exact pairs are those of near positions: a window that slides along with the query.

    With w = `window`, query i sees the keys :math:`i - \lfloor w/2 \rfloor \le j < i - \lfloor w/2 \rfloor +
    w`, and with `is_causal` :math:`i - w < j \le i`: w keys, fewer at the ends. Positions count from the
    first query and the first key, whatever their number, and hidden keys too.

    Parameters
    ----------
    window : int, optional
        w. By default the budget of the call chooses it.

    References
    ----------
    Beltagy, Peters, Cohan, *Longformer: The Long-Document Transformer*, arXiv 2004.05150, section 3.1.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        set_count(self, "window", at_least=1)

    @property
    def is_open(self) -> bool:
        """Whether the window is left to the budget."""
        return self.window is None

    def stated_pairs(self, n_queries: int, n_keys: int) -> int:
        """The window."""
        del n_queries
        return min(self.window or 0, n_keys)

    def planned(self, pairs: int, n_keys: int, dim: int) -> LocalWindow:
        """The same part with a window of `pairs` keys, if it has none."""
        del n_keys, dim
        return self if self.window is not None else replace(self, window=pairs)

    def tile_shape(self, n_queries: int, n_keys: int) -> tuple[int, int]:
        """Near the size of the window: a block of queries sees as many keys more as it has queries."""
        del n_queries
        size = power_of_two(min(self.window or 1, n_keys), 16, 64)
        return size, size

    def tables(self, problem: Problem, draws: tuple[Array, ...]) -> list[Table]:
        """One table, by position."""
        del draws
        assert self.window is not None
        xp, n_keys = problem.xp, problem.n_keys
        keys = by_position(xp, problem.n_heads, n_keys, problem.key_mask, problem.query)
        position = integers(xp, problem.n_queries, problem.query)
        # No wider than the sequence, so that no sum leaves the integers.
        window = min(self.window, 2 * (problem.n_queries + n_keys))
        first = position - (window - 1 if problem.is_causal else window // 2)
        lo, hi = (keys.slots(xp, xp.clip(edge, 0, n_keys))[:, None] for edge in (first, first + window))
        tile = self.tile_shape(problem.n_queries, n_keys)
        return [Windows(keys.key_order, lo, hi, keys.slot, tile, problem.n_heads)]
