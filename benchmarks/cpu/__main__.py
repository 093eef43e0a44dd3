"""How fast on the CPU, beside Torch's own attention and other packages: ``python -m benchmarks.cpu``.

For every kind of data, length and method, each in a fresh process: memory at the peak of a call and its
error against exact attention in float64 (of some rows); then times, in turn with those of Torch's
scaled_dot_product_attention, whose ratio is the median over these pairs; and the exact pairs and the rank
that were used. A method stops at a length where a call would take too long or too much memory by its growth
so far; the tables say so. Prints tables, and writes all numbers as JSON and a plot for each kind of data.
Needs Torch and the extras demo and plot; the other packages are the extras peer-… (``make peers`` installs
all).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cpu.cases import DATA, Case, Result
from benchmarks.cpu.methods import LIBRARIES
from benchmarks.cpu.pairs import median_ratio
from benchmarks.cpu.peers import PEERS
from benchmarks.cpu.picture import draw
from benchmarks.cpu.processes import ChildError, end_as_interrupted, run_child
from benchmarks.cpu.record import Record, header, load
from benchmarks.cpu.report import MIB, report
from benchmarks.cpu.run import SETUP_SECONDS, Run, Settings, cases, choose
from benchmarks.shared.files import check_same
from scatterbrain_core.cli.arguments import whole
from scatterbrain_core.cli.console import duration

RESULTS = Path(__file__).parent.parent / "results" / "cpu.json"
QUICK: dict[str, Any] = {"lengths": [1024, 4096], "n_pairs": 3}
FULL: dict[str, Any] = {"lengths": [2**i for i in range(10, 21)], "n_pairs": 5}
# Of the memory that is free at the start.
MEMORY_SHARE = 0.75
GIB = 2**30
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or read what was measured; print the tables and draw the plots."""
    options = parse(argv)
    end_as_interrupted()
    try:
        record = load(options.show) if options.show else run(options)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured before is in {options.output}", file=sys.stderr)
        return INTERRUPTED
    except ChildError as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 1
    print(*report(record), sep="\n")
    for data in dict.fromkeys(case.data for case in record.results):
        picture = options.output.with_name(f"{options.output.stem}-{data}.png")
        draw(record, data, picture)
        print(f"plot: {picture}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, those that `--quick` sets filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    _what(parser.add_argument)
    _how(parser.add_argument)
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _what(add: Any) -> None:
    add("--data", nargs="+", choices=DATA, default=list(DATA))
    add("--lengths", nargs="+", type=whole(2), metavar="N", help="default: 1024, doubled up to 1048576")
    add("--methods", nargs="+", metavar="METHOD", help="beside torch sdpa (default: all)")
    add("--libraries", nargs="+", choices=LIBRARIES, default=["numpy"], help="whose arrays ours are given")
    add("--heads", type=whole(1), default=8)
    add("--dim", type=whole(1), default=64)
    add("--entries", type=whole(8), default=192, help="exact pairs + rank a query (default: 192)")
    add("--causal", dest="is_causal", action="store_true")
    add("--seed", type=whole(0), default=0)
    add("--quick", action="store_true", help="lengths 1024 and 4096, 3 pairs")


def _how(add: Any) -> None:
    add("--threads", type=whole(1), default=os.cpu_count(), help="default: all cores")
    add(
        "--pairs",
        dest="n_pairs",
        type=whole(1),
        metavar="N",
        help="of calls and torch sdpa (default: 5)",
    )
    add(
        "--rows",
        dest="n_rows",
        type=whole(1),
        default=256,
        help="of each head, for errors (default: 256)",
    )
    add("--count-up-to", type=whole(0), default=8192, metavar="N", help="keys, for pairs and rank")
    add(
        "--most-seconds", type=float, default=60.0, help="of a call, and of all pairs of a case (default: 60)"
    )
    add("--reference-seconds", type=float, default=20.0, help="of a call of torch sdpa (default: 20)")
    add("--most-gib", type=float, help=f"that a process may hold (default: {MEMORY_SHARE} of what is free)")
    add("--resume", action="store_true", help="keep what --output has of the same commit and settings")
    add("--output", type=Path, default=RESULTS, metavar="FILE.json", help="benchmarks/results/cpu.json")
    add("--show", type=Path, metavar="FILE.json", help="measure nothing, show these results")


def run(options: argparse.Namespace) -> Record:
    """Measure all cases; the file is written after each."""
    found = run_child("machine", {"threads": options.threads}, options.threads, SETUP_SECONDS)
    methods, absent = choose(options.methods, options.libraries, options.is_causal, found["absent"])
    settings = settings_of(options, found["machine"])
    told = {name: method.told for name, method in methods.items()}
    packages = tuple(peer.distribution for peer in PEERS.values())
    record = Record(header(found["machine"], packages), asdict(settings), told, absent)
    if options.resume and options.output.exists():
        resume(record, load(options.output))
    wanted = [x for x in cases(options.data, options.lengths, list(methods)) if x not in record.results]
    with TemporaryDirectory() as folder:
        run_all(Run(settings, methods, record, Path(folder)), wanted, options.output)
    return record


def settings_of(options: argparse.Namespace, machine: dict[str, Any]) -> Settings:
    """Everything but the cases."""
    most_bytes = MEMORY_SHARE * machine["available_bytes"]
    if options.most_gib is not None:
        most_bytes = options.most_gib * GIB
    own = {x.name: getattr(options, x.name, most_bytes) for x in fields(Settings)}
    return Settings(**own)


def resume(record: Record, earlier: Record) -> None:
    """Take over an earlier run of the same commit and settings; the memory that is free may differ."""
    now, then = ({"commit": x.header["commit"], **x.settings} for x in (record, earlier))
    check_same(now, then, ("most_bytes",))
    record.results |= earlier.results
    record.methods = earlier.methods | record.methods


def run_all(running: Run, wanted: Sequence[Case], output: Path) -> None:
    """Measure these cases, with a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(wanted))
        for case in wanted:
            progress.update(task, description=f"{case.data}, n = {case.length}: {case.method}")
            running.record.results[case] = result = running.measure(case)
            running.record.save(output)
            progress.console.print(line(result), highlight=False, soft_wrap=True, markup=False)
            progress.advance(task)


def line(result: Result) -> str:
    """Say what was found of a case, for whoever watches."""
    case = result.case
    what = f"{case.data}, n = {case.length}: {case.method}: "
    if result.reason is not None:
        return what + result.reason
    ratio = median_ratio(result.reference_times, result.times)
    told = "" if ratio is None else f", {ratio:.3g} times as fast as torch sdpa"
    memory = f"{result.peak_bytes / MIB:.0f} MiB"
    return f"{what}{duration(median(result.times))}{told}, {memory}, error {result.error:.2g}"


if __name__ == "__main__":
    sys.exit(main())
