"""Where a planned method has which weights, for the heads of one problem."""

from __future__ import annotations

from dataclasses import dataclass

from scatterbrain_core._typing import Array
from scatterbrain_core.tables import Table


@dataclass(frozen=True)
class Layout:
    """Exact weights on a support, low-rank ones off it, and what a method does beside.

    Attributes
    ----------
    tables : list of Table, or None
        Of the support, in order; none of them for an empty one, None for all pairs.
    double_counting : bool
        Low-rank weights on the support too.
    columns : array of int, shape (s,), or None
        Ascending positions of the sampled keys, at which low-rank weights off the support are set right.
    """

    tables: list[Table] | None
    double_counting: bool
    columns: Array | None
