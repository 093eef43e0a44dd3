"""What a user can mend, told in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What the library calls by the names of Python arguments, as whoever typed a command knows it.
OPTION_OF = {
    "; check_finite=False switches this check off": "",
    "enable_gqa=True": "--gqa",
    "enable_gqa": "--gqa",
    "is_causal=True": "--causal",
    "is_causal": "--causal",
    "attn_mask": "--mask",
    "max_memory": "--max-memory",
}


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
        From query, key, value and --mask to the file each was read from.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        told = in_options(str(error))
        where = ", ".join(f"{name} is {file}" for name, file in files.items() if name in told)
        raise UserError(f"{told} ({where})" if where else told) from error
    except MemoryError as error:
        raise UserError(f"not enough memory: {reason(error)}") from error


def in_options(told: str) -> str:
    """Return a message of the library with its arguments under the names of the options."""
    for argument, option in OPTION_OF.items():
        told = told.replace(argument, option)
    return told


def install(*packages: str) -> str:
    """Return the command that installs packages."""
    return f"python -m pip install {' '.join(packages)}"
