"""``scatterbrain demo``: a real encoder with its attention replaced by each method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

import scatterbrain_core as sb
from scatterbrain_core.cli.arguments import BUDGETS, DEMO_METHODS
from scatterbrain_core.cli.console import plural, say, table
from scatterbrain_core.cli.errors import library_errors
from scatterbrain_core.cli.files import check_outputs
from scatterbrain_core.cli.material import Attention, Embed, Material, find_material
from scatterbrain_core.cli.measure import (
    Array,
    Row,
    can_hold_threads,
    check_methods,
    dense_attention,
    one_thread,
)
from scatterbrain_core.cli.plot import Panel, plot_path, write_plot
from scatterbrain_core.cli.reading import reading
from scatterbrain_core.cli.sweep import Problem, choice, sweep

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

ERROR = Panel(
    "error of the attention output, ‖Ô - O‖ / ‖O‖",
    lambda row: row.errors,
    lambda row: row.error,
    show_exact=False,
)
COSINE = Panel(
    "cosine of the embedding to the exact one", lambda row: row.cosines, lambda row: row.cosine, log=False
)


def run(arguments: argparse.Namespace) -> int:
    """Measure every method at every budget on the model, print the table and write the plot."""
    methods = arguments.methods or DEMO_METHODS
    check_methods(methods)
    picture = plot_path(arguments.output, "scatterbrain-demo.png")
    check_outputs({"--output": picture}, {} if arguments.text is None else {"--text": arguments.text})
    material = find_material(arguments.text)
    say(material.told)
    with library_errors({}), one_thread():
        rows = _rows(arguments, methods, material)
    _print(rows, material, arguments.seeds)
    panels = (ERROR, COSINE) if material.embed else (ERROR,)
    title = f"MiniLM-L6 with its attention replaced ({plural(arguments.seeds, 'seed')}: median and range)"
    write_plot(picture, rows, panels, title)
    return 0


def _rows(arguments: argparse.Namespace, methods: Sequence[str], material: Material) -> list[Row]:
    problem = Problem(material.layers, [dense_attention(*layer) for layer in material.layers])
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    complete = None
    if material.embed is not None:
        complete = partial(_with_cosines, material.embed, material.embed(dense_attention), seeds)
    return sweep(problem, methods, arguments.budgets or BUDGETS, seeds, complete)


def _with_cosines(embed: Embed, exactly: Array, seeds: Sequence[int], row: Row) -> Row:
    drawn = seeds if row.budget is not None else seeds[:1]
    return replace(row, cosines=tuple(float(np.dot(embed(_replaced(row, seed)), exactly)) for seed in drawn))


def _replaced(row: Row, seed: int) -> Attention:
    """Return the row's method as the model calls it, layer after layer."""
    number = count()

    def attention(query: Array, key: Array, value: Array) -> Array:
        chosen = choice(row.method, row.budget, seed, next(number))
        output: Array = sb.attention(query, key, value, **chosen)
        return output

    return attention


def _print(rows: Sequence[Row], material: Material, seeds: int) -> None:
    header = ["method", "budget", "used", "output error", "time"]
    cells = [row.cells for row in rows]
    if material.embed:
        header.insert(4, "embedding cosine")
        for cell, row in zip(cells, rows, strict=True):
            cell.insert(4, f"{row.cosine:.4f}")
    for line in ("", *table(header, cells), "", *reading(rows)):
        say(line)
    heads, tokens = material.layers[0][0].shape[:2]
    layers = f"{len(material.layers)} layers of {heads} heads, {tokens} tokens"
    say(f"Output error: mean over {layers}, each layer fed exactly; median of {plural(seeds, 'seed')}.")
    if material.embed:
        say("Embedding: attention replaced in every layer, each fed by the replaced ones before it; median.")
    threads = ", on one thread" if can_hold_threads() else ""
    say(f"Time: the attention of these layers, the fastest run{threads}; used: of the keys, first seed.")
