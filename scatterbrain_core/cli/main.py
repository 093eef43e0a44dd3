"""The command line: what is asked for, and how it ends."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from scatterbrain_core.cli.arguments import parser
from scatterbrain_core.cli.console import note
from scatterbrain_core.cli.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Sequence

MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``scatterbrain``.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, or 2 for a mistake of the user's, told in one line on standard error; 130 after
        Ctrl-C and 141 where the reader of the output went away, as a shell counts those signals.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()
    except UserError as error:
        note(f"scatterbrain: error: {error}")
        return MISTAKE
    except MemoryError as error:
        note(f"scatterbrain: error: not enough memory: {reason(error)}")
        return MISTAKE
    except KeyboardInterrupt:
        note("scatterbrain: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would raise once more as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    code: int = arguments.run(arguments)
    return code
