"""What is asked for on the command line, and how it ends."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from scatterbrain_core.cli.arguments import parser
from scatterbrain_core.cli.console import flush
from scatterbrain_core.cli.errors import UserError, reason
from scatterbrain_core.cli.streams import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

MISTAKE, PIPE_CLOSED = 2, 141


def run(argv: Sequence[str] | None) -> int:
    """Run the chosen command; return the exit code, every mistake told in one line."""
    try:
        flush()  # a closed standard output is told before the work
        code = _run(argv)
        flush()
    except UserError as error:
        return _mistake(str(error))
    except MemoryError as error:
        return _mistake(f"not enough memory: {reason(error)}")
    except BrokenPipeError:
        return PIPE_CLOSED
    except OSError as error:
        return _mistake(reason(error) if error.filename is None else f"{error.filename}: {reason(error)}")
    return code


def _mistake(told: str) -> int:
    tell(f"scatterbrain: error: {told}")
    return MISTAKE


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    with warnings.catch_warnings():
        # A warning names lines of source files: no help to whoever runs a command, unless -W asks for it.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        code: int = arguments.run(arguments)
    return code
