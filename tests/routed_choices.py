"""What the library clusters and chooses for a problem, in the names of tests/routed_oracle.py."""

from __future__ import annotations

import numpy as np

from scatterbrain_core.problem import make_problem
from scatterbrain_core.routing.layout import TILE
from scatterbrain_core.routing.solve import choose_by_chunk, in_order_of_tiles
from scatterbrain_core.routing.tree import grow


def library_choices(to_numpy, arrays, layout, **options):
    """A function from a head's number to its labels, axes, groups, tiles and choices."""
    options = {"attn_mask": None, "scale": None, "enable_gqa": False, "check_finite": True} | options
    problem = make_problem(*arrays, **options)
    tree = in_order_of_tiles(problem.xp, grow(problem, layout))
    nodes = [
        tuple(to_numpy(x) for x in (node.clusters.labels, node.clusters.axes, node.group))
        for node in tree.nodes
    ]
    chunks = list(choose_by_chunk(problem, tree))
    if tree.tiles is None:
        seen = [chunk.view and _chosen(to_numpy, chunk) for chunk in chunks]
        return lambda head: OfCausalHead(layout, nodes, head, seen)
    order = to_numpy(tree.tiles.order)
    seen = [(*_chosen(to_numpy, chunk), to_numpy(chunk.looked.column)) for chunk in chunks]
    return lambda head: OfHead(layout, nodes, head, order[head, :], seen, problem)


def _chosen(to_numpy, chunk):
    return tuple(to_numpy(x) for x in (chunk.view.logit, chunk.choice.opened, chunk.choice.split))


class OfNodes:
    """Labels and axes by block, and groups by cluster."""

    def __init__(self, layout, nodes, head):
        self.layout, self.head = layout, head
        self.labels, self.axes, self.groups = {}, {}, {}
        for number, (labels, axes, groups) in enumerate(nodes):
            n_blocks, block = labels.shape[2], layout.levels[number].block
            for run, b in np.ndindex(labels.shape[1:3]):
                place = number, (run * n_blocks + b) * block
                self.labels[place], self.axes[place] = labels[head, run, b], axes[head, run]
                self.groups |= {(*place, c): group for c, group in enumerate(groups[head, run, b])}


class OfCausalHead(OfNodes):
    """And choices by query."""

    def __init__(self, layout, nodes, head, chunks):
        super().__init__(layout, nodes, head)
        self.chunks = chunks

    def _places(self, chunk):
        """The cluster of each column of a chunk's view: the largest blocks first."""
        layout, start, places = self.layout, 0, []
        for number, level in reversed(list(enumerate(layout.levels))):
            end = chunk * layout.chunk
            if number == 0 and len(layout.levels) > 1:
                end += layout.chunk
            for first in range(start, end - level.block + 1, level.block):
                places += [(number, first, c) for c in range(level.n_fine)]
                start = first + level.block
        return places

    def choice(self, i):
        """Clusters that query i opened, and those it sees apart."""
        chunk, row = divmod(i, self.layout.chunk)
        if not self.chunks[chunk]:
            return set(), set()
        places, (logit, *chosen) = self._places(chunk), (x[self.head, row] for x in self.chunks[chunk])
        return tuple(
            {place for place, there in zip(places, x & (logit > -np.inf), strict=True) if there}
            for x in chosen
        )


class OfHead(OfNodes):
    """And tiles, what these look at, and choices by query."""

    def __init__(self, layout, nodes, head, order, chunks, problem):
        super().__init__(layout, nodes, head)
        self.place = np.argsort(order)[: problem.n_queries]
        self.tiles = [
            [i for i in order[t : t + TILE].tolist() if i < problem.n_queries]
            for t in range(0, len(order), TILE)
        ]
        # By tile, each array of all chunks together.
        n_heads = problem.n_heads
        self.seen = [tuple(x[t] for x in chunk) for chunk in chunks for t in self._own_tiles(chunk, n_heads)]

    def _own_tiles(self, chunk, n_heads):
        n_tiles = len(chunk[0]) // n_heads
        return range(self.head * n_tiles, (self.head + 1) * n_tiles)

    def _columns(self, tile):
        """The columns of the clusters that a tile looks at, by their place."""
        level, (*_, column) = self.layout.largest, self.seen[tile]
        starts = range(0, self.layout.length, level.block)
        places = [(0, start, c) for start in starts for c in range(level.n_fine)]
        n_columns = self.seen[tile][0].shape[-1] - level.n_coarse
        return {place: c for place, c in zip(places, column.tolist(), strict=True) if c < n_columns}

    def looked(self, tile):
        """Groups that a tile looks at the clusters of."""
        return {((), int(self.groups[place])) for place in self._columns(tile)}

    def choice(self, i):
        """Clusters that query i opened, and those it sees apart."""
        tile, row = divmod(int(self.place[i]), TILE)
        logit, opened, split, _ = self.seen[tile]
        there = {place: c for place, c in self._columns(tile).items() if logit[row, c] > -np.inf}
        return tuple({place for place, c in there.items() if x[row, c]} for x in (opened, split))
