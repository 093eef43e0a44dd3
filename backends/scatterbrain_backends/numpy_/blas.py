"""BLAS held to one thread while calls run: heads are on threads already, and who else runs changes no bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, local
from typing import Any

from scatterbrain_backends.numpy_.compiled import load_blas

# What tells BLAS to use one thread where threadpoolctl is not there to do it.
VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class _Hold:
    """Libraries held to one thread: the first who wants it takes hold, the last lets go."""

    def __init__(self, libraries: Sequence[Any]) -> None:
        self.libraries, self.lock, self.count = libraries, Lock(), 0
        self.before: list[int] = []

    def __enter__(self) -> None:
        with self.lock:
            if self.count == 0:
                self._hold()
            self.count += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.count -= 1
            if self.count == 0:
                _set(self.libraries, self.before)
                self.before = []

    def _hold(self) -> None:
        # What is still here, an interrupt kept from being set again.
        self.before = self.before or [library.get_num_threads() for library in self.libraries]
        try:
            _set(self.libraries, [1] * len(self.libraries))
        except BaseException:
            _set(self.libraries, self.before)
            raise


class _HoldOfThread(_Hold, local):
    """As `_Hold`, of each thread by itself."""


@dataclass(frozen=True)
class _Holds:
    """Holds of the libraries whose threads a whole process shares, and of those with some for each of it."""

    of_process: _Hold
    of_thread: _HoldOfThread


_found: list[_Holds | None] = []
_finding = Lock()


@contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Hold BLAS to one thread; gives whether it is held."""
    holds = _holds()
    if holds is None:
        yield any(os.environ.get(name) == "1" for name in VARIABLES)
        return
    with holds.of_process, holds.of_thread:
        yield True


@contextmanager
def one_blas_thread_here() -> Iterator[None]:
    """Hold what this thread has of its own, in a call that holds the rest."""
    holds = _holds()
    if holds is None:
        yield
        return
    with holds.of_thread:
        yield


def _holds() -> _Holds | None:
    """Of the BLAS libraries of this process; None without threadpoolctl, the extra `threads`."""
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
    # OpenMP has a number of threads for each thread that asks.
    of_thread = [x.internal_api == "openblas" and x.threading_layer == "openmp" for x in libraries]
    return _Holds(
        _Hold([x for x, own in zip(libraries, of_thread, strict=True) if not own]),
        _HoldOfThread([x for x, own in zip(libraries, of_thread, strict=True) if own]),
    )


def _set(libraries: Sequence[Any], counts: Sequence[int]) -> None:
    for library, count in zip(libraries, counts, strict=True):
        _release(library)
        library.set_num_threads(count)
        _release(library)


def _release(library: Any) -> None:
    """Let any thread set it: threadpoolctl 3.8 heeds one thread alone, without a word to the others."""
    release = getattr(library, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)
