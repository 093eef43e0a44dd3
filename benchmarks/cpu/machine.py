"""The machine: its processor, memory and threads, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from scatterbrain_core.backend import backend_of

# Read by OpenBLAS, OpenMP (Torch) and MKL as they are loaded, and by us.
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "SCATTERBRAIN_NUM_THREADS",
)
PRODUCT_SIZE, PRODUCT_REPEATS = 2048, 7
CPU_INFO, MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
KIB = 1024


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads."""
    return dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(threads))


def set_threads(threads: int) -> None:
    """Hold Torch to so many threads; NumPy's are held by the environment."""
    import torch

    torch.set_num_threads(threads)


def describe() -> dict[str, Any]:
    """Processor, memory, load, the pools of threads as loaded, and float32 operations a second."""
    return {
        "processor": _field(CPU_INFO, "model name") or platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": _physical_bytes(),
        "available_bytes": _kib("MemAvailable") or _physical_bytes(),
        "load_average": os.getloadavg()[0],
        "backends": _backends(),
        "threads": _threads(),
        "pools": _pools(),
        "operations_a_second": _rates(),
    }


def _field(path: Path, name: str) -> str | None:
    """What stands behind the colon of the first line that begins with a name."""
    if not path.exists():
        return None
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)


def _kib(name: str) -> int | None:
    found = _field(MEMORY_INFO, name)
    return None if found is None else KIB * int(found.split()[0])


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _backends() -> dict[str, str]:
    """Classes that our calls run on; `Backend` itself, generic code, where no entry point was installed."""
    import torch

    arrays = {"numpy": np.ones(1), "torch": torch.ones(1)}
    return {name: type(backend_of(x=x)).__name__ for name, x in arrays.items()}


def _threads() -> dict[str, Any]:
    import torch

    set_by = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    return {"torch": torch.get_num_threads(), **set_by}


def _pools() -> list[dict[str, Any]]:
    """The BLAS and OpenMP libraries that NumPy and Torch brought, without the paths of their files."""
    from threadpoolctl import threadpool_info

    return [{k: v for k, v in pool.items() if k != "filepath"} for pool in threadpool_info()]


def _rates() -> dict[str, float]:
    """Of one large product of matrices in float32, by NumPy and by Torch."""
    import torch

    a = np.ones((PRODUCT_SIZE, PRODUCT_SIZE), dtype=np.float32)
    tensor = torch.from_numpy(a)
    calls = {"numpy": lambda: a @ a, "torch": lambda: tensor @ tensor}
    return {name: 2 * PRODUCT_SIZE**3 / _median_seconds(call) for name, call in calls.items()}


def _median_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(PRODUCT_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
