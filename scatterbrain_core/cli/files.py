"""Arrays in, results out: every file is checked before the work and written whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from scatterbrain_core.cli.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MAGIC = b"\x93NUMPY"


def read_array(path: str, kind: str, expected: str, is_mapped: bool = False) -> npt.NDArray[Any]:
    """Read a .npy file.

    Parameters
    ----------
    path : str
        The file.
    kind : str
        The kinds of dtype that are welcome, as in ``numpy.dtype.kind``.
    expected : str
        The same in words, for the message.
    is_mapped : bool
        Leave the numbers of a plain file where they are until they are asked for: a `numpy.memmap`.

    Raises
    ------
    UserError
        Naming the file, what it holds and what was expected.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise UserError(f"{path} must be a .npy file as numpy.save writes it, got another format")
            file.seek(0)
            array: npt.NDArray[Any]
            if is_mapped and Path(path).is_file() and _dtype_of(file).kind in kind:
                array = np.load(path, mmap_mode="r")
            else:
                array = np.load(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a .npy file: {reason(error)}") from error
    except (ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as a .npy file: {reason(error)}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory: {reason(error)}") from error
    if array.dtype.kind not in kind:
        raise UserError(f"{path} must hold {expected}, got dtype {array.dtype}")
    # The byte order of another machine is the same number, but not every library takes it.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _dtype_of(file: BinaryIO) -> np.dtype[Any]:
    """What the head of a .npy file says, left unread."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    dtype: np.dtype[Any] = read(file)[2]
    file.seek(0)
    return dtype


def read_operand(path: str, is_mapped: bool = False) -> npt.NDArray[Any]:
    """Read a query, key or value."""
    array = read_array(path, "f", "floating-point numbers such as float32", is_mapped)
    if array.ndim < 2:
        raise UserError(f"{path} must have the shape (..., L, D), got {array.shape}")
    return array


def read_mask(path: str) -> npt.NDArray[Any]:
    """Read a boolean mask."""
    return read_array(path, "b", "booleans (True = may attend)")


def read_text(path: str) -> str:
    """Read a text in UTF-8 that is not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read as text: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be text in UTF-8: {reason(error)}") from error
    if not text.strip():
        raise UserError(f"{path} must hold a text, got an empty one")
    return text


def check_outputs(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Refuse, before the work, an output that could not be written or that would destroy a file in use.

    Parameters
    ----------
    outputs : mapping of str to str
        From the option to the file it names; None where the option was not given.
    inputs : mapping of str to str
        The files that are read, likewise.
    """
    taken = {_place(path, path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        target = _place(f"{name} {path}", path)
        if target in taken:
            raise UserError(f"{name} {path} must be a file of its own, got the one of {taken[target]}")
        taken[target] = name
        _check_writable(f"{name} {path}", target)


def _place(label: str, path: str) -> Path:
    """Return where `path` leads, as far as its links can be followed."""
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError as error:
        raise UserError(f"{label} cannot be found: the working folder no longer exists") from error


def _check_writable(label: str, target: Path) -> None:
    try:
        if target.is_symlink():
            raise UserError(f"{label} cannot be written: its symbolic links go round in a circle")
        if target.is_dir():
            raise UserError(f"{label} must be a file, got a folder")
        if target.exists() and not target.is_file():
            raise UserError(f"{label} must be a regular file, got a device, pipe or socket")
        if target.exists() and not os.access(target, os.W_OK):
            raise UserError(f"{label} cannot be written: the file is write-protected")
        # Only making a file shows that one can be made: permissions do not tell of a read-only disk.
        probe = _beside(target)
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{label} cannot be written: {reason(error)} (folder {target.parent})") from error


def _beside(target: Path) -> Path:
    return target.parent / f".scatterbrain-{secrets.token_hex(6)}.tmp"


def write_whole(
    writers: Mapping[str, Callable[[IO[bytes]], object]], announce: Callable[[], None] = lambda: None
) -> None:
    """Write all the files, or none: each beside its place first, then all moved there.

    Parameters
    ----------
    writers : mapping of str to callable
        From a path to what writes the content into a binary file.
    announce : callable, optional
        Called once all are written and before they are moved; where it raises, no file is left.
    """
    written: dict[Path, Path] = {}
    try:
        with _writing(writers):
            for path, write in writers.items():
                target = _place(path, path)
                written[target] = _beside(target)
                with written[target].open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
        announce()
        with _writing(writers):
            for target, temporary in written.items():
                temporary.replace(target)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing(paths: Iterable[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{', '.join(paths)} cannot be written: {reason(error)}") from error


def array_writer(array: npt.ArrayLike) -> Callable[[IO[bytes]], None]:
    """Return what writes `array` in the .npy format."""
    return lambda file: np.save(file, np.asarray(array), allow_pickle=False)
