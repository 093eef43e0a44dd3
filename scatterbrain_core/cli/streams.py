"""Standard output and standard error, either of which may be closed or full; nothing heavy is imported."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def write(stream: TextIO, line: str) -> None:
    """Write a line in the encoding of `stream`."""
    # A name in a reference may hold letters that the terminal's encoding lacks.
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")


def tell(line: str) -> None:
    """Write a line to standard error; where that cannot be done, the exit code alone has to tell."""
    if sys.stderr is None:
        return
    try:
        write(sys.stderr, line)
        sys.stderr.flush()
    except (OSError, ValueError):
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what is still buffered nowhere: it would raise once more as the interpreter ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def settle() -> None:
    """Empty both streams before the interpreter does, which complains where it cannot."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)
