"""Plant each fault in a copy of the repository and see the suite fail: `python -m tests.faults`.

First the named tests run in an unplanted copy, where they must pass. Then each fault is planted in a copy of
its own, where one of its tests must fail. The table goes to the terminal and to docs/faults.md. The exit
status is 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, track
from rich.table import Table

from . import ROOT, Fault
from .planted import FAULTS

COPIED = ("scatterbrain_core", "backends", "examples", "docs/figures", "tests", "pyproject.toml")
TABLE = ROOT / "docs" / "faults.md"
WHERE = "import scatterbrain_core, scatterbrain_backends as b; print(scatterbrain_core.__file__, b.__file__)"


@dataclass(frozen=True)
class Outcome:
    """What the tests said of one fault."""

    fault: Fault
    killer: str
    seconds: float


def copy_repository(folder: Path) -> Path:
    """A copy of what the tests need, under `folder`."""
    root = Path(tempfile.mkdtemp(dir=folder))
    for name in COPIED:
        source, target = ROOT / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return root


def run(command: Sequence[str], root: Path) -> subprocess.CompletedProcess[str]:
    """Python in a copy, on the copy's own modules."""
    paths = os.pathsep.join(str(root / name) for name in (".", "backends", "examples"))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "500"}
    environment["SCATTERBRAIN_EVERY_TEST"] = "1"
    return subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def check_imports(root: Path) -> None:
    """Raise unless the library comes from the copy."""
    done = run(["-c", WHERE], root)
    places = done.stdout.split()
    if not places or not all(Path(place).is_relative_to(root) for place in places):
        raise RuntimeError(f"the library does not come from the copy: {done.stdout}{done.stderr}")


def run_tests(fault: Fault, root: Path) -> subprocess.CompletedProcess[str]:
    """The fault's tests up to the first that fails."""
    select = ["-k", fault.select] if fault.select else []
    return run(["-m", "pytest", "-q", "-x", "-n", "0", "--tb=no", *select, *fault.tests], root)


def kill(folder: Path, fault: Fault) -> Outcome:
    """Plant a fault and run its tests; `killer` is empty where it survives."""
    start = time.perf_counter()
    root = copy_repository(folder)
    fault.plant(root)
    check_imports(root)
    done = run_tests(fault, root)
    failed = re.search(r"^FAILED \S+?::(.*?)(?: - |$)", done.stdout, re.MULTILINE)
    shutil.rmtree(root)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{fault.name}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return Outcome(fault, failed[1] if failed and done.returncode == 1 else "", time.perf_counter() - start)


def check_unplanted(folder: Path, faults: Sequence[Fault], jobs: int, console: Console) -> None:
    """Raise unless the tests of all faults pass where nothing is planted."""
    root = copy_repository(folder)
    check_imports(root)
    runs = list({(fault.tests, fault.select): fault for fault in faults}.values())
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(partial(run_tests, root=root), runs)
        for fault, result in zip(
            runs, track(done, "nothing planted", len(runs), console=console), strict=True
        ):
            if result.returncode:
                raise RuntimeError(
                    f"the tests of {fault.name!r} fail without it:\n{result.stdout}{result.stderr}"
                )
    shutil.rmtree(root)


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The table on the terminal."""
    table = Table("fault", "breaks", "killed by", "seconds")
    for outcome in outcomes:
        killer = escape(outcome.killer) or "[bold red]survived[/]"
        table.add_row(outcome.fault.name, outcome.fault.breaks, killer, f"{outcome.seconds:.1f}")
    console.print(table)


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """The table as a page of the documentation."""
    lines = [
        "# Planted faults",
        "",
        f"`make faults` plants {len(outcomes)} faults, one at a time, in a copy of the repository, and runs",
        "the tests that should see each. This is what it found last.",
        "",
        "| Fault | What it breaks | File | Killed by |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        fault, killer = outcome.fault, f"`{outcome.killer}`" if outcome.killer else "**survived**"
        lines.append(f"| {fault.name} | {fault.breaks} | `{fault.file}` | {killer} |")
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


def main() -> int:
    """Parse the arguments, plant, show and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="this fault alone; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: %(default)s)")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    unknown = set(options.only or ()) - {fault.name for fault in faults}
    if unknown:
        parser.error(f"--only: no fault is called {', '.join(map(repr, sorted(unknown)))}")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        check_unplanted(Path(folder), faults, options.jobs, console)
        with ThreadPoolExecutor(options.jobs) as pool, Progress(console=console) as progress:
            runs = pool.map(partial(kill, Path(folder)), faults)
            outcomes = list(progress.track(runs, total=len(faults), description="planted"))
    show(outcomes, console)
    survivors = [outcome.fault.name for outcome in outcomes if not outcome.killer]
    if not options.only:
        write(outcomes, TABLE)
    console.print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} faults killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
