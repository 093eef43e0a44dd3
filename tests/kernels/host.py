"""Kernels on the CPU: the very sources, compiled against cuda_host.h and called as CuPy would call them."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np

from scatterbrain_backends.cupy_.launches import Launch, Runner
from scatterbrain_backends.cupy_.sources import source

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
ORDERS = {"forwards": 0, "backwards": 1, "random": 2}
DTYPES = {
    "float": "float32",
    "double": "float64",
    "int": "int32",
    "short": "int16",
    "bool": "bool",
    "long long": "int64",
}
COMMAND = ["-x", "c++", "-std=c++17", "-g", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"]
ONE_LAUNCH = threading.Lock()  # what is compiled has one device's state
QUIET = ["-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-overflow"]


class HostKernels:
    """Instantiations of a kernel, compiled for the CPU.

    Parameters
    ----------
    name : str
        Of the kernel's file.
    kernels : list of str
        The instantiations.
    folder : Path
        For what is compiled.
    flags : tuple of str
        More of the compiler's, sanitizers for example.
    """

    def __init__(
        self, name: str, kernels: list[str], folder: Path, flags: tuple[str, ...] = ("-O1",)
    ) -> None:
        exports = "\n".join(f"SHIM_EXPORT({i}, {kernel})" for i, kernel in enumerate(kernels))
        # The number of the planted bug is a variable here, so that all bugs are compiled at once.
        text = (
            '#include "cuda_host.h"\nextern "C" int planted; int planted = 0;\n#define MUT planted\n'
            f'#line 1 "{name}.cu"\n{source(name)}\n{exports}\n'
        )
        key = hashlib.sha256(repr((text, flags, (HERE / "cuda_host.h").read_bytes())).encode()).hexdigest()[
            :16
        ]
        path = folder / f"{name}-{key}.so"
        if not path.exists():
            self._compile(text, path, flags)
        self.library = ctypes.CDLL(str(path))
        self.library.shim_error.restype = ctypes.c_char_p
        self.names = kernels

    @staticmethod
    def _compile(text: str, path: Path, flags: tuple[str, ...]) -> None:
        command = [COMPILER, *COMMAND, *QUIET, f"-I{HERE}", *flags, "-", "-o", str(path)]
        done = subprocess.run(command, input=text, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(done.stderr[:3000])

    def run(self, launch: Launch, order: str = "forwards", seed: int = 0, bug: int = 0) -> None:
        """Run a launch with the threads in some order; raise where it would hang or was called wrongly."""
        number = self.names.index(launch.kernel)
        types = self._types(number)
        if len(types) != len(launch.arguments):
            raise TypeError(f"{launch.kernel} has {len(types)} parameters, got {len(launch.arguments)}")
        held = [_checked(a, t) for a, t in zip(launch.arguments, types, strict=True)]
        addresses = (ctypes.c_void_p * len(held))(*(x.ctypes.data for x in held))
        shape = [*(*launch.grid, 1, 1)[:3], *(*launch.block, 1, 1)[:3]]
        function = getattr(self.library, f"shim_launch_{number}")
        smem, turn = ctypes.c_size_t(launch.shared_bytes), ctypes.c_int(ORDERS[order])
        with ONE_LAUNCH:
            ctypes.c_int.in_dll(self.library, "planted").value = bug
            if function((ctypes.c_uint * 6)(*shape), smem, addresses, turn, ctypes.c_uint64(seed)):
                raise RuntimeError(self.library.shim_error().decode())

    def _types(self, number: int) -> list[str]:
        function = getattr(self.library, f"shim_types_{number}")
        function.restype = ctypes.c_char_p
        return [text.rpartition(":")[0] for text in function().decode().split(";") if text]


class HostRunner(Runner):
    """NumPy arrays, and kernels on the CPU.

    Parameters
    ----------
    kernels : dict
        By their files' names.
    bug_of : dict, optional
        The bugs that are planted, by file.
    how : keyword arguments
        Of `HostKernels.run`.
    """

    def __init__(
        self, kernels: dict[str, HostKernels], bug_of: dict[str, int] | None = None, **how: Any
    ) -> None:
        bug_of = bug_of or {}

        def run(launch: Launch) -> None:
            kernels[launch.source].run(launch, bug=bug_of.get(launch.source, 0), **how)

        super().__init__(run, np.ascontiguousarray, lambda shape, dtype: np.full(shape, 77, dtype))


def _checked(argument: object, type_: str) -> np.ndarray:
    """The bytes that are passed for an argument: a scalar's own, or an array's address."""
    expected = DTYPES[type_.replace("const", "").replace("*", "").strip()]
    assert isinstance(argument, np.ndarray | np.generic), "CuPy passes Python numbers in 8 bytes"
    assert argument.dtype == expected, f"{argument.dtype} for {type_}"
    assert isinstance(argument, np.ndarray) == ("*" in type_), f"{argument!r} for {type_}"
    if isinstance(argument, np.generic):
        return np.array(argument)
    assert argument.flags.c_contiguous
    return np.array(argument.ctypes.data, dtype=np.uintp)
