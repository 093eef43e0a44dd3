"""The peak of a process's memory during one call."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Output = TypeVar("Output")

# Linux forgets the peak so far when this is written there.
FORGET_PATH, FORGET = Path("/proc/self/clear_refs"), "5"
STATUS = Path("/proc/self/status")
PEAK_LINE = "VmHWM:"
KIB = 1024


def peak_of(call: Callable[[], Output]) -> tuple[Output, int, int, bool]:
    """Output of a call, bytes held before, bytes more at the peak, and whether these may be too few.

    They may be where the system cannot forget an earlier, higher peak.
    """
    gc.collect()
    _give_back()
    is_forgotten = _forget()
    before = peak_bytes()
    output = call()
    return output, before, peak_bytes() - before, not is_forgotten


def peak_bytes() -> int:
    """The most this process held at a time."""
    if STATUS.exists():
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return KIB * int(next(line for line in lines if line.startswith(PEAK_LINE)).split()[1])
    unit = 1 if sys.platform == "darwin" else KIB
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget() -> bool:
    try:
        FORGET_PATH.write_text(FORGET, encoding="ascii")
    except OSError:
        return False
    return True


def _give_back() -> None:
    """Return freed memory to the system, which else would be taken again unseen; glibc alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
