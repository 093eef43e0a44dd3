"""Time of each method over that of `exact` in the same run, by length: medians, on random normal data."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import scatterbrain_core as sb

FIXED = sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(max_bucket=128))
METHODS = {
    "performer, budget 1/8": {"method": "performer"},
    "lsh, budget 1/8": {"method": "lsh"},
    "scatterbrain, budget 1/8": {"method": "scatterbrain"},
    "scatterbrain, m = 64, buckets <= 128": {"method": FIXED},
}


def main() -> None:
    """Print a line a method and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--torch", action="store_true", help="Torch tensors on the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for length in options.lengths:
        arrays = draw(options, length)
        exact = median_time(options, arrays, {"method": "exact"})
        print(f"n = {length}: exact {exact:.3f} s")
        for name, arguments in METHODS.items():
            ratio = median_time(options, arrays, arguments) / exact
            print(f"n = {length}: {name}: {ratio:.2f} of exact")


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
    times = []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        sb.attention(*arrays, is_causal=options.causal, **arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
