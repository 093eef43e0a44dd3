"""What a table of results says, put into words from its own figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scatterbrain_core.cli.console import share
from scatterbrain_core.cli.measure import EXACT, Row

if TYPE_CHECKING:
    from collections.abc import Sequence


def reading(rows: Sequence[Row]) -> list[str]:
    """Return the reading of a table: the best method at each budget, then how good the best is.

    Parameters
    ----------
    rows : sequence of Row
        Exact attention first.
    """
    exact, *others = rows
    if exact.method != EXACT:
        raise ValueError(f"rows must start with {EXACT!r}, got {exact.method!r}")
    return [_best_at_each_budget(others), _verdict(exact, others)] if others else []


def _best_at_each_budget(rows: Sequence[Row]) -> str:
    wins: dict[str, list[str]] = {}
    for budget in sorted({row.budget for row in rows if row.budget is not None}):
        best = min((row for row in rows if row.budget == budget), key=lambda row: row.error)
        wins.setdefault(best.method, []).append(f"{share(budget)} ({best.error:.2g})")
    told = "; ".join(f"{method} at {', '.join(where)}" for method, where in wins.items())
    return f"Smallest output error: {told}."


def _verdict(exact: Row, rows: Sequence[Row]) -> str:
    best = min(rows, key=lambda row: row.error)
    told = [f"The best of all, {best.name}, {_quality(best.error)}"]
    worse = sum(row.error >= 1 for row in rows)
    if worse:
        told.append(f"{worse} of {len(rows)} rows {_verb(worse)} no better than an output of zeros (error 1)")
    if best.cosines:
        closest = max(rows, key=lambda row: row.cosine)
        told.append(f"the closest embedding, {closest.name}, has cosine {closest.cosine:.3f}")
    faster = sum(row.seconds < exact.seconds for row in rows)
    told.append(f"{faster or 'none'} of {len(rows)} rows {_verb(faster)} faster than exact")
    return "; ".join(told) + "."


def _verb(count: int) -> str:
    return "is" if count < 2 else "are"


def _quality(error: float) -> str:
    limits = (
        (0.02, "is close to exact"),
        (0.1, "is a fair approximation"),
        (0.3, "is a rough approximation"),
    )
    words = next((words for limit, words in limits if error < limit), "is far from exact")
    return f"{words} (error {error:.2g})"
