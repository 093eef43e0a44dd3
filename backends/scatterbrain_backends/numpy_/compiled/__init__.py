"""Loops that numba compiles, for what array operations would take many passes over memory for.

They let other threads run, and are kept on disk once compiled. Without numba (the extra `numba`) the backend
runs array-API code.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

# What numba multiplies with.
BLAS = "scipy.linalg.cython_blas"


@cache
def is_available() -> bool:
    """Whether numba and SciPy are there and can be imported, and numba is not told to interpret the loops."""
    if not _is_wanted():
        return False
    try:
        import_module("numba")
        import_module(BLAS)
    except ImportError as error:  # numba says so where NumPy is too new for it
        message = f"numba is installed but cannot be used, NumPy arrays are worked without it: {error}"
        warnings.warn(message, stacklevel=2)
        return False
    return True


def load_blas() -> None:
    """Load the BLAS of the loops, where they may run, so that it can be held to one thread."""
    if _is_wanted():
        try:
            import_module(BLAS)
        except ImportError:
            return  # which `is_available` reports


def _is_wanted() -> bool:
    is_interpreted = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
    return not is_interpreted and find_spec("numba") is not None and find_spec("scipy") is not None
