"""The table of a model, and its footnotes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy.measure import Result, spread
from benchmarks.accuracy.record import PLACE, Record
from scatterbrain_core.cli.console import duration, share, table

COLUMNS = ("median", "mean", "p95", "max")
QUALITIES = {"perplexity": ["perplexity", "of exact"], "cosine": ["cosine"]}


def report(record: Record) -> list[str]:
    """Return the lines of all models."""
    return [line for name in record.models for line in ("", *model_report(record, name))]


def model_report(record: Record, name: str) -> list[str]:
    """Return title, table and footnotes of a model."""
    model = record.models[name]
    results = [result for case, result in record.results.items() if case.model == name]
    header = ["method", "budget", "cost", "max cost", *(f"error: {x}" for x in COLUMNS), "time"]
    header += QUALITIES[model["quality"]]
    notes = list(dict.fromkeys(result.refused for result in results if result.refused is not None))
    cells = [_cells(result, model["exact"], notes, len(header)) for result in results]
    return [
        f"{model['told']}: {model['tokens']} tokens, {_layers(record, results)}",
        f"methods on {record.settings[PLACE]}, at commit {record.header['commit']}",
        "",
        *table(header, cells),
        *(f"[{number}] refused: {note}" for number, note in enumerate(notes, start=1)),
    ]


def _cells(result: Result, exact: float, notes: Sequence[str], width: int) -> list[str]:
    budget = "-" if result.case.budget is None else share(result.case.budget)
    named = [result.case.method, budget]
    if result.refused is not None:
        return [*named, f"[{notes.index(result.refused) + 1}]", *[""] * (width - 3)]
    costs = [""] * 2
    if result.costs:
        of_heads = spread(result.costs)
        costs = [f"{of_heads['mean']:.4f}", f"{of_heads['max']:.4f}"]
    errors = [""] * 5
    if result.errors:
        of_heads = spread(result.errors)
        errors = [*(f"{of_heads[name]:.3g}" for name in COLUMNS), duration(result.seconds)]
    qualities = ["", ""]
    if result.quality is not None:
        qualities = [f"{result.quality:.5g}", f"{result.quality / exact:.4f}"]
    return [*named, *costs, *errors, *qualities][:width]


def _layers(record: Record, results: Sequence[Result]) -> str:
    counts = {(len(x.errors), len(x.errors[0])) for x in results if x.errors}
    of_each = " or ".join(f"{layers} layers of {heads} heads" for layers, heads in sorted(counts))
    return f"errors over {of_each or 'nothing'}; seed {record.settings['seed']}"
