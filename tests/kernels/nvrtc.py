"""NVRTC with the options that CuPy itself would use, without a GPU or a driver."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest

from scatterbrain_backends.cupy_.forms import C_TYPES, C_TYPES_OF_HALF, all_tiles
from scatterbrain_backends.cupy_.launches import C_TYPES_OF_RANKS
from scatterbrain_backends.cupy_.sources import OPTIONS, source

ARCHITECTURES = ("75", "80", "90")
KERNELS = {
    file: [tile.kernel(dtype) for dtype, tile in all_tiles() if tile.source == file]
    for file in ("tile_partial", "tile_partial_half")
} | {
    "half_rows": [f"half_rows<{type_}>" for type_ in C_TYPES_OF_HALF.values()],
    "running_merge": [f"running_merge<{type_}>" for type_ in C_TYPES.values()],
    "sort_numbers": [f"sort_numbers<{type_}>" for type_ in C_TYPES_OF_RANKS.values()],
    "bucket_intervals": ["bucket_intervals"],
    "hyperplane_codes": [f"hyperplane_codes<{type_}>" for type_ in C_TYPES.values()],
    "segment_sum": [f"segment_sum<{type_}>" for type_ in C_TYPES.values()],
}


@cache
def compiler_and_options():
    """CuPy's compiler module and its options; skips where there is no NVRTC."""
    pytest.importorskip("cupy")
    from cupy._core import core
    from cupy.cuda import compiler, nvrtc

    try:
        nvrtc.getVersion()
        options = core.assemble_cupy_compiler_options((*OPTIONS, "--ptxas-options=-v"))
    except (RuntimeError, OSError, ImportError) as error:
        pytest.skip(f"NVRTC is not installed: {str(error).splitlines()[0]}")
    return compiler, nvrtc, (*options, "-ftz=true", "--device-as-default-execution-space")


def compile_log(name: str, kernels: list[str], architecture: str) -> tuple[str, dict[str, str]]:
    """What ptxas says of some instantiations, and their mangled names; raises where they do not compile."""
    compiler, nvrtc, options = compiler_and_options()
    text, names = source(name), tuple(kernels)
    program = compiler._NVRTCProgram(text, f"{name}.cu", name_expressions=names, method="cubin")
    _, mangled = program.compile((*options, f"-arch=sm_{architecture}"))
    return nvrtc.getProgramLog(program.ptr), mangled


@dataclass(frozen=True)
class Resources:
    """What ptxas gives an instantiation: registers of a thread, bytes it spills, and static shared memory."""

    registers: int
    spilled: int
    shared: int


def resources(name: str, kernels: list[str], architecture: str) -> dict[str, Resources]:
    """Resources of some instantiations of a kernel."""
    log, mangled = compile_log(name, kernels, architecture)
    entries = {entry.split("'")[1]: entry for entry in log.split("Compiling entry function ")[1:]}
    return {kernel: _resources(entries[mangled[kernel]]) for kernel in kernels}


def _resources(entry: str) -> Resources:
    def number(pattern: str) -> int:
        found = re.search(pattern, entry)
        return int(found[1]) if found else 0

    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Resources(number(r"Used (\d+) registers"), spilled, number(r"(\d+) bytes smem"))


def version() -> str:
    """Of NVRTC, which ptxas comes with: another one may allocate otherwise."""
    _, nvrtc, _ = compiler_and_options()
    return ".".join(map(str, nvrtc.getVersion()))
