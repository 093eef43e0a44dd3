"""How a loop is compiled: once for each dtype, and kept on disk."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

from scatterbrain_backends.numpy_ import visiting
from scatterbrain_core.routing import layout, query_tiles, selection, view

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
    compiled = njit(**options)(function)
    try:
        compiled._cache = _Kept(function)
    except RuntimeError:
        _tell_once("no folder can be written to")
    return compiled


_told: list[str] = []


class _Kept(FunctionCache):  # type: ignore[misc]  # numba has no types
    """numba's own, where a file that is damaged or cannot be written costs the time to compile alone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = _Checked(
            cache_path=locator.get_cache_path(),
            filename_base=self._impl.filename_base,
            source_stamp=locator.get_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """None too for what cannot be read, which is then forgotten."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # of a damaged pickle any
            self._forget()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it, if it can be."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # an index that is damaged still, too
            _tell_once(str(error))

    def _forget(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _tell_once(str(error))


class _Checked(IndexDataCacheFile):  # type: ignore[misc]
    """numba's index and data, each with a checksum behind it: code with one bit flipped may do anything."""

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[BytesIO]:
        content = BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + _checksum(content.getvalue()))

    def _load_index(self) -> Any:
        _check(self._index_path)
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        _check(self._data_path(name))
        return super()._load_data(name)  # unpickling ends before the checksum


def _check(path: str) -> None:
    """Raise ValueError for a file that is not what was written; one that is not there is numba's to tell."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return
    size = len(_checksum(b""))
    if data[-size:] != _checksum(data[:-size]):
        raise ValueError(f"{path} is damaged")


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _tell_once(reason: str) -> None:
    if _told:
        return
    _told.append(reason)
    warnings.warn(
        f"compiled loops cannot be kept, every process compiles them again: {reason}; the environment "
        "variable NUMBA_CACHE_DIR names a folder for them",
        stacklevel=2,
    )


def loop_over_numbers(function: Callable[..., Any]) -> Any:
    """As `loop`; NaN gives anything, and the caller sees it by other means."""
    return loop(function, "nnan")


@cache
def _fingerprint() -> str:
    """Of the sources of all loops, and of the constants in them."""
    constants = (Path(str(module.__file__)) for module in (layout, query_tiles, selection, view, visiting))
    files = [*sorted(Path(__file__).parent.glob("*.py")), *constants]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
