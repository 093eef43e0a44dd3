"""From a budget to parts: the rank, and the pairs of each sparse part."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from scatterbrain_core._checks import require_real
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import lay_out
from scatterbrain_core.sparse import AllPairs, RoutedClusters, Support

# Share of the low-rank part where a method has both (the paper, section 5.2, splits 3 : 1).
LOW_RANK_SHARE = 0.25


def check_budget(budget: Any) -> float:
    """`budget` as a float in (0, 1]."""
    fraction = require_real("budget", budget, "a real number in (0, 1]")
    if not 0 < fraction <= 1:
        raise ValueError(f"budget must be in (0, 1], got {fraction}")
    return fraction


def plan(method: Scatterbrain, budget: Any, n_queries: int, n_keys: int, dim: int) -> Scatterbrain:
    """The same method with everything chosen that its parts leave open.

    What is chosen depends on the budget, the lengths and D alone, never on the data: so a head's result does
    not depend on the other heads, nor the past on the future.

    Parameters
    ----------
    budget : float
        Exact pairs + rank of the low-rank part a query, as a fraction of `n_keys`. At least one entry is
        kept. What the parts state themselves is taken off first; of what is left an open low-rank part gets
        `LOW_RANK_SHARE`, and the open sparse parts share the rest equally.
    dim : int
        D, the last axis of query and key.

    Raises
    ------
    ValueError
        The budget is not in (0, 1], or less than the least form of the parts takes.
    """
    if isinstance(method.sparse, RoutedClusters):
        return replace(method, sparse=method.sparse.planned(check_budget(budget), n_keys))
    entries = max(1, math.floor(check_budget(budget) * n_keys))
    low_rank, supports = method.low_rank, method.supports
    whole = _without_a_split(method, entries, n_keys, dim)
    if whole is not None:
        return whole
    stated = [part.stated_pairs(n_queries, n_keys) for part in supports if not part.is_open]
    least = [_least_pairs(part, n_queries, n_keys, dim) for part in supports if part.is_open]
    left = entries - sum(stated) - (method.debias or 0)
    if low_rank is not None:
        low_rank = low_rank.planned(_rank(left, stated, least), n_keys, dim)
    pairs = left - (0 if low_rank is None else low_rank.rank)
    is_rank_open = method.low_rank is not None and method.low_rank.is_open
    if n_queries == 0:  # no query costs anything
        pairs = max(pairs, sum(least))
    elif n_keys > 0 and (pairs < sum(least) if least else is_rank_open and left < 1):
        raise _too_small(method, budget, entries, n_keys, entries - left + sum(least), dim)
    shares = iter(_shares(pairs, least))
    planned = [
        _largest_form(part, next(shares), n_queries, n_keys, dim)
        if part.is_open
        else part.planned(0, n_keys, dim)
        for part in supports
    ]
    sparse = planned[0] if isinstance(method.sparse, Support) else tuple(planned) or None
    return replace(method, low_rank=low_rank, sparse=sparse)


def _least_pairs(part: Support, n_queries: int, n_keys: int, dim: int) -> int:
    """Exact keys a query of an open part's least form, by what it says itself once it is planned."""
    form = part.planned(part.least_pairs, n_keys, dim)
    return max(part.least_pairs, form.stated_pairs(n_queries, n_keys))


def _largest_form(part: Support, pairs: int, n_queries: int, n_keys: int, dim: int) -> Support:
    """An open part planned for as much as leaves what it says itself within `pairs`."""
    forms = (part.planned(size, n_keys, dim) for size in range(pairs, 0, -1))
    return next(form for form in forms if form.stated_pairs(n_queries, n_keys) <= pairs)


def _without_a_split(method: Scatterbrain, entries: int, n_keys: int, dim: int) -> Scatterbrain | None:
    """Plans of all keys or of a single entry, which no parts share; None for any other."""
    low_rank, supports = method.low_rank, method.supports
    if isinstance(method.sparse, AllPairs):
        return method
    if entries >= n_keys and any(part.is_default for part in supports) and not method.double_counting:
        return Scatterbrain(sparse=AllPairs())
    is_default = method.debias is None and all(part.is_default for part in supports)
    if entries == 1 and is_default and low_rank is not None and low_rank.is_open:
        return Scatterbrain(low_rank=low_rank.planned(1, n_keys, dim))
    return None


def _rank(left: int, stated: list[int], least: list[int]) -> int:
    """Share of an open low-rank part in what is left of the entries."""
    # A part of which only the data say how large it is counts as an open one.
    share = LOW_RANK_SHARE if least or 0 in stated else 1.0
    return max(1, min(round(share * left), left - sum(least)))


def _shares(pairs: int, least: list[int]) -> list[int]:
    """`pairs` in nearly equal shares, but for what each must have at least."""
    spare, n = max(0, pairs - sum(least)), len(least)
    return [own + spare * (i + 1) // n - spare * i // n for i, own in enumerate(least)]


def _too_small(
    method: Scatterbrain, budget: Any, entries: int, n_keys: int, pairs: int, dim: int
) -> ValueError:
    rank = 0 if method.low_rank is None else method.low_rank.planned(1, n_keys, dim).rank
    n_least = min(pairs + rank, n_keys)  # a budget of all keys is all pairs, whatever the parts
    least = math.ceil(1e4 * n_least / n_keys) / 1e4
    return ValueError(
        f"budget must be at least {least:g}, {n_least} of {n_keys} keys, for the least form of "
        f"{method}, got {budget}: {entries} of {n_keys} keys"
    )


def exact_if_affordable(problem: Problem, method: Scatterbrain) -> Scatterbrain:
    """All pairs in the place of planned clusters where they cost no more, as beside a dense mask."""
    part = method.sparse
    if not isinstance(part, RoutedClusters) or problem.is_empty:
        return method
    if problem.dense_mask is not None or part.is_exact(problem.n_queries, problem.n_keys, problem.is_causal):
        return Scatterbrain(sparse=AllPairs())
    lay_out(problem, part)  # raises where the entries are too few
    return method


def check_masked(problem: Problem, method: Scatterbrain, preset: str | None = None) -> None:
    """Raise where a part would let in what a mask hides from some queries only."""
    if not problem.is_causal and problem.dense_mask is None:
        return
    hides = "is_causal=True" if problem.is_causal else "attn_mask"
    for name, part in method.parts.items():
        reason = part.reason_not_causal if problem.is_causal else part.reason_not_masked
        if reason is not None:
            raise ValueError(
                f"{name} must not {reason} where {hides} hides some of them from some queries only, "
                f"got {part}" + ("" if preset is None else f" of method {preset!r}")
            )
