"""The tables: a figure each, a line a method, a column a length."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import median

from benchmarks.cpu.cases import DATA_TOLD, Case, Result
from benchmarks.cpu.pairs import median_ratio
from benchmarks.cpu.record import Record
from scatterbrain_core.cli.console import table

Value = Callable[[Result], str]
MIB = 2**20


def report(record: Record) -> list[str]:
    """The lines of all tables, and what they leave out, with the reasons."""
    machine = record.header["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {record.settings['threads']} threads, "
        f"load {machine['load_average']:.2f}; commit {record.header['commit']}, {record.header['date']}",
        f"{told(record)}; ours by {', '.join(machine['backends'].values())}",
    ]
    for data in dict.fromkeys(case.data for case in record.results):
        lines += data_report(record, data)
    lines += ["", *(f"{name}: {what}" for name, what in record.methods.items())]
    return [*lines, *(f"{name}: not run, {why}" for name, why in record.absent.items())]


def told(record: Record) -> str:
    """The settings in words."""
    own = record.settings
    shape = f"{own['heads']} heads, d = {own['dim']}, float32"
    entries = f"{own['entries']} entries a query, seed {own['seed']}"
    return ("causal, " if own["is_causal"] else "") + f"{shape}, {entries}"


def data_report(record: Record, data: str) -> list[str]:
    """The tables of one kind of data, and footnotes."""
    cases = [case for case in record.results if case.data == data]
    lengths = sorted({case.length for case in cases})
    methods = list(dict.fromkeys(case.method for case in cases))
    notes: list[str] = []
    lines = ["", f"{data}: {DATA_TOLD[data]}"]
    for title, value in FIGURES.items():
        rows = [[name, *_cells(record, data, name, lengths, value, notes)] for name in methods]
        lines += ["", *table([title, *map(short, lengths)], rows)]
    growths = [[name, *_growths(record, data, name, lengths)] for name in methods]
    lines += ["", *table(["time for twice the keys", *map(short, lengths)], growths)]
    told_notes = [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    return [*lines, "", *told_notes] if notes else lines


def _cells(
    record: Record, data: str, name: str, lengths: list[int], value: Value, notes: list[str]
) -> list[str]:
    """A method's figure by length; a number in brackets where a footnote says why there is none."""
    cells = []
    for length in lengths:
        result = record.results.get(Case(data, length, name))
        if result is None:
            cells.append("")
        elif result.reason is None:
            cells.append(value(result))
        else:
            note = f"{name}: {result.reason}"
            if note not in notes:
                notes.append(note)
            cells.append(f"[{notes.index(note) + 1}]")
    return cells


def _growths(record: Record, data: str, name: str, lengths: list[int]) -> list[str]:
    """How many times as long it takes for twice the keys, beside the length before."""
    cells = [""]
    for short_, long_ in pairwise(lengths):
        found = [record.results.get(Case(data, n, name)) for n in (short_, long_)]
        seconds = [median(x.times) for x in found if x is not None and x.times]
        cells.append(f"{growth(seconds, long_ / short_):.2f}" if len(seconds) == len(found) else "")
    return cells


def growth(seconds: list[float], factor: float) -> float:
    """From two times and the ratio of their lengths: the factor of the time a doubling."""
    before, after = seconds
    return float((after / before) ** (1 / math.log2(factor)))


def milliseconds(result: Result) -> str:
    """The median time."""
    return (
        f"{1e3 * median(result.times):.3g}"
        if median(result.times) < 1
        else (f"{1e3 * median(result.times):.0f}")
    )


def ratio(result: Result) -> str:
    """How many times as fast as Torch's own attention; nothing where that was not run."""
    found = median_ratio(result.reference_times, result.times)
    return "" if found is None else f"{found:.3g}"


def mebibytes(result: Result) -> str:
    """The peak over what was held before."""
    at_least = ">" if result.is_lower_bound else ""
    return f"{at_least}{result.peak_bytes / MIB:.0f}"


def cost(result: Result) -> str:
    """Exact pairs and rank; a tilde where they are what was asked for and not counted."""
    asked = "" if result.is_counted else "~"
    return f"{asked}{result.pairs:.0f}+{result.rank:.0f}"


def short(length: int) -> str:
    """A length in units of 1024 where it is a multiple."""
    units = ((2**20, "M"), (2**10, "k"))
    return next((f"{length // unit}{name}" for unit, name in units if length % unit == 0), str(length))


FIGURES: dict[str, Value] = {
    "milliseconds": milliseconds,
    "times as fast as torch sdpa": ratio,
    "peak extra MiB": mebibytes,
    "relative error": lambda result: f"{result.error:.2g}",
    "exact pairs + rank": cost,
}
