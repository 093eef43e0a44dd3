"""The plots of one kind of data: time, ratio and memory by length, and error against time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.cpu.cases import DATA_TOLD, Case, Result
from benchmarks.cpu.methods import SDPA
from benchmarks.cpu.pairs import median_ratio
from benchmarks.cpu.record import Record
from benchmarks.cpu.report import MIB, short, told
from scatterbrain_core.cli.files import write_whole
from scatterbrain_core.cli.measure import EXACT
from scatterbrain_core.cli.plot import COLOURS, log_scale

Value = Callable[[Result], float | None]
REFERENCE = {"color": "0.35", "linestyle": "--", "marker": "s"}
# Ours are drawn thick and full, peers thin: they are told apart before the legend is read.
OURS = {"linewidth": 2.4, "markersize": 7, "zorder": 5, "marker": "o"}
EXACT_GREY = "0.6"
ON_ANOTHER = {"linestyle": "--", "markerfacecolor": "white"}
PEER = {"linewidth": 1.2, "markersize": 5}
PEER_MARKERS = "D^vPX*"
MORE_COLOURS = ("#7F4F24", "#000000")
TIME_TICKS = (1, 2, 5)
LEAST_ERROR = 1e-8  # a smaller one is drawn here: the axis is logarithmic


def draw(record: Record, data: str, path: Path) -> None:
    """Write the picture of one kind of data."""
    figure = Figure(figsize=(13, 9.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    time, ratio, error, memory = figure.subplots(2, 2).flat
    styles = _styles(record)
    _by_length(time, record, data, styles, lambda x: median(x.times), "seconds a call")
    _by_length(ratio, record, data, styles, _ratio, "times as fast as torch sdpa, run in turn")
    _by_length(memory, record, data, styles, lambda x: x.peak_bytes / MIB, "MiB at the peak, over the inputs")
    _error_by_time(error, record, data, styles)
    for axis in (time, ratio, error, memory):
        axis.grid(color="0.9", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {line.get_label(): line for line in time.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_title(record, data), fontsize=11)
    write_whole({str(path): lambda file: figure.savefig(file, format="png", dpi=130)})


def _title(record: Record, data: str) -> str:
    machine = record.header["machine"]
    return (
        f"{data}: {DATA_TOLD[data]}\n{told(record)}; {machine['processor']}, "
        f"{record.settings['threads']} threads; {record.header['date'][:10]}, {record.header['commit'][:10]}"
    )


def _styles(record: Record) -> dict[str, dict[str, Any]]:
    """Each method's line, the same in every panel; ours on another library has the same colour, dashed."""
    names = [name for name in record.methods if name != SDPA]
    colours, markers = iter((*COLOURS, *MORE_COLOURS) * 2), iter(PEER_MARKERS * 3)
    colour_of = {EXACT: EXACT_GREY}
    found: dict[str, dict[str, Any]] = {SDPA: REFERENCE}
    for name in names:
        plain, _, library = name.partition(" (")
        if plain not in colour_of:
            colour_of[plain] = next(colours)
        look = OURS if record.methods[name].startswith("ours") else PEER | {"marker": next(markers)}
        found[name] = look | {"color": colour_of[plain]} | (ON_ANOTHER if library else {})
    return found


def _by_length(
    axis: Axes, record: Record, data: str, styles: dict[str, dict[str, Any]], value: Value, label: str
) -> None:
    lengths = sorted({case.length for case in record.results if case.data == data})
    for name, style in styles.items():
        found = [record.results.get(Case(data, length, name)) for length in lengths]
        points = [(x.case.length, value(x)) for x in found if x is not None and x.reason is None]
        drawn = [(length, y) for length, y in points if y is not None and y > 0]
        if drawn:
            axis.plot(*zip(*drawn, strict=True), label=name, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [short(length) for length in lengths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel="keys and queries", ylabel=label)
    log_scale(axis)


def _ratio(result: Result) -> float | None:
    return median_ratio(result.reference_times, result.times)


def _error_by_time(axis: Axes, record: Record, data: str, styles: dict[str, dict[str, Any]]) -> None:
    """At the longest length where Torch's own attention was run: lower left is better."""
    length = max(
        (x.case.length for x in record.results.values() if x.case.data == data and x.reference_times),
        default=max(case.length for case in record.results if case.data == data),
    )
    for name, style in styles.items():
        result = record.results.get(Case(data, length, name))
        if result is not None and result.reason is None:
            axis.plot([median(result.times)], [max(result.error, LEAST_ERROR)], label=name, **style)
    axis.set(xscale="log", xlabel=f"seconds a call at n = {short(length)}", ylabel="relative error")
    axis.xaxis.set_major_locator(LogLocator(subs=TIME_TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yscale("log")
    axis.margins(0.12)
