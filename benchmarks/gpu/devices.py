"""A library on the current CUDA device: arrays, events, and the peak of its memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_tensor(x: Any) -> Any:
    """A tensor of the same memory."""
    return x if isinstance(x, torch.Tensor) else torch.from_dlpack(x)


class OnTorch:
    """Torch tensors on the current device."""

    name = "torch"
    dtypes = ("float32", "bfloat16", "float16")

    def asarray(self, x: np.ndarray, dtype: str) -> Any:
        """The array on the device, rounded to a dtype."""
        return torch.asarray(x, device="cuda").to(DTYPES[dtype])

    def event(self) -> Any:
        """An event on the current stream, recorded."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two events."""
        end.synchronize()
        return float(start.elapsed_time(end))

    def free(self) -> None:
        """Give cached memory back."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()


class OnCupy:
    """CuPy arrays on the current device."""

    name = "cupy"
    dtypes = ("float32", "float16")

    def asarray(self, x: np.ndarray, dtype: str) -> Any:
        """The array on the device, rounded to a dtype."""
        return cupy.asarray(x).astype(dtype)

    def event(self) -> Any:
        """An event on the current stream, recorded."""
        event = cupy.cuda.Event()
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two events."""
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end))

    def free(self) -> None:
        """Give cached memory back."""
        cupy.cuda.Device().synchronize()
        cupy.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()


class _Peak(cupy.cuda.MemoryHook):  # type: ignore[misc]
    """The most that CuPy's pool held at a time."""

    name = "peak"

    def __init__(self) -> None:
        self.pool = cupy.get_default_memory_pool()
        self.start = self.most = self.pool.used_bytes()

    def malloc_postprocess(self, **_: Any) -> None:
        """After every allocation."""
        self.most = max(self.most, self.pool.used_bytes())


@contextmanager
def peak_bytes(found: dict[str, int]) -> Any:
    """Put into `found` how many bytes more than before, of both libraries, were held at the peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, peak = torch.cuda.memory_allocated(), _Peak()
    with peak:
        yield
    torch.cuda.synchronize()
    found["peak_bytes"] = torch.cuda.max_memory_allocated() - before + peak.most - peak.start


def median_milliseconds(
    library: OnTorch | OnCupy, call: Callable[[], Any], repeats: int, most_seconds: float
) -> tuple[float, list[float]]:
    """Median and all times of a call that ran before; fewer repeats where they would take too long."""
    times: list[float] = []
    for _ in range(repeats):
        start = library.event()
        call()
        times.append(library.milliseconds(start, library.event()))
        if sum(times) > 1000 * most_seconds:
            break
    return statistics.median(times), times
