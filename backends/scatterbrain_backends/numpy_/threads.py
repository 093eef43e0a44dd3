"""Work on threads: NumPy's loops use one core each, and many small matrix products gain nothing from more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar, copy_context
from operator import itemgetter
from threading import Event, Lock, Thread
from typing import Generic, TypeVar, cast

from scatterbrain_backends.numpy_.blas import one_blas_thread, one_blas_thread_here
from scatterbrain_core.threads import get_num_threads

T = TypeVar("T")
R = TypeVar("R")


class Interrupted(Exception):  # noqa: N818
    """The call that this work is for has ended already."""


# Set in a worker: its call's signal to stop. What it maps in turn runs in the worker itself.
_stopped: ContextVar[Event | None] = ContextVar("stopped", default=None)


def map_on_threads(
    function: Callable[[T], R], items: Iterable[T], most_threads: int | None = None
) -> list[R]:
    """`function` of every item, in order.

    Where BLAS can be held, matrix products use one thread each, however many items and threads there are and
    whoever else calls: none of these changes a bit. An error, or an interrupt, ends the work of all threads
    before it is raised.
    """
    work, stop = list(items), _stopped.get()
    if stop is not None:
        return [_unless_stopped(function, item) for item in work]
    with one_blas_thread() as is_held:
        n_threads = min(get_num_threads(), len(work), most_threads or len(work)) if is_held else 1
        if n_threads > 1:
            return _Shared(function, work).done(n_threads)
        return [function(item) for item in work]


def spare_threads() -> int:
    """How many threads work that is mapped from here may take: 1 in a worker."""
    return get_num_threads() if _stopped.get() is None else 1


class _Shared(Generic[T, R]):
    """Items that threads take one after the other, the caller's among them: to begin a thread takes long."""

    def __init__(self, function: Callable[[T], R], work: list[T]) -> None:
        self.function, self.stop = function, Event()
        self.results: dict[int, R] = {}
        self.errors: list[BaseException] = []
        self.left, self.taking = iter(enumerate(work)), Lock()

    def done(self, n_threads: int) -> list[R]:
        """All results, in order; the first error in time, once no thread works any more."""
        # Each in a copy of the context: numpy.errstate is part of it.
        others = [
            Thread(target=copy_context().run, args=(self.take,), name=f"scatterbrain_{i}")
            for i in range(1, n_threads)
        ]
        try:
            _start(others)
            copy_context().run(self.take)
            _join(others)
        except BaseException as error:  # an interrupt
            self.end(error)
            _join(others)
        if self.errors:
            first = self.errors[0]
            self.errors.clear()  # whose traceback holds this
            try:
                raise first
            finally:
                del first
        return [result for _, result in sorted(self.results.items(), key=itemgetter(0))]

    def take(self) -> None:
        """Work on items until none is left, or until there is an error."""
        _stopped.set(self.stop)
        with one_blas_thread_here():
            self._take()

    def _take(self) -> None:
        while not self.stop.is_set():
            with self.taking:
                i, item = next(self.left, (-1, None))
            if i < 0:
                return
            try:
                self.results[i] = self.function(cast(T, item))
            except BaseException as error:
                self.end(error)

    def end(self, error: BaseException) -> None:
        """Let no thread begin another item."""
        self.errors.append(error)
        self.stop.set()


def _start(threads: list[Thread]) -> None:
    """Begin as many as the system allows: the caller works in any case."""
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:  # can't start new thread
        return


def _join(threads: list[Thread]) -> None:
    """Wait for those that have begun."""
    for thread in threads:
        if thread.ident is not None:
            thread.join()


def _unless_stopped(function: Callable[[T], R], item: T) -> R:
    raise_if_stopped()
    return function(item)


def raise_if_stopped() -> None:
    """End a worker's item whose call has ended already, as by an interrupt."""
    stop = _stopped.get()
    if stop is not None and stop.is_set():
        raise Interrupted
