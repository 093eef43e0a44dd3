"""Seconds that `import scatterbrain_core` takes with NumPy already imported: median of fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time, numpy
start = time.perf_counter()
import scatterbrain_core
print(time.perf_counter() - start)
"""
RUNS = 15


def main() -> None:
    """Print the median and the range."""
    command = [sys.executable, "-c", CODE]
    times = sorted(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(RUNS)
    )
    print(f"median {statistics.median(times):.3f} s, {times[0]:.3f} to {times[-1]:.3f} s, {RUNS} processes")


if __name__ == "__main__":
    main()
