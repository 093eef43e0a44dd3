"""BLAS held to one thread while calls run: heads are on threads already, and who else runs changes no bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock, get_ident, local
from typing import Any, Protocol

from scatterbrain_backends.numpy_.compiled import load_blas

# What tells BLAS to use one thread where threadpoolctl is not there to do it.
VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class _Library(Protocol):
    """A BLAS, as threadpoolctl controls it."""

    @property
    def get_num_threads(self) -> Callable[[], int]: ...

    @property
    def set_num_threads(self) -> Callable[[int], object]: ...


@dataclass(frozen=True)
class _Bound:
    """A library's own functions, found once: threadpoolctl looks for them and whose turn it is each time."""

    get_num_threads: Callable[[], int]
    set_num_threads: Callable[[int], object]


class _Hold:
    """Libraries held to one thread: the first who wants it takes hold, the last lets go.

    Who holds is known by its thread: what an interrupt kept it from letting go, its next hold lets go.
    """

    def __init__(self, libraries: Sequence[_Library]) -> None:
        self.libraries, self.lock = libraries, Lock()
        self.holders: set[int] = set()
        self.before: list[int] = []

    def __enter__(self) -> None:
        with self.lock:
            if not self.holders:
                self._hold()
            self.holders.add(get_ident())

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.holders.discard(get_ident())
            if not self.holders:
                self._let_go()

    def after_fork(self, is_held: bool) -> None:
        """Begin anew in a child, which has none of its parent's other threads, and a hold or none."""
        self.lock, self.holders = Lock(), {get_ident()} if is_held else set()
        if not is_held and self.before:
            self._let_go()

    def _hold(self) -> None:
        # What is still here, an interrupt kept from being set again.
        self.before = self.before or [library.get_num_threads() for library in self.libraries]
        try:
            for library in self.libraries:
                library.set_num_threads(1)
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        for library, count in zip(self.libraries, self.before, strict=True):
            library.set_num_threads(count)
        self.before = []


class _HoldOfThread(_Hold, local):
    """As `_Hold`, of each thread by itself."""


@dataclass(frozen=True)
class _Holds:
    """Holds of the libraries whose threads a whole process shares, and of those with some for each of it."""

    of_process: _Hold
    of_thread: AbstractContextManager[None]


class _Here(local):
    """Whether this thread is in a hold; what it does in there is held already."""

    is_held = False


_here = _Here()
_found: list[_Holds | None] = []
_finding = Lock()


@contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Hold BLAS to one thread; gives whether it is held."""
    holds = None if _here.is_held else _holds()
    if holds is None:
        yield _here.is_held or any(os.environ.get(name) == "1" for name in VARIABLES)
        return
    with holds.of_process, holds.of_thread:
        try:
            _here.is_held = True
            yield True
        finally:
            _here.is_held = False


@contextmanager
def one_blas_thread_here() -> Iterator[None]:
    """Hold what this thread has of its own, in a call that holds the rest."""
    holds = None if _here.is_held else _holds()
    if holds is None:
        yield
        return
    with holds.of_thread:
        yield


def _after_fork() -> None:
    global _finding
    _finding = Lock()
    for holds in _found:
        if holds is not None:
            holds.of_process.after_fork(_here.is_held)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _holds() -> _Holds | None:
    """Of the BLAS libraries of this process; None without threadpoolctl, the extra `threads`."""
    if not _found:
        with _finding:
            if not _found:
                _found.append(_find())
    return _found[0]


def _find() -> _Holds | None:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    load_blas()
    libraries = [x for x in ThreadpoolController().lib_controllers if x.user_api == "blas"]
    of_process, of_thread = ([_bound(x) for x in libraries if _is_of_thread(x) == own] for own in (0, 1))
    return _Holds(_Hold(of_process), _HoldOfThread(of_thread) if of_thread else nullcontext())


def _is_of_thread(library: Any) -> bool:
    """Whether it has a number of threads for each thread that asks, as OpenMP does."""
    is_openmp = library.internal_api == "openblas" and library.threading_layer == "openmp"
    return is_openmp or library.internal_api == "mkl"


def _bound(library: Any) -> _Library:
    """With functions that any threadpoolctl means: before 3.7 it sets OpenMP and MKL for all threads."""
    try:
        return _Bound(*(getattr(library.dynlib, name) for name in _names(library)))
    except AttributeError:  # there is none of these
        return library


def _names(library: Any) -> tuple[str, str]:
    """Of the functions that get and set the number of threads."""
    if library.internal_api == "mkl":
        return "MKL_Get_Max_Threads", "MKL_Set_Num_Threads_Local"
    if _is_of_thread(library):
        return "omp_get_max_threads", "omp_set_num_threads"
    known = (x for x in library.check_symbols if "get_num_threads" in x and hasattr(library.dynlib, x))
    get = next(known, "")
    return get, get.replace("get", "set")
