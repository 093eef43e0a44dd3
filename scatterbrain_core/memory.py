"""`max_memory`: what a call may take beside its arguments and its result, and pieces that keep to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from scatterbrain_core._checks import as_index, type_name
from scatterbrain_core.estimator import elements_of_head
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import CHUNK, MOST_CLUSTERS, TILE
from scatterbrain_core.sparse.routed_clusters import RoutedClusters

# Measured over every preset and held to by a test. Numbers in the dtype that is worked in: for each of a
# head's rows, visits and states; for each number of a temporary; and of what does not grow.
OF_ROWS, OF_VISITS, OF_STATES, OF_TEMPORARY, FIXED = 4, 2, 1, 4, 2**22
# Bytes of a row's indices in a table, of a pair in one of all pairs, of an entry that `auto` may open.
OF_INDICES, OF_PAIR, OF_ENTRY = 128, 3, 6
# Numbers of what a chunk of queries sees of each cluster and of groups, while it chooses.
OF_VIEW = 20
# Elements of the smallest temporaries: with smaller ones a call is mostly overhead.
LEAST_TEMPORARY = 2**16


def within(problem: Problem, method: Scatterbrain, max_memory: Any) -> Problem:
    """The problem of a planned method on a backend that takes so many bytes at most.

    Raises
    ------
    TypeError, ValueError
        `max_memory` is no int, or less than one head at a time takes.
    """
    limit = as_index(max_memory)
    if limit is None:
        raise TypeError(f"max_memory must be an int or None, got {type_name(max_memory)}")
    beside = _bytes_beside_heads(problem)
    chunk = problem.backend.chunk_of(problem.like)
    smallest = min(chunk, LEAST_TEMPORARY)
    least = beside + bytes_of_head(problem, method, smallest)
    if limit < least:
        told = f"at least {least} bytes for this call, one head at a time"
        raise ValueError(f"max_memory must be {told}, got {limit}")
    while chunk > smallest and beside + bytes_of_head(problem, method, chunk) > limit:
        chunk = max(smallest, chunk // 2)
    most_heads = (limit - beside) // bytes_of_head(problem, method, chunk)
    return replace(problem, backend=problem.backend.within(chunk, most_heads))


def bytes_of_head(problem: Problem, method: Scatterbrain, chunk_elements: int) -> int:
    """At most what one head takes, with temporaries of so many elements."""
    rows, visits, states, pairs = elements_of_head(problem, method)
    numbers = OF_ROWS * rows + OF_VISITS * visits + OF_STATES * states + OF_TEMPORARY * chunk_elements + FIXED
    n_tables = max(1, sum(part.table_count for part in method.supports))
    indices = OF_INDICES * (problem.n_queries + problem.n_keys) * n_tables + OF_PAIR * pairs
    if isinstance(method.sparse, RoutedClusters) and method.sparse.entries is not None:
        indices += int(OF_ENTRY * method.sparse.entries) * problem.n_queries
        n_rows = min(CHUNK, problem.n_queries + TILE)
        numbers += OF_VIEW * n_rows * min(MOST_CLUSTERS, problem.n_keys + TILE)
    return problem.item_size * numbers + indices


def _bytes_beside_heads(problem: Problem) -> int:
    """Of putting the output together and casting it to half precision; or of what was checked before."""
    backend, is_half = problem.backend, problem.half is not None
    n_bytes = problem.n_heads * problem.n_queries * problem.dim_value * problem.item_size
    joined = backend.joined_bytes(n_bytes) + (n_bytes if is_half else 0)
    if not is_half and problem.key_mask is None and problem.row_mask is None:
        return joined  # the check copied nothing
    n_entries = sum(math.prod(x.shape) for x in problem.arrays)
    return max(joined, min(n_entries * problem.item_size, backend.checked_bytes(problem.item_size)))
