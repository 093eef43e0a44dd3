"""Attention by routed clusters: exact where a query opens a cluster, the other clusters as one key each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, merge, softmax_partial
from scatterbrain_core.problem import Problem
from scatterbrain_core.routing.layout import Layout, lay_out
from scatterbrain_core.routing.query_tiles import Looked, QueryTiles, by_tile, in_order, look
from scatterbrain_core.routing.spending import Allowance, Spending, of_tiles
from scatterbrain_core.routing.tree import Tree, causal_view, grow
from scatterbrain_core.routing.view import Choice, View, choose, far_partial, opened_pairs, rank
from scatterbrain_core.routing.visits import Opened, opened_of_chunk, with_opened
from scatterbrain_core.sparse import RoutedClusters
from scatterbrain_core.sparse.choosing import rows_at
from scatterbrain_core.tiles import integers, padded


@dataclass(frozen=True)
class Routed:
    """Partial results of every query, `ref` of shape (H, Lq), and what they cost.

    Attributes
    ----------
    near : Partial
        On the exact pairs; on all where `far` is None.
    far : Partial or None
        Off them.
    pairs, rank : array, shape (H, Lq)
        Exact pairs of each query, and clusters and groups it sees as one; zeros where `far` is None.
    """

    near: Partial
    far: Partial | None
    pairs: Array
    rank: Array

    def of_queries(self, function: Callable[[Array], Array]) -> Routed:
        """The same with a function applied to every array."""

        def of(part: Partial) -> Partial:
            return Partial(function(part.ref), function(part.acc))

        far = None if self.far is None else of(self.far)
        return Routed(of(self.near), far, function(self.pairs), function(self.rank))


@dataclass(frozen=True)
class Chunk:
    """A run of queries with what they see and chose; no view where there is no cluster to look at.

    Attributes
    ----------
    number : int
    query : array, shape (H, R, D)
    near : Partial
        On the keys that are exact whatever is chosen.
    pairs : array, shape (H, R)
        How many these are.
    view : View or None
        Of each tile of the queries as of a head; where causal they are one tile.
    choice : Choice or None
    looked : Looked or None
        Where the view has columns for some clusters alone.
    """

    number: int
    query: Array
    near: Partial
    pairs: Array
    view: View | None = None
    choice: Choice | None = None
    looked: Looked | None = None


def solve_routed(problem: Problem, part: RoutedClusters, is_apart: bool = True) -> Routed:
    """Run a problem with a planned part, a chunk of queries at a time.

    Parameters
    ----------
    is_apart : bool
        Keep the two fields apart, and count pairs and rank.
    """
    tree = grow(problem, lay_out(problem, part))
    if tree.tiles is not None and not is_apart:
        seen = (tree.tiles, tree.layout, tree.keys, tree.query)
        found = problem.backend.solve_tiles(*seen, lambda: _near(problem, tree, 0, tree.query)[0])
        if found is not None:
            nothing = problem.xp.zeros_like(found.ref)
            return Routed(found, None, nothing, nothing)
    tree = in_order_of_tiles(problem.xp, tree)
    chunks = _by_chunk(problem, tree, is_apart)
    solved = _joined(problem.xp, [_with_opened(problem, tree, *batch) for batch in chunks])
    return solved.of_queries(lambda x: in_own_order(problem, tree, x))


def in_order_of_tiles(xp: Namespace, tree: Tree) -> Tree:
    """The same tree with its queries in the order of their tiles, if they have any."""
    return tree if tree.tiles is None else replace(tree, query=in_order(xp, tree.query, tree.tiles))


def in_own_order(problem: Problem, tree: Tree, x: Array) -> Array:
    """Of queries as the tree has them, (H, L, ...), those of the problem in their own order, (H, Lq, ...)."""
    xp = problem.xp
    if tree.tiles is None:
        return x[:, : problem.n_queries, ...]
    place = xp.argsort(tree.tiles.order, axis=-1)[:, : problem.n_queries]
    rows = rows_at(xp, xp.reshape(x, (*x.shape[:2], -1)), place)
    return xp.reshape(rows, (*place.shape, *x.shape[2:]))


def _by_chunk(
    problem: Problem, tree: Tree, is_apart: bool
) -> Iterator[tuple[slice, list[Routed], list[Opened]]]:
    """Results of chunks but for what they opened, and their visits; as many as a backend takes at a time."""
    width = tree.key.shape[-1] + tree.weighted_value.shape[-1]
    first = n_visits = 0
    solved: list[Routed] = []
    visits: list[Opened] = []
    for chunk in choose_by_chunk(problem, tree):
        start, last = (
            chunk.number * tree.layout.chunk,
            chunk.number * tree.layout.chunk + chunk.query.shape[1],
        )
        solved.append(_unopened(problem, chunk, is_apart))
        if chunk.view is not None and chunk.choice is not None:
            place = (start, tree.query.shape[1], problem.n_heads)
            visits.append(opened_of_chunk(problem.backend, chunk.choice.opened, chunk.view, *place))
            n_visits += visits[-1].row.shape[0]
        if last == tree.query.shape[1] or n_visits * width > problem.backend.visit_elements:
            yield slice(first, last), solved, visits
            first, n_visits, solved, visits = last, 0, [], []
        del chunk  # the next one has its memory


def _with_opened(
    problem: Problem, tree: Tree, rows: slice, solved: list[Routed], visits: list[Opened]
) -> Routed:
    """Results of some chunks, what they opened included."""
    result = _joined(problem.xp, solved)
    if not visits:
        return result
    number = (tree.layout.refined, tree.layout.length)
    near = with_opened(problem.backend, result.near, tree.query, rows, visits, tree.keys, *number)
    return replace(result, near=near)


def _joined(xp: Namespace, parts: list[Routed]) -> Routed:
    """Results of queries that follow one another."""

    def joined(arrays: list[Array]) -> Array:
        return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=1)

    def partials(several: list[Partial]) -> Partial:
        return Partial(joined([p.ref for p in several]), joined([p.acc for p in several]))

    return Routed(
        partials([part.near for part in parts]),
        None if parts[0].far is None else partials([part.far for part in parts if part.far is not None]),
        joined([part.pairs for part in parts]),
        joined([part.rank for part in parts]),
    )


def choose_by_chunk(problem: Problem, tree: Tree) -> Iterator[Chunk]:
    """Chunks of queries with their choices, in the order of the tree, that of tiles if there are any."""
    size, n_rows = tree.layout.chunk, tree.query.shape[1]
    spending = Spending.start(problem)
    for number in range(-(-n_rows // size)):
        rows = slice(number * size, min((number + 1) * size, n_rows))
        query = tree.query[:, rows, :]
        chunk = Chunk(number, query, *_near(problem, tree, number, query))
        if tree.tiles is not None:
            yield _of_tiles(problem, tree.tiles, tree.layout, chunk, rows)
            continue
        view = causal_view(problem, tree, number, query)
        if view is None:
            yield chunk
            continue
        is_row = None
        if problem.row_mask is not None:
            is_row = padded(problem.xp, problem.row_mask, n_rows)[:, rows]
        allowance = spending.allowance(problem, tree.layout)
        choice, bars = _choice(problem.backend, view, chunk.near, is_row, allowance)
        spending = spending.after(problem, _saved(problem, tree.layout, view, choice), bars)
        yield replace(chunk, view=view, choice=choice)
        del view, choice


def _of_tiles(problem: Problem, tiles: QueryTiles, layout: Layout, chunk: Chunk, rows: slice) -> Chunk:
    """A chunk with the choices of its tiles, each of which spends the mean by itself."""
    xp = problem.xp
    looked = look(problem.backend, tiles, layout, chunk.query, rows)
    near = Partial(by_tile(xp, chunk.near.ref), by_tile(xp, chunk.near.acc))
    is_row = by_tile(xp, tiles.is_row[:, rows])
    allowance = of_tiles(xp, is_row, layout, near.ref)
    choice, _ = _choice(problem.backend, looked.view, near, is_row, allowance)
    return replace(chunk, view=looked.view, choice=choice, looked=looked)


def _choice(
    backend: Backend, view: View, near: Partial, is_row: Array | None, allowance: Allowance
) -> tuple[Choice, tuple[Array, Array]]:
    near = Partial(backend.stop_gradient(near.ref), backend.stop_gradient(near.acc))
    seen = (view.constant(backend), near, is_row, allowance)
    return backend.choose(*seen, partial(choose, backend, *seen))


def _saved(problem: Problem, layout: Layout, view: View, choice: Choice) -> Array:
    """What each query left of the entries that it might have added to its coarsest view."""
    xp = problem.xp
    nothing = choice.opened & ~choice.opened
    coarsest = rank(xp, view, Choice(nothing, nothing))
    seen = xp.where(view.logit > -math.inf, view.count[:, None, :], 0.0)
    offered = xp.minimum(xp.sum(seen, axis=-1) - coarsest, xp.full_like(coarsest, float(layout.refined)))
    return offered - (opened_pairs(xp, view, choice) + rank(xp, view, choice) - coarsest)


def _unopened(problem: Problem, chunk: Chunk, is_apart: bool) -> Routed:
    """A chunk's result but for the keys of the clusters that it opened, which are counted."""
    backend, xp, view, choice = problem.backend, problem.xp, chunk.view, chunk.choice
    near, pairs = chunk.near, chunk.pairs
    clusters = xp.zeros_like(pairs)
    if view is None or choice is None:
        nothing = Partial(xp.full_like(near.ref, -math.inf), xp.zeros_like(near.acc))
        return Routed(near, nothing if is_apart else None, pairs, clusters)
    far = backend.far_partial(view, choice, partial(far_partial, backend, view, choice))
    far = Partial(xp.reshape(far.ref, near.ref.shape), xp.reshape(far.acc, near.acc.shape))
    if not is_apart:
        return Routed(merge(backend, near, far), None, clusters, clusters)
    opened, seen = (xp.reshape(f(xp, view, choice), pairs.shape) for f in (opened_pairs, rank))
    return Routed(near, far, pairs + opened, seen)


def _near(problem: Problem, tree: Tree, number: int, query: Array) -> tuple[Partial, Array]:
    """The keys that are exact for a chunk's queries whatever is chosen, and how many they are."""
    first, pairs = _first_keys(problem, tree, number, query)
    if not problem.is_causal:
        return first, pairs
    own, more = _own_blocks(problem, tree, number, query)
    return merge(problem.backend, first, own), pairs + more


def _first_keys(problem: Problem, tree: Tree, number: int, query: Array) -> tuple[Partial, Array]:
    """The first keys, exact for every query behind the block of its own that they are in."""
    xp, own = problem.xp, tree.layout.own
    index, is_there = tree.first
    seen = is_there[:, None, :]
    if problem.is_causal:
        row = integers(xp, query.shape[1], query) + number * tree.layout.chunk
        seen = seen & (index[:, None, :] // own < (row // own)[:, None])
    key, weighted = (rows_at(xp, x, index) for x in (tree.key, tree.weighted_value))
    return _exact(problem, query, key, weighted, seen)


def _own_blocks(problem: Problem, tree: Tree, number: int, query: Array) -> tuple[Partial, Array]:
    """The past of every query within its own block."""
    xp, own, size = problem.xp, tree.layout.own, tree.layout.chunk
    rows = slice(number * size, (number + 1) * size)

    def blocks(x: Array) -> Array:
        return xp.reshape(x, (x.shape[0], size // own, own, *x.shape[2:]))

    key, weighted, visible = (blocks(x[:, rows, ...]) for x in (tree.key, tree.weighted_value, tree.visible))
    place = integers(xp, own, query)
    seen = (place[None, :] <= place[:, None]) & visible[:, :, None, :]
    part, pairs = _exact(problem, blocks(query), key, weighted, seen)
    shape = query.shape[:2]
    acc = xp.reshape(part.acc, (*shape, part.acc.shape[-1]))
    return Partial(xp.reshape(part.ref, shape), acc), xp.reshape(pairs, shape)


def _exact(
    problem: Problem, query: Array, key: Array, weighted_value: Array, seen: Array
) -> tuple[Partial, Array]:
    xp = problem.xp
    logits = xp.where(seen, xp.matmul(query, xp.matrix_transpose(key)), -math.inf)
    pairs = xp.sum(xp.astype(logits > -math.inf, query.dtype), axis=-1)
    return softmax_partial(problem.backend, logits, weighted_value), pairs
