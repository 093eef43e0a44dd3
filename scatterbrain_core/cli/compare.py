"""``scatterbrain compare``: error, time and memory of the methods on arrays in files."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

import scatterbrain_core as sb
from scatterbrain_core.cli.arguments import BUDGETS
from scatterbrain_core.cli.attend import input_files, read_operands, read_options
from scatterbrain_core.cli.console import plural, say, size, table
from scatterbrain_core.cli.errors import library_errors
from scatterbrain_core.cli.files import check_outputs
from scatterbrain_core.cli.measure import (
    EXACT,
    Row,
    approximations,
    can_hold_threads,
    check_methods,
    one_thread,
    peak_memory,
)
from scatterbrain_core.cli.plot import Panel, plot_path, write_plot
from scatterbrain_core.cli.reading import reading
from scatterbrain_core.cli.sweep import Problem, sweep
from scatterbrain_core.presets import PRESETS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

HEADER = ("method", "budget", "used", "error", "time", "peak memory")
PANELS = (
    Panel(
        "error of the output, ‖Ô - O‖ / ‖O‖", lambda row: row.errors, lambda row: row.error, show_exact=False
    ),
    Panel("time (s)", lambda row: (row.seconds,), lambda row: row.seconds),
    Panel("peak memory (MB)", lambda row: (row.megabytes,), lambda row: row.megabytes),
)


def run(arguments: argparse.Namespace) -> int:
    """Measure every method at every budget, print the table and write the plot."""
    methods = arguments.methods or approximations()
    check_methods(methods)
    picture = plot_path(arguments.output, "scatterbrain-compare.png")
    check_outputs({"--output": picture}, input_files(arguments))
    operands, options = read_operands(arguments), read_options(arguments)
    with library_errors(input_files(arguments)), one_thread():
        # The reference is cast to float64, so that the library must see the arrays as they are first.
        sb.attention(*operands, method=EXACT, **options)
        exactly = sb.attention(*(x.astype(np.float64) for x in operands), method=EXACT, **options)
        methods = methods if arguments.methods else _able(methods, options)
        problem = Problem([operands], [exactly], options)
        rows, refused = _rows(arguments, methods, problem)
    _print(rows, arguments.seeds)
    for name, error in refused.items():
        say(f"Not measured: {name}, {error}.")
    write_plot(picture, rows, PANELS, f"query {operands[0].shape}, key {operands[1].shape}")
    return 0


def _able(methods: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Return the methods that take such a call, and tell which of them do not."""
    mask = options["attn_mask"]
    if options["is_causal"]:
        name, reason = "--causal", attrgetter("reason_not_causal")
    elif mask is not None and mask.ndim > 1 and min(mask.shape[-2:]) > 1:
        name, reason = "this --mask", attrgetter("reason_not_masked")
    else:
        return list(methods)
    able = [method for method in methods if not any(map(reason, PRESETS[method].method.parts.values()))]
    if len(able) < len(methods):
        say(f"not with {name}: {', '.join(method for method in methods if method not in able)}")
    return able


def _rows(
    arguments: argparse.Namespace, methods: Sequence[str], problem: Problem
) -> tuple[list[Row], dict[str, ValueError]]:
    """Measure; of methods that were not asked for by name, those that are refused a budget are told."""
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)

    def with_memory(row: Row) -> Row:
        return replace(row, memory=peak_memory(lambda: problem.attend(row.method, row.budget, seeds[0])))

    refused: dict[str, ValueError] = {}
    note = None if arguments.methods else refused.__setitem__
    rows = sweep(problem, methods, arguments.budgets or BUDGETS, seeds, with_memory, note)
    return rows, refused


def _print(rows: Sequence[Row], seeds: int) -> None:
    cells = [(*row.cells, size(row.memory or 0)) for row in rows]
    for line in (*table(HEADER, cells), "", *reading(rows)):
        say(line)
    threads = ", on one thread" if can_hold_threads() else ""
    yardstick = f"Error: against exact attention in float64, median of {plural(seeds, 'seed')}"
    say(f"{yardstick}; time: of the fastest{threads}.")
    say("Peak memory: of NumPy's and Python's allocations beyond the inputs, in a separate run.")
