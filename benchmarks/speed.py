"""Time of each method, what it is of that of `exact`, and its growth: medians, on random normal data."""

from __future__ import annotations

import argparse
import math
import statistics
import time

import numpy as np

import scatterbrain_core as sb

FIXED = sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(max_bucket=128))
METHODS: dict[str, dict[str, object]] = {
    "exact": {"method": "exact"},
    "auto": {"method": "auto"},
    "performer": {"method": "performer"},
    "lsh": {"method": "lsh"},
    "scatterbrain": {"method": "scatterbrain"},
    "fixed": {"method": FIXED},
}


def main() -> None:
    """Print a line a method and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budget", type=float, default=0.125, help="of all methods but exact and fixed")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--torch", action="store_true", help="Torch tensors on the CPU")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, on a busy machine")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    earlier: dict[str, float] = {}
    for index, length in enumerate(options.lengths):
        arrays = draw(options, length)
        times = {name: median_time(options, arrays, METHODS[name]) for name in options.methods}
        doublings = math.log2(length / options.lengths[index - 1]) if index else 0.0
        for name, seconds in times.items():
            print(told(length, name, seconds, times.get("exact"), earlier.get(name), doublings), flush=True)
        earlier = times


def told(
    length: int, name: str, seconds: float, exact: float | None, earlier: float | None, doublings: float
) -> str:
    """One line: the time, and what it is relative to."""
    line = f"n = {length}: {name}: {seconds:.3g} s"
    if exact is not None and name != "exact":
        line += f", {seconds / exact:.2f} of exact"
    if earlier is not None:
        line += f", {(seconds / earlier) ** (1 / doublings):.2f} times as long for twice the keys"
    return line


def draw(options: argparse.Namespace, length: int) -> list[np.ndarray]:
    """Query, key and value in float32."""
    rng = np.random.default_rng(0)
    shape = (options.heads, length, options.dim)
    arrays = [0.5 * rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]
    if not options.torch:
        return arrays
    import torch

    return [torch.asarray(x) for x in arrays]


def median_time(options: argparse.Namespace, arrays: list[np.ndarray], arguments: dict[str, object]) -> float:
    """Median of the repeats, after one call to warm up."""
    clock = time.process_time if options.cpu else time.perf_counter
    times = []
    for _ in range(options.repeats + 1):
        start = clock()
        sb.attention(*arrays, is_causal=options.causal, budget=options.budget, **arguments)
        times.append(clock() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
