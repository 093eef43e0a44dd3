"""The plot: mean error and quality against the budget, one line a method, one row a model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.accuracy.measure import Result, spread
from benchmarks.accuracy.record import Record
from scatterbrain_core.cli.files import write_whole
from scatterbrain_core.cli.measure import EXACT
from scatterbrain_core.cli.plot import COLOURS, label_axes, log_scale

MARKERS = "osD^vPX"  # seven to the six colours: 42 lines before two look the same
OURS = {"color": "black", "marker": "*", "markersize": 10, "linewidth": 2.2, "zorder": 5}
LABELS = {
    "perplexity": "increase of perplexity over exact, relative",
    "cosine": "1 − cosine to the exact embedding",
}
LEAST = 1e-3  # a smaller loss, or a gain, is drawn here: the axis is logarithmic


def draw(record: Record, path: Path) -> None:
    """Write the picture of all models."""
    figure = Figure(figsize=(11, 4.2 * len(record.models)), layout=ConstrainedLayoutEngine(w_pad=0.1))
    grid = figure.subplots(len(record.models), 2, squeeze=False)
    styles = _styles(record)
    for axes, (name, model) in zip(grid, record.models.items(), strict=True):
        results = [x for case, x in record.results.items() if case.model == name and case.method != EXACT]
        _panel(axes[0], results, styles, _mean_error, "mean error of a head's output, ‖Ô − O‖ / ‖O‖")
        _panel(axes[1], results, styles, _loss(model), LABELS[model["quality"]])
        axes[0].set_title(f"{model['told'].split(' over ')[0]}, {model['tokens']} tokens", fontsize=10)
    lines = {line.get_label(): line for axis in grid.flat for line in axis.get_lines()}
    figure.legend(handles=list(lines.values()), loc="outside right upper", frameon=False)
    write_whole({str(path): lambda file: figure.savefig(file, format="png", dpi=150)})


def _styles(record: Record) -> dict[str, dict[str, Any]]:
    """Return what each method's line looks like: the same in every panel."""
    methods = dict.fromkeys(case.method for case in record.results if case.method not in (EXACT, "auto"))
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    plain = {
        method: {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2}
        for method, (colour, marker) in zip(methods, looks, strict=False)
    }
    return {"auto": OURS} | plain


def _mean_error(result: Result) -> float | None:
    return spread(result.errors)["mean"] if result.errors else None


def _loss(model: dict[str, Any]) -> Callable[[Result], float | None]:
    def of_result(result: Result) -> float | None:
        if result.quality is None:
            return None
        loss = 1 - result.quality if model["quality"] == "cosine" else result.quality / model["exact"] - 1
        return max(loss, LEAST)

    return of_result


def _panel(
    axis: Axes,
    results: list[Result],
    styles: dict[str, dict[str, Any]],
    value: Callable[[Result], float | None],
    label: str,
) -> None:
    budgets = sorted({x.case.budget for x in results if x.case.budget is not None})
    for method, style in styles.items():
        found = [(x.case.budget, value(x)) for x in results if x.case.method == method]
        points = sorted((budget, y) for budget, y in found if y is not None)
        if points:
            axis.plot(*zip(*points, strict=True), label=method, **style)
    label_axes(axis, budgets, label)
    log_scale(axis)
