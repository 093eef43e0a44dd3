"""Tables of whole columns and whole rows: keys that every query sees, and queries that see every key."""

from __future__ import annotations

from scatterbrain_core._typing import Array
from scatterbrain_core.problem import Problem
from scatterbrain_core.tables import CommonKeys, FullRows, by_position
from scatterbrain_core.tiles import integers, invert


def common_keys(problem: Problem, is_common: Array) -> CommonKeys:
    """Table of the keys, bool of shape (H, Lk) and none of them hidden, that every query sees."""
    xp = problem.xp
    position = integers(xp, problem.n_queries, problem.query)
    # These keys first, by position, so that those up to a query's own are an interval.
    head = integers(xp, problem.n_heads, position)[:, None]
    order = xp.argsort(xp.reshape(2 * head + xp.astype(~is_common, head.dtype), (-1,)), stable=True)
    count = xp.cumulative_sum(xp.astype(is_common, position.dtype), axis=1)
    last = xp.full_like(position, problem.n_keys - 1)
    if problem.is_causal:
        last = xp.minimum(position, last)
    lo = xp.broadcast_to(head * problem.n_keys, (problem.n_heads, problem.n_queries))
    hi = lo + xp.take(count, last, axis=1)
    lo, hi, is_common = (xp.reshape(x, (-1,)) for x in (lo, hi, is_common))
    return CommonKeys(order, lo[:, None], hi[:, None], invert(xp, order), (64, 16), is_common)


def full_rows(problem: Problem, is_full: Array) -> FullRows:
    """Table of the queries, bool of shape (H, Lq), that see every key."""
    xp, n_keys = problem.xp, problem.n_keys
    keys = by_position(xp, problem.n_heads, n_keys, problem.key_mask, problem.query)
    position = integers(xp, problem.n_queries, problem.query)
    end = xp.minimum(position + 1, n_keys) if problem.is_causal else xp.full_like(position, n_keys)
    is_full = xp.reshape(is_full, (-1,))
    lo = keys.slots(xp, xp.zeros_like(position))
    hi = xp.where(is_full, keys.slots(xp, end), lo)
    return FullRows(keys.key_order, lo[:, None], hi[:, None], keys.slot, (16, 64), is_full)
