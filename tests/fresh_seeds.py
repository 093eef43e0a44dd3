"""Run the statistical tests with fresh seeds: `python tests/fresh_seeds.py --seeds 20`.

Prints a line a seed: comparisons made, the smallest chance of one (which over all seeds should be near one
over their number), failures and time; and a total. The exit status is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import alarms

ROOT = Path(__file__).parent.parent
FILES = ("tests/test_statistics.py", "tests/test_hashing.py", "tests/test_figures.py")
NONE = {"chance": 1.0, "name": "none", "case": "none"}


def run(seed: int, folder: Path) -> tuple[int, list[dict], float]:
    """Exit status, comparisons recorded and seconds of one run."""
    record = folder / f"{seed}.jsonl"
    environment = os.environ | {
        "SCATTERBRAIN_TEST_SEED": str(seed),
        "SCATTERBRAIN_TEST_RECORD": str(record),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "statistics", *FILES]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return done.returncode, [json.loads(line) for line in lines], seconds


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the statistical tests with fresh seeds.")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default: %(default)s)")
    options = parser.parse_args()
    declared = sum(entry.count for entry in alarms.LEDGER.values())
    failed, chances, start = 0, [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first, options.first + options.seeds):
            status, made, seconds = run(seed, Path(folder))
            if status == 0 and len(made) != declared:
                sys.stderr.write(f"{len(made)} comparisons made, {declared} declared\n")
                status = 1
            failed += status != 0
            chances += [line["chance"] for line in made]
            least = min(made, key=lambda line: line["chance"], default=NONE)
            say(
                f"seed {seed:3}: {'failed' if status else 'passed'}, {len(made)} comparisons, "
                f"{seconds:.1f} s, smallest chance {least['chance']:.2g} ({least['name']}: {least['case']})"
            )
    say(
        f"total: {failed} of {options.seeds} seeds failed, {len(chances)} comparisons, "
        f"{time.perf_counter() - start:.0f} s, smallest chance {min(chances, default=1):.2g}; "
        f"a false alarm in one run has probability {alarms.total_level():.2g} at most"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
