"""The backend on which the core runs to be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from scatterbrain_core.backend import Arrays, Backend
from scatterbrain_core.differentiation.tape import Node, Tape, leaf
from scatterbrain_core.differentiation.traced import (
    Traced,
    constant,
    is_variable,
    recorded,
    traced_namespace,
    untraced,
)


class TracingBackend(Backend):
    """Any backend, with its operations recorded on a tape.

    Parameters
    ----------
    backend : Backend
        Of the arrays themselves.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(traced_namespace(backend.xp))
        self.base, self.tape = backend, Tape(backend)

    def watch(self, x: Any) -> Any:
        """`x` as an array with respect to which `gradients` differentiates."""
        x = self.base.stop_gradient(x)
        return Traced(x, self.tape, leaf(tuple(x.shape)))

    def chunk_of(self, like: Any) -> int:
        """What the backend of the arrays themselves says."""
        return self.base.chunk_of(untraced(like))

    def stop_gradient(self, x: Any) -> Any:
        """A traced array as a constant."""
        return constant(x)

    def exp_below(self, logits: Any, reference: Any) -> Any:
        """exp(logits - reference), recorded; written over `logits` where nothing needs them any more."""
        if not isinstance(logits, Traced):
            return self.base.exp_below(logits, reference)
        if is_variable(reference) or (is_variable(logits) and not self.tape.is_paused):
            return self.xp.exp(logits - reference)
        return Traced(self.base.exp_below(logits.value, untraced(reference)), self.tape, logits.node)

    def segment_sum(self, rows: Any, segment: Any, n_segments: int) -> Any:
        """Sums of rows by segment, recorded: a row gets the cotangent of its segment."""
        segment = untraced(segment)

        def sums(x: Any) -> Any:
            return self.base.segment_sum(x, segment, n_segments)

        return recorded("segment_sum", sums, (lambda xp, *_: lambda g: xp.take(g, segment, axis=0),), (rows,))

    def checkpoint(
        self, function: Callable[[], Arrays], terms: Callable[[], Iterable[Arrays]] | None = None
    ) -> Arrays:
        """`function()` unrecorded; on the way back it is run again and recorded, or its terms one by one."""
        if self.tape.is_paused:
            return function()
        self.tape.is_paused = True
        try:
            outputs = function()
        finally:
            self.tape.is_paused = False
        joint = self.tape.append(
            Node((), lambda cotangents: self._run_again(terms or _once(function), cotangents))
        )
        return tuple(
            Traced(x.value, self.tape, self._output(joint, place, x.shape)) if is_variable(x) else x
            for place, x in enumerate(outputs)
        )

    def _output(self, joint: Node, place: int, shape: tuple[int, ...]) -> Node:
        def pull(cotangent: Any) -> None:
            joint.total = {**(joint.total or {}), place: cotangent}

        return self.tape.append(Node(shape, pull))

    def _run_again(self, terms: Callable[[], Iterable[Arrays]], cotangents: dict[int, Any]) -> None:
        start = len(self.tape)
        for outputs in terms():
            self.seed((outputs[place], cotangent) for place, cotangent in cotangents.items())
            self.tape.pull_back(start)

    def seed(self, cotangents: Iterable[tuple[Any, Any]]) -> None:
        """Add cotangents of traced arrays; those of constants go nowhere."""
        for x, cotangent in cotangents:
            if is_variable(x):
                x.node.add(self.base, cotangent)

    def gradients(self, cotangents: Iterable[tuple[Any, Any]], *watched: Any) -> list[Any]:
        """What the cotangents of some results come to at the watched arrays; drops what was recorded."""
        self.seed(cotangents)
        self.tape.pull_back()
        xp = self.base.xp
        return [xp.zeros_like(x.value) if x.node.total is None else x.node.total for x in watched]


def _once(function: Callable[[], Arrays]) -> Callable[[], Iterable[Arrays]]:
    return lambda: [function()]
