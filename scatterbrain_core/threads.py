"""How many threads a call may use where a library's own operations use one each, as NumPy's loops do."""

from __future__ import annotations

import os

from scatterbrain_core._checks import require_count

# The first of these that is set says how many, unless `set_num_threads` did.
VARIABLES = ("SCATTERBRAIN_NUM_THREADS", "OMP_NUM_THREADS")

_chosen: int | None = None


def get_num_threads() -> int:
    """How many threads calls on NumPy arrays may use.

    Returns
    -------
    int
        What `set_num_threads` said; else the environment variable SCATTERBRAIN_NUM_THREADS, or
        OMP_NUM_THREADS; else the number of processors that this process may run on.

    Raises
    ------
    ValueError
        The variable is no positive integer.
    """
    if _chosen is not None:
        return _chosen
    for name in VARIABLES:
        stated = os.environ.get(name)
        if stated:
            return _number(name, stated)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def set_num_threads(n_threads: int | None) -> None:
    """Say how many threads calls on NumPy arrays may use, in all threads of this process.

    No result depends on it, to the last bit.

    Parameters
    ----------
    n_threads : int or None
        At least 1; None goes back to what the environment says.
    """
    global _chosen
    _chosen = None if n_threads is None else require_count("n_threads", n_threads)


def _number(name: str, stated: str) -> int:
    # OMP_NUM_THREADS may be a list, one number a level of nesting.
    first = stated.split(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ValueError(f"{name} must be a positive integer, got {stated!r}")
    return int(first)
