"""Speed on a GPU: ``python -m benchmarks.gpu``.

Times `sb.attention` on CuPy arrays and on Torch CUDA tensors beside Torch's own attention (in half precision
its flash kernel), in one run, up to 524288 keys: medians of CUDA events, after a call to warm up; beside each
time its error against exact attention in float64 (of some rows of each head) and its memory at the peak.
Before that the tile kernels alone, beside the arithmetic (on tensor cores for half precision) and the
bandwidth that the device was measured to have, and the other kernels beside that bandwidth and generic code.
Writes JSON after every measurement and a plot at the end. It needs a CUDA device, CuPy and Torch, and says so
where one is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.shared.files import write_json

RESULTS = Path(__file__).parent.parent / "results" / "gpu.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the arguments say; 0 where there is no device, which is said."""
    options = _parse(argv)
    missing = _missing()
    if missing:
        print(f"benchmarks.gpu is skipped: {missing}")
        return 0
    from benchmarks.gpu import record as to_file

    found = to_file.header(options.commit, {k: str(v) for k, v in vars(options).items()})
    found |= {"calls": [], "tiles": [], "passes": []}
    print(f"{found['device']}, driver {found['driver']}, commit {found['commit']}")
    if not options.no_tiles:
        _measure_kernels(options, found)
    if not options.no_calls:
        _measure_calls(options, found)
        if find_spec("matplotlib"):
            to_file.draw(options.output.with_suffix(".png"), found)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**i for i in range(10, 20)])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--most-seconds",
        type=float,
        default=10.0,
        help="a call measured longer is left out at larger lengths",
    )
    parser.add_argument("--no-tiles", action="store_true", help="leave out the kernels alone")
    parser.add_argument("--no-calls", action="store_true", help="leave out the public calls")
    parser.add_argument("--commit", help="where there is no git to ask")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _missing() -> str | None:
    """What keeps it from running."""
    for name in ("torch", "cupy"):
        if find_spec(name) is None:
            return f"{name} is not installed"
    import cupy
    import torch

    if not torch.cuda.is_available():
        return "Torch sees no CUDA device"
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy sees no CUDA device: {error}"
    return None


def _measure_kernels(options: argparse.Namespace, found: dict[str, Any]) -> None:
    from benchmarks.gpu import passes, tiles
    from benchmarks.gpu.record import pass_line, tile_line

    found["ceilings"] = tiles.ceilings()
    flops = ", ".join(f"{dtype} {x / 1e12:.1f}" for dtype, x in found["ceilings"]["flops"].items())
    print(f"TFLOP/s: {flops}; {found['ceilings']['bytes'] / 1e12:.2f} TB/s", flush=True)
    for tile in tiles.measure(found["ceilings"]):
        found["tiles"].append(tile)
        print(tile_line(tile), flush=True)
        write_json(options.output, found, indent=1)
    for one in passes.measure(found["ceilings"]["bytes"]):
        found["passes"].append(one)
        print(pass_line(one), flush=True)
        write_json(options.output, found, indent=1)


def _measure_calls(options: argparse.Namespace, found: dict[str, Any]) -> None:
    from benchmarks.gpu import calls
    from benchmarks.gpu.record import line

    skipped: set[tuple[str, str, str]] = set()
    for length in options.lengths:
        sizes = calls.Sizes(
            options.heads, options.dim, length, options.causal, options.repeats, options.most_seconds
        )
        for call in calls.measure(sizes, options.dtypes, skipped):
            found["calls"].append(call)
            print(line(call), flush=True)
            write_json(options.output, found, indent=1)


if __name__ == "__main__":
    sys.exit(main())
