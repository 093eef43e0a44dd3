"""How a loop is compiled: once for each dtype, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

from scatterbrain_backends.numpy_ import visiting
from scatterbrain_core.routing import selection, view

# Sums may be regrouped; infinities and NaN stay what they are, as what is divided by zero. Other threads run.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp", "reassoc"},
}


def loop(function: Callable[..., Any], *more: str) -> Any:
    """Compile a function when it is first called; `more` of what LLVM may take for granted.

    numba looks for what it kept by a function's name and the age of its own file, but functions and constants
    of other files are compiled into it: the name says what all of them hold.
    """
    function.__qualname__ += "_" + _fingerprint()
    options = OPTIONS | {"fastmath": OPTIONS["fastmath"].union(more)}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is nowhere to keep it
        return njit(**options)(function)


def loop_over_numbers(function: Callable[..., Any]) -> Any:
    """As `loop`; NaN gives anything, and the caller sees it by other means."""
    return loop(function, "nnan")


@cache
def _fingerprint() -> str:
    """Of the sources of all loops, and of the constants in them."""
    constants = (Path(str(module.__file__)) for module in (selection, view, visiting))
    files = [*sorted(Path(__file__).parent.glob("*.py")), *constants]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
