"""What was measured, where: JSON, tables, and a plot."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import torch

import scatterbrain_core as sb
from benchmarks.shared import provenance
from benchmarks.shared.provenance import first_line, now


def header(commit: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The device, driver, versions, date and commit."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "device": properties["name"].decode(),
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_of_driver": runtime.driverGetVersion(),
        "cuda_of_cupy": runtime.runtimeGetVersion(),
        "cuda_of_torch": torch.version.cuda,
        "versions": {m.__name__: m.__version__ for m in (cupy, np, torch, sb)}
        | {"python": platform.python_version()},
        "date": now(),
        "commit": commit or provenance.commit(),
        "options": options,
    }


def line(call: dict[str, Any]) -> str:
    """One measured call, in words."""
    what = f"n = {call['length']:>7}  {call['library']:<5} {call['dtype']:<8} {call['method']:<30}"
    if "failed" in call:
        return f"{what} failed: {call['failed'][:120]}"
    memory = call["peak_bytes"] / 2**20
    return f"{what} {call['milliseconds']:>10.3f} ms  error {call['error']:.1e}  peak {memory:>9.1f} MiB"


def tile_line(tile: dict[str, Any]) -> str:
    """One measured form of a tile, in words."""
    form = "x".join(str(n) for name, n in tile["tile"].items() if name != "width")
    what = f"tile kernel, {tile['dtype']:<8} d = {tile['dim']:>3}, {tile['keys']:>3} keys, form {form:<7}"
    if "failed" in tile:
        return f"{what} failed: {tile['failed'][:120]}"
    shares = ", ".join(f"{name[:-6]} {tile[name]:.2f}" for name in ("arithmetic_share", "bandwidth_share"))
    return f"{what} {tile['milliseconds']:>8.3f} ms  of its floor {tile['share_of_floor']:.2f} ({shares})"


def pass_line(found: dict[str, Any]) -> str:
    """One measured pass, in words."""
    times = f"{found['milliseconds']:>9.3f} ms, generic code {found['generic_milliseconds']:>9.3f} ms"
    what = f"{found['pass']:<16} n = {found['length']:>7}"
    return f"{what} {times}, of its floor of bytes {found['bandwidth_share']:.2f}"


def draw(path: Path, record: dict[str, Any]) -> None:
    """Time and error by length, a line a library, dtype and method."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    done = [call for call in record["calls"] if "failed" not in call]
    names = list(dict.fromkeys((c["library"], c["dtype"], c["method"]) for c in done))
    for name in names:
        own = [c for c in done if (c["library"], c["dtype"], c["method"]) == name]
        for axis, quantity in zip(axes, ("milliseconds", "error"), strict=True):
            axis.loglog([c["length"] for c in own], [c[quantity] for c in own], "o-", label=", ".join(name))
    axes[0].set(xlabel="length", ylabel="milliseconds", title=record["device"])
    axes[1].set(xlabel="length", ylabel="relative error, float64 exact", title=f"{record['date']}")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
