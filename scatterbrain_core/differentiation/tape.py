"""The tape: one node a recorded value, in the order in which they were made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from array_api_compat import is_writeable_array

from scatterbrain_core._typing import Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.tiles import integers, zeros

Pullback = Callable[[Any], Any]
"""From the cotangent of a result to that of one of its arguments: an array, `AtKey` or `AtRows`."""


@dataclass(frozen=True)
class AtKey:
    """A cotangent that is zero but for the region which a basic index without None names."""

    key: Any
    part: Any

    def added_to(self, backend: Backend, total: Any) -> Any:
        """`total`, which may be overwritten, with the region added."""
        if is_writeable_array(total):
            total[self.key] += self.part
            return total
        xp, shape = backend.xp, total.shape
        places = xp.reshape(integers(xp, math.prod(shape), total), shape)[self.key]
        flat = (xp.reshape(x, (-1,)) for x in (total, places, self.part))
        return xp.reshape(backend.scatter_add(*flat), shape)


@dataclass(frozen=True)
class AtRows:
    """A cotangent that is the sum of rows, each at its index; indices may repeat."""

    index: Any
    rows: Any

    def added_to(self, backend: Backend, total: Any) -> Any:
        """`total`, which may be overwritten, with the rows added."""
        return backend.scatter_add(total, self.index, self.rows)


class Node:
    """A value of the tape: where its cotangent is summed, and what hands it on.

    Parameters
    ----------
    shape : tuple of int
        Shape of the value.
    pull : callable
        Called once with the summed cotangent.
    """

    __slots__ = ("_is_own", "is_done", "pull", "shape", "total")

    def __init__(self, shape: tuple[int, ...], pull: Callable[[Any], None]) -> None:
        self.shape, self.pull = shape, pull
        self.total: Any = None
        self.is_done = False
        self._is_own = False  # whether no one else holds `total`, so that it may be overwritten

    def add(self, backend: Backend, cotangent: Any) -> None:
        """Add what one use of the value contributes."""
        assert not self.is_done, "a value was used after it was pulled back"
        if isinstance(cotangent, AtKey | AtRows):
            self.total = cotangent.added_to(backend, self._own_total(backend.xp, cotangent))
        elif self.total is None:
            self.total = cotangent
            return
        elif self._is_own:
            self.total += cotangent
        else:
            self.total = self.total + cotangent
        self._is_own = True

    def _own_total(self, xp: Namespace, cotangent: AtKey | AtRows) -> Any:
        if self._is_own:
            return self.total
        if self.total is not None:
            return self.total + 0.0
        return zeros(xp, self.shape, cotangent.part if isinstance(cotangent, AtKey) else cotangent.rows)


class Tape:
    """What was recorded, and the backend of the arrays in it.

    Attributes
    ----------
    is_paused : bool
        While set, values are computed and nothing is recorded.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.is_paused = False
        self._nodes: list[Node] = []

    def record(self, value: Any, inputs: Iterable[tuple[Node, Pullback]]) -> Node:
        """A node for `value`, with the pullback of every input that has a node."""
        inputs = tuple(inputs)

        def pull(cotangent: Any) -> None:
            for node, pullback in inputs:
                node.add(self.backend, _summed_to(self.backend.xp, pullback(cotangent), node.shape))

        return self.append(Node(value.shape, pull))

    def append(self, node: Node) -> Node:
        """The node, put at the end of the tape."""
        self._nodes.append(node)
        return node

    def __len__(self) -> int:
        return len(self._nodes)

    def pull_back(self, start: int = 0) -> None:
        """Hand the cotangents back through all nodes from `start` on, last first, and drop these nodes."""
        while len(self._nodes) > start:
            node = self._nodes.pop()
            cotangent, node.total, node.is_done = node.total, None, True
            if cotangent is not None:
                node.pull(cotangent)


def leaf(shape: tuple[int, ...]) -> Node:
    """A node that stands on no tape: its `total` is the gradient once all is pulled back."""
    return Node(shape, _stop)


def _stop(_: Any) -> None:
    pass


def _summed_to(xp: Namespace, cotangent: Any, shape: tuple[int, ...]) -> Any:
    """Adjoint of broadcasting from `shape`: the sum over the axes that were broadcast."""
    if isinstance(cotangent, AtKey | AtRows) or cotangent.shape == shape:
        return cotangent
    n_new = cotangent.ndim - len(shape)
    broadcast = tuple(
        axis for axis, n in enumerate((1,) * n_new + shape) if n == 1 and cotangent.shape[axis] != 1
    )
    return xp.reshape(xp.sum(cotangent, axis=broadcast, keepdims=True), shape)
