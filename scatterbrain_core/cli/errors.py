"""What a user can mend, told in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class UserError(Exception):
    """A mistake in what the user gave: printed in one line, exit code 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


def reason(error: BaseException) -> str:
    """Return why `error` was raised, in one line and without the file name an OSError repeats."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split()) or type(error).__name__


@contextmanager
def library_errors(files: Mapping[str, str]) -> Iterator[None]:
    """Turn the library's complaint about an argument into one that says which file the argument is.

    Parameters
    ----------
    files : mapping of str to str
        From the name of an argument of `scatterbrain_core.attention` to the file it was read from.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        where = ", ".join(f"{name} is {file}" for name, file in files.items() if name in str(error))
        raise UserError(f"{error} ({where})" if where else str(error)) from error
    except MemoryError as error:
        raise UserError(f"not enough memory: {reason(error)}") from error


def install(extra: str) -> str:
    """Return the command that installs an optional extra."""
    return f"python -m pip install 'scatterbrain-core[{extra}]'"
