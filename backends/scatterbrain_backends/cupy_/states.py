"""Causal states by a kernel, for any library on whose arrays it can be run."""

from __future__ import annotations

from typing import Any

from scatterbrain_backends.cupy_ import launches
from scatterbrain_backends.cupy_.forms import C_TYPES
from scatterbrain_backends.cupy_.launches import MOST_BLOCKS_X, Runner, dtype_name


def running_merge(xp: Any, ref: Any, acc: Any, segment: Any, runner: Runner) -> tuple[Any, Any] | None:
    """Running merges of partial results, `ref` and `acc`; None where the kernel does not take them.

    Parameters
    ----------
    xp : namespace
        Of the arrays.
    ref : array, shape (n, m)
    acc : array, shape (n, m, Dv + 1)
    segment : array of int, shape (n,)
        Equal numbers stand together.
    """
    is_one_dtype = ref.dtype == acc.dtype and dtype_name(acc) in C_TYPES
    if not is_one_dtype or 0 in acc.shape or acc.shape[0] > MOST_BLOCKS_X:
        return None
    merged = tuple(runner.empty(tuple(x.shape), x.dtype) for x in (ref, acc))
    numbers = xp.astype(segment, xp.int64, copy=False)
    runner.launch(launches.running_merge, ref, acc, numbers, *merged)
    return merged
