"""Pictures: a figure against the budget, one line a method."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scatterbrain_core.cli.console import announce, say, share
from scatterbrain_core.cli.errors import UserError, install
from scatterbrain_core.cli.files import write_whole
from scatterbrain_core.cli.measure import EXACT, Row
from scatterbrain_core.cli.streams import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
# Okabe and Ito's colours, told apart by colour-blind readers too; the markers serve a print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
FEW_TICKS, MANY_TICKS = (1, 3), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)


@dataclass(frozen=True)
class Panel:
    """One figure of the picture.

    Attributes
    ----------
    label : str
        Of the vertical axis.
    values : callable
        From a row to its values, one a seed, or a single one.
    centre : callable
        From a row to the value the line goes through.
    log : bool
        Whether the vertical axis is logarithmic.
    show_exact : bool
        Whether a dashed line shows exact attention.
    """

    label: str
    values: Callable[[Row], Sequence[float]]
    centre: Callable[[Row], float]
    log: bool = True
    show_exact: bool = True


def plot_path(asked: str | None, default: str) -> str | None:
    """Return the file for the plot, or None where matplotlib is missing and no plot was asked for.

    Raises
    ------
    UserError
        Where a plot was asked for and matplotlib is missing, or its format is not known.
    """
    if find_spec("matplotlib") is None:
        if asked is not None:
            raise UserError(f"--output needs matplotlib, which is not installed: {install('matplotlib')}")
        tell(f"matplotlib is not installed, the plot is left out: {install('matplotlib')}")
        return None
    path = asked or default
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"--output must end in {', '.join(FORMATS)}, got {path}")
    return path


def write_plot(path: str | None, rows: Sequence[Row], panels: Sequence[Panel], title: str) -> None:
    """Draw the panels side by side, write them to `path` and say so; None leaves the plot out."""
    if path is None:
        return
    if len(rows) == 1:
        say(f"plot: none ({path} is not written), as exact attention alone has no budget to plot against")
        return
    figure = draw(rows, panels, title)
    form = Path(path).suffix.lower().removeprefix(".")
    write_whole(
        {path: lambda file: figure.savefig(file, format=form, dpi=150)}, lambda: announce(f"plot: {path}")
    )


def draw(rows: Sequence[Row], panels: Sequence[Panel], title: str) -> Figure:
    """Return the picture: a panel a figure, a line a method, a band over the seeds."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(1 + 4.4 * len(panels), 4.2), layout=ConstrainedLayoutEngine(w_pad=0.12))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, rows, panel)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_panel(axis: Axes, rows: Sequence[Row], panel: Panel) -> None:
    exact, *others = rows
    for method, colour, marker in zip(
        dict.fromkeys(row.method for row in others), _cycle(COLOURS), _cycle(MARKERS), strict=False
    ):
        line = [row for row in others if row.method == method]
        _draw_line(axis, line, panel, method, colour, marker)
    if panel.show_exact:
        axis.axhline(panel.centre(exact), color="0.35", linestyle="--", linewidth=1.2, label=EXACT)
    label_axes(axis, sorted({row.budget for row in others if row.budget is not None}), panel.label)
    if panel.log and any(panel.centre(row) > 0 for row in others):
        log_scale(axis)


def _draw_line(axis: Axes, rows: Sequence[Row], panel: Panel, method: str, colour: str, marker: str) -> None:
    budgets = [row.budget for row in rows if row.budget is not None]
    axis.plot(budgets, [panel.centre(row) for row in rows], color=colour, marker=marker, label=method)
    low, high = ([end(panel.values(row)) for row in rows] for end in (min, max))
    axis.fill_between(budgets, low, high, color=colour, alpha=0.15, linewidth=0)


def label_axes(axis: Axes, budgets: Sequence[float], label: str) -> None:
    """Put the budgets, as fractions, on a logarithmic axis, and `label` on the other."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [share(budget) for budget in budgets])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("budget (fraction of the keys)")
    axis.set_ylabel(label)
    axis.grid(color="0.9", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def log_scale(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with ticks that can be read."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=FEW_TICKS if high > 8 * low else MANY_TICKS))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def _cycle(items: Sequence[str]) -> Sequence[str]:
    return list(items) * 4
