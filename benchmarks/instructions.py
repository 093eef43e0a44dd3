"""Instructions of small calls under valgrind, beside the reviewed ones: a guard that no noise sets off.

The calls run in one process under ``valgrind --tool=callgrind``, on one thread, each after a call to warm
up; two runs differ by less than one in a thousand. Counts are compared where Python, NumPy, numba and
valgrind are those of the reviewed file, and more than the tolerance over it is a failure. ``--accept``
writes that file anew. Where valgrind is missing this says so and does nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import scatterbrain_core as sb

REVIEWED = Path(__file__).parent / "results" / "instructions.json"
SHAPE, ENTRIES = (2, 512, 32), 48
TILES = sb.Scatterbrain(sb.PositiveFeatures(16), sb.RandomHyperplanes(max_bucket=32))
CALLS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "scatterbrain": {"method": TILES},
    "scatterbrain, causal": {"method": TILES, "is_causal": True},
    "auto": {"method": "auto", "budget": ENTRIES / SHAPE[1]},
    "auto, causal": {"method": "auto", "budget": ENTRIES / SHAPE[1], "is_causal": True},
}
# valgrind writes and clears its counts at each call of this function, which Python makes by os.getpgid.
MARK = "getpgid"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "SCATTERBRAIN_NUM_THREADS"), "1"
)
# The same hashes of strings, kernels of OpenBLAS and loops of numba, on any processor that has them.
SAME = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_CORETYPE": "Haswell",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+sse4.2",
}
INSIDE = "--inside"


def main(argv: Sequence[str] | None = None) -> int:
    """Count, compare and print; 1 where a call takes more instructions than was reviewed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write the counts as the reviewed ones")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative (default: 0.02)")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.inside:
        make_calls()
        return 0
    if shutil.which("valgrind") is None:
        print("instructions are not counted: valgrind is not installed")
        return 0
    found = {"versions": versions(), "shape": list(SHAPE), "instructions": count()}
    if options.accept:
        REVIEWED.parent.mkdir(parents=True, exist_ok=True)
        REVIEWED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    reviewed = json.loads(REVIEWED.read_text(encoding="utf-8")) if REVIEWED.exists() else {}
    lines, is_worse = compared(found, reviewed, options.tolerance)
    print(*lines, sep="\n")
    return int(is_worse)


def make_calls() -> None:
    """Each call, a mark before and behind it; run under valgrind."""
    rng = np.random.default_rng(0)
    arrays = [0.5 * rng.standard_normal(SHAPE, dtype=np.float32) for _ in range(3)]
    gc.disable()
    for arguments in CALLS.values():
        sb.attention(*arrays, **arguments)  # imports, and what is kept between calls
        gc.collect()
        os.getpgid(0)
        sb.attention(*arrays, **arguments)
        os.getpgid(0)
    gc.enable()


def versions() -> dict[str, str]:
    """What the counts depend on beside our code."""
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": metadata.version("numba") if find_spec("numba") else "none",
        "valgrind": valgrind.stdout.strip(),
    }


def count() -> dict[str, int]:
    """Instructions of each call."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        environment = dict(os.environ) | ONE_THREAD | SAME
        # Loops are compiled and kept before: under valgrind that would take many minutes.
        subprocess.run([sys.executable, __file__, INSIDE], env=environment, check=True)
        command = ["valgrind", "--quiet", "--tool=callgrind", f"--dump-before={MARK}"]
        command += [f"--callgrind-out-file={out}", sys.executable, __file__, INSIDE]
        subprocess.run(command, env=environment, check=True)
        # Parts are numbered from 1; the call's own stands between its two marks.
        return {name: total(Path(f"{out}.{2 * i}")) for i, name in enumerate(CALLS, start=1)}


def total(part: Path) -> int:
    """The sum of a part that callgrind wrote."""
    lines = part.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("totals:")).split()[1])


def compared(found: dict[str, Any], reviewed: dict[str, Any], tolerance: float) -> tuple[list[str], bool]:
    """A line a call, and whether any takes more instructions than was reviewed."""
    counts = found["instructions"]
    if {**found, "instructions": 0} != {**reviewed, "instructions": 0}:
        lines = [f"{name}: {n:,} instructions" for name, n in counts.items()]
        return [
            *lines,
            f"not compared: counted with {found['versions']}, reviewed are {reviewed or 'none'}",
        ], False
    ratios = {name: n / reviewed["instructions"].get(name, n) for name, n in counts.items()}
    lines = [
        f"{name}: {counts[name]:,} instructions, {ratio:.3f} of the reviewed{_verdict(ratio, tolerance)}"
        for name, ratio in ratios.items()
    ]
    return lines, any(ratio > 1 + tolerance for ratio in ratios.values())


def _verdict(ratio: float, tolerance: float) -> str:
    if ratio > 1 + tolerance:
        return ": MORE"
    return ": fewer, to be accepted" if ratio < 1 - tolerance else ""


if __name__ == "__main__":
    sys.exit(main())
