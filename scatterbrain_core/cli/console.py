"""Lines, tables and progress on the terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO

from scatterbrain_core.cli.errors import UserError, reason
from scatterbrain_core.cli.streams import silence, tell, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SMALLEST_SHARE = 1e-5


def say(line: str = "") -> None:
    """Write a line of the result to standard output."""
    with _standard_output() as stream:
        write(stream, line)


def flush() -> None:
    """Bring out what was said so far, or raise where that cannot be done."""
    with _standard_output() as stream:
        stream.flush()


def announce(line: str) -> None:
    """Say a line and bring it out at once."""
    say(line)
    flush()


@contextmanager
def _standard_output() -> Iterator[TextIO]:
    if sys.stdout is None:
        raise UserError("standard output cannot be written: it is closed")
    try:
        yield sys.stdout
    except OSError as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"standard output cannot be written: {reason(error)}") from error


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay out a table in columns.

    Parameters
    ----------
    header : sequence of str
        One title a column.
    rows : sequence of sequences of str
        The cells.
    left : int
        How many columns, from the first, are set flush left; the others are set flush right.

    Returns
    -------
    list of str
        The lines, a rule below the header.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        laid = (cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in pairs)
        return "  ".join(laid).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show how far the work has come: a bar on a terminal, a line a step elsewhere, on standard error.

    Parameters
    ----------
    total : int
        The number of steps.

    Yields
    ------
    callable
        To be called with a step's name as that step starts.
    """
    if sys.stderr is not None and sys.stderr.isatty() and find_spec("rich"):
        with _bar(total) as step:
            yield step
    else:
        yield _lines(total)


def _lines(total: int) -> Callable[[str], None]:
    count = iter(range(1, total + 1))

    def step(name: str) -> None:
        tell(f"[{next(count)}/{total}] {name}")

    return step


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        done = iter(range(total))

        def step(name: str) -> None:
            bar.update(task, description=name, completed=next(done))

        yield step


def duration(seconds: float) -> str:
    """Return a time in the unit that reads best."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def size(count: float) -> str:
    """Return a number of bytes in MB of 10^6 bytes."""
    return f"{count / 1e6:.3g} MB"


def share(budget: float) -> str:
    """Return a budget as it is usually written: 1/8 for 0.125, 1e-300 for what is no budget in earnest."""
    if budget < SMALLEST_SHARE:
        return f"{budget:.3g}"
    inverse = round(1 / budget)
    return f"1/{inverse}" if abs(inverse * budget - 1) < 1e-9 and inverse > 1 else f"{budget:g}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
