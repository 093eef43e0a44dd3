"""What the library clusters and chooses for a problem, in the names of tests/routed_oracle.py."""

from __future__ import annotations

import numpy as np

from scatterbrain_core.problem import make_problem
from scatterbrain_core.routing.solve import choose_by_chunk
from scatterbrain_core.routing.tree import grow


def library_choices(to_numpy, arrays, layout, **options):
    """A function from a head's number to its labels, axes, groups and choices."""
    options = {"attn_mask": None, "scale": None, "enable_gqa": False, "check_finite": True} | options
    problem = make_problem(*arrays, **options)
    tree = grow(problem, layout)
    nodes = [
        tuple(to_numpy(x) for x in (node.clusters.labels, node.clusters.axes, node.group))
        for node in tree.nodes
    ]
    chunks = [
        chunk.view and tuple(to_numpy(x) for x in (chunk.view.logit, chunk.choice.opened, chunk.choice.split))
        for chunk in choose_by_chunk(problem, tree)
    ]
    return lambda head: OfHead(layout, nodes, chunks, head)


class OfHead:
    """Labels and axes by block, groups by cluster, choices by query."""

    def __init__(self, layout, nodes, chunks, head):
        self.layout, self.chunks, self.head = layout, chunks, head
        self.labels, self.axes, self.groups = {}, {}, {}
        for number, (labels, axes, groups) in enumerate(nodes):
            n_blocks, block = labels.shape[2], layout.levels[number].block
            for run, b in np.ndindex(labels.shape[1:3]):
                place = number, (run * n_blocks + b) * block
                self.labels[place], self.axes[place] = labels[head, run, b], axes[head, run]
                self.groups |= {(*place, c): group for c, group in enumerate(groups[head, run, b])}

    def _places(self, chunk):
        """The cluster of each column of a chunk's view: the largest blocks first."""
        layout, start, places = self.layout, 0, []
        for number, level in reversed(list(enumerate(layout.levels))):
            end = chunk * layout.chunk
            if not layout.own:
                end = layout.length
            elif number == 0 and len(layout.levels) > 1:
                end += layout.chunk
            for first in range(start, end - level.block + 1, level.block):
                places += [(number, first, c) for c in range(level.n_fine)]
                start = first + level.block
        return places

    def choice(self, i):
        """Clusters that query i opened, and those it sees apart."""
        chunk, row = divmod(i, self.layout.chunk)
        places, (logit, *chosen) = self._places(chunk), (x[self.head, row] for x in self.chunks[chunk])
        return tuple(
            {place for place, there in zip(places, x & (logit > -np.inf), strict=True) if there}
            for x in chosen
        )
