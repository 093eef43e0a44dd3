"""From a budget to parts: the rank, the bits, the tables and the largest bucket."""

from __future__ import annotations

import math
from typing import Any

from scatterbrain_core._checks import require_real
from scatterbrain_core.low_rank import FeatureMap
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse import AllPairs, Hashing

# Share of the low-rank part where a method has both (the paper, section 5.2, splits 3 : 1).
LOW_RANK_SHARE = 0.25


def check_budget(budget: Any) -> float:
    """`budget` as a float in (0, 1]."""
    fraction = require_real("budget", budget, "a real number in (0, 1]")
    if not 0 < fraction <= 1:
        raise ValueError(f"budget must be in (0, 1], got {fraction}")
    return fraction


def plan(method: Scatterbrain, budget: Any, n_keys: int, dim: int) -> Scatterbrain:
    """The same method with everything chosen that its parts leave open.

    What is chosen depends on the budget, Lk and D alone, never on the data: so a head's result does not
    depend on the other heads, nor the past on the future.

    Parameters
    ----------
    budget : float
        Exact pairs + rank of the low-rank part a query, as a fraction of `n_keys`. At least one entry is
        kept; a support has at most the pairs left beside the features.
    dim : int
        D, the last axis of query and key.

    Raises
    ------
    ValueError
        The budget is not in (0, 1], or what the caller fixed leaves no pair for each table.
    """
    entries = max(1, math.floor(check_budget(budget) * n_keys))
    low_rank, sparse = method.low_rank, method.sparse
    if not isinstance(sparse, Hashing):
        return Scatterbrain(None if low_rank is None else low_rank.planned(entries, dim), sparse)
    is_open = sparse == type(sparse)() and (low_rank is None or low_rank.is_open)
    if sparse == type(sparse)() and entries >= n_keys:
        return Scatterbrain(sparse=AllPairs())
    if is_open and low_rank is not None and entries == 1:
        return Scatterbrain(low_rank=low_rank.planned(1, dim))
    if low_rank is not None:
        low_rank = low_rank.planned(max(1, round(LOW_RANK_SHARE * entries)), dim)
    pairs = entries - Scatterbrain(low_rank, sparse).rank
    if sparse.is_open and pairs < (sparse.n_tables or 1) and n_keys > 0:
        beside = "" if low_rank is None else f" beside the rank {low_rank.n_features} of {low_rank}"
        raise ValueError(
            f"budget must leave each table an exact pair{beside}, got {budget}: {entries} of {n_keys} keys "
            f"for {sparse}; raise it, or say max_bucket or the size of the codes"
        )
    return Scatterbrain(low_rank, sparse.planned(max(1, pairs), n_keys, dim))


def check_fitted(problem: Problem, method: Scatterbrain) -> None:
    """Raise where a part would take statistics of what a mask hides from some queries only."""
    if not problem.is_causal and problem.dense_mask is None:
        return
    hides = "is_causal=True" if problem.is_causal else "attn_mask"
    for name, part in (("low_rank", method.low_rank), ("sparse", method.sparse)):
        if isinstance(part, FeatureMap | Hashing) and part.is_fitted:
            raise ValueError(
                f"{name} must not take statistics of all queries and keys where {hides} hides some of them "
                f"from some queries only, got {part}"
            )


def tile_shape(problem: Problem, method: Scatterbrain) -> tuple[int, int]:
    """Queries and keys in a block: near what a bucket holds if all are equal."""
    if not isinstance(method.sparse, Hashing):
        return 64, 64
    n_buckets = round(2**method.sparse.entropy)
    keys = min(method.sparse.max_bucket or problem.n_keys, -(-problem.n_keys // n_buckets))
    return _power_of_two(problem.n_queries // n_buckets, 8, 64), _power_of_two(keys, 16, 64)


def _power_of_two(n: int, least: int, most: int) -> int:
    return min(max(1 << (max(n, 1) - 1).bit_length(), least), most)
