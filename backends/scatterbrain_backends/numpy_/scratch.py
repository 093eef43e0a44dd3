"""Large temporaries in memory that a thread was given before: the pages of new memory take long to come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import numpy as np

ALIGNMENT = 64  # of a line of the cache


class _Blocks(local):
    """Blocks of bytes of a thread that nobody uses now; None where none are kept."""

    free: list[Any] | None = None


class _Lease:
    """A block while arrays on it live.

    The lease owns the block. When the last of these arrays ends, in whichever thread, the block goes to the
    list that it came from: an append is one step, and the thread of that list alone takes from it. Once
    `kept` is over there, leases alone hold the list, and it ends with the last of them, as its blocks do.
    """

    def __init__(self, block: Any, owner: list[Any]) -> None:
        self.block, self.owner = block, owner
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self.owner.append(self.block)


_blocks = _Blocks()


@contextmanager
def kept() -> Iterator[None]:
    """Keep the memory of `empty` arrays that end for the next ones, of this thread and in here."""
    before, _blocks.free = _blocks.free, []
    try:
        yield
    finally:
        _blocks.free = before


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """As `numpy.empty`."""
    n_bytes, free = math.prod(shape) * np.dtype(dtype).itemsize, _blocks.free
    if free is None:
        return np.empty(shape, dtype)
    fits = [i for i, block in enumerate(free) if len(block) >= n_bytes]
    if not fits:
        free.clear()  # too small, all of them: where arrays grow, as causal ones do, they would pile up
    block = free.pop(min(fits, key=lambda i: len(free[i]))) if fits else _aligned(n_bytes)
    return np.asarray(_Lease(block, free))[:n_bytes].view(dtype).reshape(shape)


def _aligned(n_bytes: int) -> Any:
    block = np.empty(n_bytes + ALIGNMENT, np.uint8)
    first = -block.ctypes.data % ALIGNMENT
    return block[first : first + n_bytes]
