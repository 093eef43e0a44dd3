"""The far field of any support: low-rank weights off all of its tables.

What is off one table of hashes, runs or windows is summed directly, and so is what is off keys that every
query sees, or off the clusters whose labels are the features. For anything else the pairs of the tables are
subtracted from the sums over all keys, within a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scatterbrain_core.backend import Backend
from scatterbrain_core.causal import causal_far_field_of_all, causal_far_field_of_hashes, prefix_partial
from scatterbrain_core.far_field import far_field_of_all, far_field_of_runs, less_later_tables
from scatterbrain_core.low_rank import Features, IndicatorKernel
from scatterbrain_core.normalization import Partial, merge, select
from scatterbrain_core.problem import Problem
from scatterbrain_core.rows import Rows
from scatterbrain_core.tables import Clusters, CommonKeys, FullRows, HashTable, Runs, Table, Windows
from scatterbrain_core.tiles import Joint, integers, positions


def in_order(tables: Sequence[Table]) -> list[Table]:
    """Tables in the order in which a pair counts in the first that holds it.

    Those off which the far field is summed directly stand first, and those of many intervals last, as every
    later table looks up the pairs of all before it.
    """

    def place(table: Table) -> tuple[bool | int, ...]:
        kinds = ((CommonKeys, FullRows), Windows, HashTable, Runs)
        return *(not isinstance(table, kind) for kind in kinds), table.n_visits

    return sorted(tables, key=place)


def far_field(problem: Problem, tables: Sequence[Table], rows: Rows, near: Partial) -> Partial:
    """Low-rank partial result of every query row off the support.

    Parameters
    ----------
    tables : sequence of Table
        In order.
    near : Partial
        On the support; it bounds what rounding may cost.
    """
    backend = problem.backend
    others = []
    for table in tables:
        if isinstance(table, CommonKeys):
            rows = _without_keys(backend, rows, table)
        elif isinstance(table, Clusters) and _are_labels(table, rows.low_rank()):
            rows = _without_labels(backend, rows, table)
        elif not isinstance(table, FullRows):
            others.append(table)
    far = _off_others(problem, others, rows, near)
    for table in tables:
        if isinstance(table, FullRows):
            far = select(backend, ~table.is_full, far)
    return far


def _without_keys(backend: Backend, rows: Rows, table: CommonKeys) -> Rows:
    features = rows.low_rank()
    key = features.kernel.hide(backend.xp, features.key, ~table.is_common)
    return replace(rows, features=replace(features, key=key))


def _are_labels(table: Clusters, features: Features) -> bool:
    return isinstance(features.kernel, IndicatorKernel) and features.clustering == table.clustering


def _without_labels(backend: Backend, rows: Rows, table: Clusters) -> Rows:
    features = rows.low_rank()
    assert isinstance(features.kernel, IndicatorKernel)
    query = features.kernel.without(backend.xp, features.query, table.number)
    return replace(rows, features=replace(features, query=query))


def _off_others(problem: Problem, tables: Sequence[Table], rows: Rows, near: Partial) -> Partial:
    backend, xp = problem.backend, problem.xp
    first = tables[0] if tables else None
    n_done = 1
    if isinstance(first, Windows):
        far = _off_windows(backend, rows, first, problem.is_causal)
    elif isinstance(first, HashTable) and problem.is_causal:
        far = causal_far_field_of_hashes(backend, rows, first)
    elif isinstance(first, Runs) and not problem.is_causal:
        far = far_field_of_runs(backend, rows, first)
    else:
        of_all = causal_far_field_of_all if problem.is_causal else far_field_of_all
        n_done, far = 0, of_all(backend, rows)
    if len(tables) == n_done:
        return far
    seen = positions(xp, rows.n_heads, rows.n_queries, rows.query) + 1
    seen = xp.minimum(seen, rows.n_keys) if problem.is_causal else xp.full_like(seen, rows.n_keys)
    return less_later_tables(backend, rows, tables, n_done, near, far, seen)


def _off_windows(backend: Backend, rows: Rows, table: Windows, is_causal: bool) -> Partial:
    """The keys before each query's window and, not causal, those behind it: prefixes in two directions."""
    xp = backend.xp
    query_order = integers(xp, rows.query.shape[0], rows.query)
    key_head = integers(xp, rows.key.shape[0], rows.key) // rows.n_keys
    query_head = query_order // rows.n_queries
    forwards = Joint(table.key_order, key_head, query_order, query_head)
    before = prefix_partial(backend, rows, forwards, table.lo[:, 0], table.tile)
    if is_causal:
        return before
    flipped = [xp.flip(rows.n_heads - 1 - head) for head in (key_head, query_head)]
    backwards = Joint(xp.flip(table.key_order), flipped[0], xp.flip(query_order), flipped[1])
    behind = rows.key.shape[0] - table.hi[:, 0]
    return merge(backend, before, prefix_partial(backend, rows, backwards, behind, table.tile))
