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


def summary(record: Record, name: str) -> list[str]:
    """Return the lines of a Markdown table of a model: mean error and quality, a column a budget."""
    model = record.models[name]
    of_model: dict[str, dict[float, Result]] = {}
    for case, result in record.results.items():
        if case.model == name and case.budget is not None and result.refused is None:
            of_model.setdefault(case.method, {})[case.budget] = result
    budgets = sorted({budget for row in of_model.values() for budget in row}, reverse=True)
    columns = [
        f"{what} at {share(budget)}" for what in ("mean error", model["quality"]) for budget in budgets
    ]
    rows = [["method", *columns], ["---", *["---:"] * len(columns)]]
    for method, row in of_model.items():
        found = [row.get(budget) for budget in budgets]
        errors = ["" if x is None or not x.errors else f"{spread(x.errors)['mean']:.2g}" for x in found]
        qualities = ["" if x is None or x.quality is None else f"{x.quality:.4g}" for x in found]
        rows.append([f"`{method}`", *errors, *qualities])
    return [f"| {' | '.join(row)} |" for row in rows]


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
