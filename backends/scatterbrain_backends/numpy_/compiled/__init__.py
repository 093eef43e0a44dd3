"""Loops that numba compiles, for what array operations would take many passes over memory for.

They let other threads run, and are kept on disk once compiled. Without numba (the extra `numba`) the backend
runs array-API code.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec


@cache
def is_available() -> bool:
    """Whether numba is installed, with SciPy, and not told to interpret the loops."""
    return (
        find_spec("numba") is not None
        and find_spec("scipy") is not None
        and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
    )
