"""NVRTC with the options that CuPy itself would use, without a GPU or a driver."""

from __future__ import annotations

import re
from functools import cache

import pytest

from scatterbrain_backends.cupy_.launches import C_TYPES, all_tiles
from scatterbrain_backends.cupy_.sources import OPTIONS, source

ARCHITECTURES = ("75", "80", "90")
KERNELS = {
    "tile_partial": [tile.kernel(dtype) for dtype, tile in all_tiles()],
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


def compile_log(name: str, kernels: list[str], architecture: str) -> str:
    """What ptxas says of some instantiations; raises where they do not compile."""
    compiler, nvrtc, options = compiler_and_options()
    text, names = source(name), tuple(kernels)
    program = compiler._NVRTCProgram(text, f"{name}.cu", name_expressions=names, method="cubin")
    program.compile((*options, f"-arch=sm_{architecture}"))
    return nvrtc.getProgramLog(program.ptr)


def resources(log: str) -> list[tuple[int, int]]:
    """Registers, and bytes spilled, of each kernel in a log."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", log)]
    return list(zip(registers, spilled, strict=True))
