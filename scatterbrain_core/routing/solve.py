"""Attention by routed clusters: exact where a query opens a cluster, the other clusters as one key each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from scatterbrain_core._typing import Array
from scatterbrain_core.normalization import Partial, merge, softmax_partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import Layout, lay_out
from scatterbrain_core.routing.spending import Spending
from scatterbrain_core.routing.tree import Tree, grow, padded, view_of_chunk
from scatterbrain_core.routing.view import Choice, View, choose, far_partial, opened_pairs, rank
from scatterbrain_core.routing.visits import opened_partial, places_of
from scatterbrain_core.sparse import RoutedClusters
from scatterbrain_core.sparse.choosing import rows_at
from scatterbrain_core.tiles import integers


@dataclass(frozen=True)
class Routed:
    """Partial results of every query, `ref` of shape (H, Lq), and what they cost.

    Attributes
    ----------
    near, far : Partial
        On the exact pairs, and off them.
    pairs, rank : array, shape (H, Lq)
        Exact pairs of each query, and clusters and groups it sees as one.
    """

    near: Partial
    far: Partial
    pairs: Array
    rank: Array


@dataclass(frozen=True)
class Chunk:
    """A run of queries with what they see and chose; no view where there is no cluster to look at.

    Attributes
    ----------
    number : int
    query : array, shape (H, R, D)
    view : View or None
    choice : Choice or None
    """

    number: int
    query: Array
    view: View | None = None
    choice: Choice | None = None


def solve_routed(problem: Problem, part: RoutedClusters) -> Routed:
    """Run a problem with a planned part, a chunk of queries at a time."""
    tree = grow(problem, lay_out(problem, part))
    results = [_solve_chunk(problem, tree, chunk) for chunk in choose_by_chunk(problem, tree)]

    def together(parts: list[Array]) -> Array:
        return problem.xp.concat(parts, axis=1)[:, : problem.n_queries, ...]

    def partials(parts: list[Partial]) -> Partial:
        return Partial(together([p.ref for p in parts]), together([p.acc for p in parts]))

    return Routed(
        partials([r.near for r in results]),
        partials([r.far for r in results]),
        together([r.pairs for r in results]),
        together([r.rank for r in results]),
    )


def choose_by_chunk(problem: Problem, tree: Tree) -> Iterator[Chunk]:
    """Chunks of queries in order, each with its choice."""
    backend, size = problem.backend, tree.layout.chunk
    spending = Spending.start(problem)
    for number in range(-(-tree.query.shape[1] // size)):
        rows = slice(number * size, min((number + 1) * size, tree.query.shape[1]))
        chunk = Chunk(number, tree.query[:, rows, :])
        view = view_of_chunk(problem, tree, number, chunk.query)
        if view is None:
            yield chunk
            continue
        near, _ = _near(problem, tree, replace(chunk, query=backend.stop_gradient(chunk.query)))
        near = Partial(backend.stop_gradient(near.ref), backend.stop_gradient(near.acc))
        is_row = (
            None
            if problem.row_mask is None
            else padded(problem.xp, problem.row_mask, tree.query.shape[1])[:, rows]
        )
        allowance = spending.allowance(problem, tree.layout)
        choice, bars = choose(backend, view.constant(backend), near, is_row, allowance)
        spending = spending.after(problem, _saved(problem, tree.layout, view, choice), bars)
        yield replace(chunk, view=view, choice=choice)


def _saved(problem: Problem, layout: Layout, view: View, choice: Choice) -> Array:
    """What each query left of the entries that it might have added to its coarsest view."""
    xp = problem.xp
    nothing = choice.opened & ~choice.opened
    coarsest = rank(xp, view, Choice(nothing, nothing))
    seen = xp.where(view.logit > -math.inf, view.count[:, None, :], 0.0)
    offered = xp.minimum(xp.sum(seen, axis=-1) - coarsest, xp.full_like(coarsest, float(layout.refined)))
    return offered - (opened_pairs(xp, view, choice) + rank(xp, view, choice) - coarsest)


def _solve_chunk(problem: Problem, tree: Tree, chunk: Chunk) -> Routed:
    backend, xp, view, choice = problem.backend, problem.xp, chunk.view, chunk.choice
    near, pairs = _near(problem, tree, chunk)
    if view is None or choice is None:
        nothing = Partial(xp.full_like(near.ref, -math.inf), xp.zeros_like(near.acc))
        return Routed(near, nothing, pairs, xp.zeros_like(pairs))
    layout = tree.layout
    places = places_of(layout.chunk, layout.refined, layout.length)
    opened = opened_partial(backend, chunk.query, choice.opened, view, tree.keys, places)
    return Routed(
        merge(backend, near, opened),
        far_partial(backend, view, choice),
        pairs + opened_pairs(xp, view, choice),
        rank(xp, view, choice),
    )


def _near(problem: Problem, tree: Tree, chunk: Chunk) -> tuple[Partial, Array]:
    """The keys that are exact whatever is chosen, and how many they are."""
    first, pairs = _first_keys(problem, tree, chunk)
    if not problem.is_causal:
        return first, pairs
    own, more = _own_blocks(problem, tree, chunk)
    return merge(problem.backend, first, own), pairs + more


def _first_keys(problem: Problem, tree: Tree, chunk: Chunk) -> tuple[Partial, Array]:
    """The first keys, exact for every query behind the block of its own that they are in."""
    xp, own = problem.xp, tree.layout.own
    index, is_there = tree.first
    seen = is_there[:, None, :]
    if problem.is_causal:
        row = integers(xp, chunk.query.shape[1], chunk.query) + chunk.number * tree.layout.chunk
        seen = seen & (index[:, None, :] // own < (row // own)[:, None])
    key, weighted = (rows_at(xp, x, index) for x in (tree.key, tree.weighted_value))
    return _exact(problem, chunk.query, key, weighted, seen)


def _own_blocks(problem: Problem, tree: Tree, chunk: Chunk) -> tuple[Partial, Array]:
    """The past of every query within its own block."""
    xp, own, size = problem.xp, tree.layout.own, tree.layout.chunk
    rows = slice(chunk.number * size, (chunk.number + 1) * size)

    def blocks(x: Array) -> Array:
        return xp.reshape(x, (x.shape[0], size // own, own, *x.shape[2:]))

    key, weighted, visible = (blocks(x[:, rows, ...]) for x in (tree.key, tree.weighted_value, tree.visible))
    place = integers(xp, own, chunk.query)
    seen = (place[None, :] <= place[:, None]) & visible[:, :, None, :]
    part, pairs = _exact(problem, blocks(chunk.query), key, weighted, seen)
    shape = chunk.query.shape[:2]
    acc = xp.reshape(part.acc, (*shape, part.acc.shape[-1]))
    return Partial(xp.reshape(part.ref, shape), acc), xp.reshape(pairs, shape)


def _exact(
    problem: Problem, query: Array, key: Array, weighted_value: Array, seen: Array
) -> tuple[Partial, Array]:
    xp = problem.xp
    logits = xp.where(seen, xp.matmul(query, xp.matrix_transpose(key)), -math.inf)
    pairs = xp.sum(xp.astype(logits > -math.inf, query.dtype), axis=-1)
    return softmax_partial(problem.backend, logits, weighted_value), pairs
