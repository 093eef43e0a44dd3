"""Where the methods run: an array library on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from scatterbrain_core.cli.libraries import LIBRARIES

NUMPY = "numpy"


@dataclass(frozen=True)
class Place:
    """An array library and one of its devices.

    Attributes
    ----------
    name : str
        Of the library, with a colon and part of the device's name where it has several.
    make : callable
        From a NumPy array to the library's there.
    to_numpy : callable
        And back.
    """

    name: str
    make: Callable[[Any], Any]
    to_numpy: Callable[[Any], Any]

    def arrays(self, *arrays: Any) -> tuple[Any, ...]:
        """Return NumPy's arrays as the library's."""
        return tuple(self.make(x) for x in arrays)


def place(name: str) -> Place:
    """Return the place of that name: a library, and where it has several devices part of one's name.

    Raises
    ------
    ValueError
        There is no such library, or it has no such device here.
    ImportError
        The library is not installed.
    """
    wanted, _, part = name.partition(":")
    by_name = {library.name: library for library in LIBRARIES}
    if wanted not in by_name:
        raise ValueError(f"library must be one of {', '.join(by_name)}, got {wanted!r}")
    library = by_name[wanted]
    module = import_module(library.module)
    device = _device(library.name, library.devices(module), part)
    return Place(name, lambda x: library.make(module, x, device), lambda x: np.asarray(library.to_numpy(x)))


def _device(library: str, devices: Sequence[Any], part: str) -> Any:
    found = [device for device in devices if part.lower() in str(device).lower()]
    if not found:
        there = ", ".join(map(str, devices)) or "none"
        raise ValueError(f"device must be part of one of {there} for {library}, got {part!r}")
    return found[0]
