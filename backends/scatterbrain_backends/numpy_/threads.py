"""Work on threads: NumPy's loops use one core each, and many small matrix products gain nothing from more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from threading import Event, Lock
from typing import Any, TypeVar

from scatterbrain_core.threads import get_num_threads

T = TypeVar("T")
R = TypeVar("R")

# What tells BLAS to use one thread where threadpoolctl is not there to do it.
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Interrupted(Exception):  # noqa: N818
    """The call that this work is for has ended already."""


# Set in a worker: its call's signal to stop. What it maps in turn runs in the worker itself.
_stopped: ContextVar[Event | None] = ContextVar("stopped", default=None)


def map_on_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of every item, in order.

    Matrix products use one thread each wherever there are several items, however many threads there are, so
    that these change no bit. An error, or an interrupt, ends the work of all threads before it is raised.
    """
    work, stop = list(items), _stopped.get()
    if stop is not None or len(work) < 2:
        return [_unless_stopped(function, item, stop) for item in work]
    with one_blas_thread() as is_held:
        n_threads = min(get_num_threads(), len(work)) if is_held else 1
        if n_threads == 1:
            return [function(item) for item in work]
        return _by_workers(function, work, n_threads)


def _by_workers(function: Callable[[T], R], work: list[T], n_threads: int) -> list[R]:
    stop = Event()

    def run(item: T) -> R:
        _stopped.set(stop)
        return _unless_stopped(function, item, stop)

    with ThreadPoolExecutor(n_threads, "scatterbrain") as workers:
        # Each in a copy of the context: numpy.errstate is part of it.
        futures: list[Future[R]] = [workers.submit(copy_context().run, run, item) for item in work]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            workers.shutdown(cancel_futures=True)
            raise


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
    return ThreadpoolController()
