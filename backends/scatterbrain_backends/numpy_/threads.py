"""Work on threads: NumPy's loops use one core each, and many small matrix products gain nothing from more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from operator import itemgetter
from threading import Event, Lock, Thread
from typing import Any, Generic, TypeVar, cast

from scatterbrain_backends.numpy_.compiled import load_blas
from scatterbrain_core.threads import get_num_threads

T = TypeVar("T")
R = TypeVar("R")

# What tells BLAS to use one thread where threadpoolctl is not there to do it.
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Interrupted(Exception):  # noqa: N818
    """The call that this work is for has ended already."""


# Set in a worker: its call's signal to stop. What it maps in turn runs in the worker itself.
_stopped: ContextVar[Event | None] = ContextVar("stopped", default=None)


def map_on_threads(
    function: Callable[[T], R], items: Iterable[T], most_threads: int | None = None
) -> list[R]:
    """`function` of every item, in order.

    Matrix products use one thread each wherever there are several items, however many threads there are, so
    that these change no bit. An error, or an interrupt, ends the work of all threads before it is raised.
    """
    work, stop = list(items), _stopped.get()
    if stop is not None or len(work) < 2:
        return [_unless_stopped(function, item, stop) for item in work]
    with one_blas_thread() as is_held:
        n_threads = min(get_num_threads(), len(work), most_threads or len(work)) if is_held else 1
        if n_threads > 1:
            return _Shared(function, work).done(n_threads)
        return [function(item) for item in work]


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


def _unless_stopped(function: Callable[[T], R], item: T, stop: Event | None) -> R:
    if stop is not None and stop.is_set():
        raise Interrupted
    return function(item)


class _Held:
    """The one hold of BLAS by all calls that run at a time: the first takes it, the last lets go."""

    def __init__(self) -> None:
        self.lock, self.count = Lock(), 0
        self.limit: Any = None


_held = _Held()


@contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Hold BLAS to one thread; gives whether it is held."""
    controller = _controller()
    if controller is None:
        yield any(os.environ.get(name) == "1" for name in BLAS_VARIABLES)
        return
    with _held.lock:
        _held.count += 1
        if _held.count == 1:
            _held.limit = controller.limit(limits=1, user_api="blas")
    try:
        yield True
    finally:
        with _held.lock:
            _held.count -= 1
            if _held.count == 0:
                limit, _held.limit = _held.limit, None
                limit.restore_original_limits()


@cache
def _controller() -> Any:
    """Of the BLAS libraries of this process; None without threadpoolctl, the extra `threads`."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    load_blas()
    return ThreadpoolController()
