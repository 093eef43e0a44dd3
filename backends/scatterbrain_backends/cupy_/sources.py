"""The kernels' sources, as NVRTC takes them: one text each, and a name for each instantiation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

KERNELS = Path(__file__).parent / "kernels"
INCLUDED = ("common.cuh",)
OPTIONS = ("-std=c++17",)


@cache
def source(name: str) -> str:
    """Text of a kernel's file with what it includes: CuPy's cache does not look into included files."""
    text = (KERNELS / f"{name}.cu").read_text(encoding="utf-8")
    for header in INCLUDED:
        own = (KERNELS / header).read_text(encoding="utf-8")
        text = text.replace(f'#include "{header}"\n', own)
    return text
