"""Time of one decoded token and size of the state, by method and length (`python benchmarks/decoding.py`).

4 heads of 64 in float32 NumPy, medians over tokens decoded one at a time; ratios are to exact attention by
cache in the same run.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time

import numpy as np

import scatterbrain_core as sb

METHODS = {
    "exact": sb.Scatterbrain(sparse=sb.AllPairs()),
    "performer, m = 64": sb.Scatterbrain(sb.PositiveFeatures(64)),
    "one table of 5 bits, m = 64": sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(5, 1, 128)),
    "4 tables of 5 bits, m = 64": sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(5, 4, 32)),
}


def measure(parts: sb.Scatterbrain, length: int, tokens: int) -> tuple[float, float]:
    """Median seconds of a token, and megabytes of the state."""
    rng = np.random.default_rng(0)
    query, key, value = 0.5 * rng.standard_normal((3, 4, length + tokens, 64)).astype(np.float32)
    _, state = parts.prefill(query[:, :length], key[:, :length], value[:, :length])
    seconds = []
    for i in range(length, length + tokens):
        token = slice(i, i + 1)
        start = time.perf_counter()
        _, state = parts.step(query[:, token], key[:, token], value[:, token], state, check_finite=False)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)), sum(x.nbytes for x in state.values()) / 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--tokens", type=int, default=20)
    arguments = parser.parse_args()
    for length in arguments.lengths:
        times = {name: measure(parts, length, arguments.tokens) for name, parts in METHODS.items()}
        exact = times["exact"][0]
        for name, (seconds, size) in times.items():
            ratio = f"{1e3 * seconds:8.2f} ms  {seconds / exact:5.2f} x exact"
            print(f"{length:6d}  {name:28s} {ratio}  {size:7.1f} MB")


if __name__ == "__main__":
    main()
