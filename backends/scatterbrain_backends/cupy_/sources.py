"""The kernels' sources, as NVRTC takes them: one text each, and a name for each instantiation."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

KERNELS = Path(__file__).parent / "kernels"
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)
OPTIONS = ("-std=c++17",)


@cache
def source(name: str) -> str:
    """Text of a kernel's file with what it includes: CuPy's cache does not look into included files."""
    included: set[str] = set()

    def text(file: str) -> str:
        return INCLUDE.sub(header, (KERNELS / file).read_text(encoding="utf-8"))

    def header(found: re.Match[str]) -> str:
        if found[1] in included:
            return ""
        included.add(found[1])
        return text(found[1])

    return text(f"{name}.cu")
