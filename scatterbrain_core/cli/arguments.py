"""The arguments of every command."""

from __future__ import annotations

import argparse
import math
import re
from fractions import Fraction
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from scatterbrain_core._version import __version__
from scatterbrain_core.cli.console import say, share
from scatterbrain_core.cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

EPILOG = "Every command has its own --help."
BUDGETS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Ours, the paper's, and the two halves of the paper's.
DEMO_METHODS = ("auto", "scatterbrain", "performer", "lsh")
LONGEST_FRACTION, MOST_DIGITS, LONGEST_ECHO = 40, 100, 40


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` instead of printing the usage and leaving."""
        raise UserError(re.sub("^argument ([^ ]+): must ", r"\1 must ", message))

    def _print_message(self, message: str, file: object = None) -> None:
        # argparse itself keeps quiet where the help cannot be written.
        del file
        say(message.removesuffix("\n"))


def parser() -> Parser:
    """Return the parser of ``scatterbrain``; the chosen command is in its ``run``."""
    top = Parser(
        prog="scatterbrain",
        description="Scatterbrain attention (sparse + low-rank): try it, apply it to files, compare methods.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"scatterbrain {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="command")
    _demo(
        _command(commands, "demo", "run a real sentence encoder with its attention replaced by each method")
    )
    _attend(_command(commands, "attend", "attention of three .npy files"))
    _compare(_command(commands, "compare", "error, time and memory of the methods on three .npy files"))
    _command(commands, "methods", "list the methods with their references")
    _command(commands, "doctor", "show which backends and devices work here")
    return top


def _command(commands: argparse._SubParsersAction[Parser], name: str, told: str) -> Parser:
    added = commands.add_parser(
        name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False
    )
    added.set_defaults(run=_lazily(name))
    return added


def _lazily(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        code: int = import_module(f"scatterbrain_core.cli.{name}").run(arguments)
        return code

    return run


def _demo(demo: Parser) -> None:
    _sweep(demo, " ".join(DEMO_METHODS))
    demo.add_argument(
        "--text", metavar="FILE", type=filename, help="a text in UTF-8 (default: the bundled one)"
    )
    _plot(demo)


def _compare(compare: Parser) -> None:
    _inputs(compare)
    _sweep(compare, "all that can take such a call")
    _plot(compare)


def _attend(attend: Parser) -> None:
    _inputs(attend)
    attend.add_argument(
        "-o", "--output", metavar="OUT.npy", type=filename, required=True, help="the attention output"
    )
    attend.add_argument(
        "--method", metavar="M", default="auto", help="one of `scatterbrain methods` (default: %(default)s)"
    )
    attend.add_argument(
        "--budget",
        metavar="B",
        type=budget,
        default=0.125,
        help="entries kept a row, as a fraction of the keys (default: 1/8)",
    )
    attend.add_argument(
        "--seed", metavar="S", type=whole(0), default=0, help="of the random draws (default: %(default)s)"
    )
    attend.add_argument(
        "--max-memory",
        metavar="BYTES",
        type=whole(1),
        help="what the call may take beside its inputs, which stay in their files, and its output",
    )
    for option, told in (("--lse", "log of the normaliser"), ("--stderr", "estimated standard error")):
        attend.add_argument(option, metavar="FILE.npy", type=filename, help=f"also write the {told}")


def _inputs(command: Parser) -> None:
    for name, shape in (("query", "(..., Lq, D)"), ("key", "(..., Lk, D)"), ("value", "(..., Lk, Dv)")):
        metavar = f"{name[0].upper()}.npy"
        command.add_argument(name, metavar=metavar, type=filename, help=f"the {name}, {shape}")
    command.add_argument("--causal", action="store_true", help="a query sees the keys up to its own place")
    command.add_argument(
        "--mask",
        metavar="MASK.npy",
        type=filename,
        help="booleans, True = may attend; with --causal one of keys (..., 1, Lk) or of queries (..., Lq, 1)",
    )
    command.add_argument(
        "--scale", metavar="X", type=finite, help="factor of the dot products (default: 1/sqrt(D))"
    )
    command.add_argument("--gqa", action="store_true", help="the query has a multiple of the key's heads")


def _sweep(command: Parser, default: str) -> None:
    command.add_argument(
        "--budget",
        metavar="B",
        type=budget,
        action="append",
        help=f"may be repeated (default: {' '.join(map(share, BUDGETS))})",
        dest="budgets",
    )
    command.add_argument(
        "--method",
        metavar="M",
        action="append",
        help=f"may be repeated (default: {default}); `exact` is the reference row of every table",
        dest="methods",
    )
    command.add_argument(
        "--seed", metavar="S", type=whole(0), default=0, help="the first seed (default: %(default)s)"
    )
    command.add_argument(
        "--seeds",
        metavar="N",
        type=whole(1),
        default=3,
        help="how many seeds the median is over (default: %(default)s)",
    )


def _plot(command: Parser) -> None:
    default = command.prog.replace(" ", "-") + ".png"
    command.add_argument("--output", metavar="PLOT", type=filename, help=f"the plot (default: {default})")


def budget(text: str) -> float:
    """Parse a fraction of the keys, as 0.125 or 1/8."""
    try:
        # A Fraction of 1e-99999999 is worked out to its last digit; one of two short integers is quick.
        value = float(Fraction(text) if "/" in text and len(text) <= LONGEST_FRACTION else text)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1] such as 0.125 or 1/8, got {echo(text)}")
    return value


def finite(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {echo(text)}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` on."""

    def parse(text: str) -> int:
        digits = text.isascii() and text.isdigit()
        if not digits or len(text) > MOST_DIGITS or int(text) < least:
            limit = f" of at most {MOST_DIGITS} digits" if digits and len(text) > MOST_DIGITS else ""
            kind = "positive" if least else "non-negative"
            raise argparse.ArgumentTypeError(f"must be a {kind} integer{limit}, got {echo(text)}")
        return int(text)

    return parse


def filename(text: str) -> str:
    """Refuse an empty name, which would stand for the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("must name a file, got an empty name")
    return text


def echo(text: str) -> str:
    """Return what was typed, in quotes and cut where it is long."""
    return repr(text if len(text) <= LONGEST_ECHO else f"{text[: LONGEST_ECHO - 1]}…")
