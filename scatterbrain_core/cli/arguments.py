"""The arguments of every command."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from scatterbrain_core._version import __version__
from scatterbrain_core.cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

EPILOG = "Every command has its own --help."


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` instead of printing the usage and leaving."""
        raise UserError(message)


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
    _sweep(demo, "1/16 1/8 1/4 1/2")
    demo.add_argument("--text", metavar="FILE", help="a text in UTF-8 (default: the bundled one)")
    demo.add_argument("--output", metavar="PLOT", help="the plot (default: scatterbrain-demo.png)")


def _compare(compare: Parser) -> None:
    _inputs(compare)
    _sweep(compare, "1/16 1/8 1/4 1/2")
    compare.add_argument("--output", metavar="PLOT", help="the plot (default: scatterbrain-compare.png)")


def _attend(attend: Parser) -> None:
    _inputs(attend)
    attend.add_argument("-o", "--output", metavar="OUT.npy", required=True, help="the attention output")
    attend.add_argument(
        "--method", default="auto", help="one of `scatterbrain methods` (default: %(default)s)"
    )
    attend.add_argument(
        "--budget",
        type=budget,
        default=0.125,
        help="entries kept a row, as a fraction of the keys (default: 1/8)",
    )
    attend.add_argument("--seed", type=whole(0), default=0, help="of the random draws (default: %(default)s)")
    attend.add_argument("--lse", metavar="FILE.npy", help="also write the log of the normaliser")
    attend.add_argument("--stderr", metavar="FILE.npy", help="also write the estimated standard error")


def _inputs(command: Parser) -> None:
    for name, shape in (("query", "(..., Lq, D)"), ("key", "(..., Lk, D)"), ("value", "(..., Lk, Dv)")):
        command.add_argument(name, metavar=f"{name[0].upper()}.npy", help=f"the {name}, {shape}")
    command.add_argument("--causal", action="store_true", help="a query sees the keys up to its own place")
    command.add_argument("--scale", type=finite, help="factor of the dot products (default: 1/sqrt(D))")
    command.add_argument("--mask", metavar="MASK.npy", help="booleans, True = may attend")
    command.add_argument("--gqa", action="store_true", help="the query has a multiple of the key's heads")


def _sweep(command: Parser, budgets: str) -> None:
    command.add_argument(
        "--budget", type=budget, action="append", help=f"may be repeated (default: {budgets})", dest="budgets"
    )
    command.add_argument("--method", action="append", help="may be repeated (default: all)", dest="methods")
    command.add_argument("--seed", type=whole(0), default=0, help="the first seed (default: %(default)s)")
    command.add_argument(
        "--seeds", type=whole(1), default=3, help="how many seeds the median is over (default: %(default)s)"
    )


def budget(text: str) -> float:
    """Parse a fraction of the keys, as 0.125 or 1/8."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1] such as 0.125 or 1/8, got {text!r}")
    return value


def finite(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` on."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text!r}")
        return int(text)

    return parse
