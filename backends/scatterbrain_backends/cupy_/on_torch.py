"""The kernels on Torch tensors: on the same memory, on Torch's current stream of their device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cupy
import torch

from scatterbrain_backends.cupy_ import hashes, run, states
from scatterbrain_backends.cupy_.launches import Runner
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.tiles import Sorted


@dataclass(frozen=True)
class _Stream:
    """Torch's stream, by the protocol that older versions of Torch lack."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@contextmanager
def _on_stream_of(tensor: Any) -> Iterator[None]:
    """CuPy's current device and stream are Torch's."""
    number = tensor.device.index
    address = torch.cuda.current_stream(number).cuda_stream
    with cupy.cuda.Device(number):
        if address == 0:
            stream = cupy.cuda.Stream.null
        elif hasattr(cupy.cuda.Stream, "from_external"):
            stream = cupy.cuda.Stream.from_external(_Stream(address))
        else:  # CuPy 13
            stream = cupy.cuda.ExternalStream(address, number)
        with stream:
            yield


@contextmanager
def _runner_beside(tensor: Any) -> Iterator[Runner]:
    """Kernels on Torch's stream of the tensor's device, and new tensors there."""

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        return tensor.new_empty(shape, dtype=dtype)

    with _on_stream_of(tensor):
        yield Runner(run.run, _as_cupy, empty)


def _as_cupy(tensor: Any) -> Any:
    return cupy.asarray(tensor.detach().resolve_neg().contiguous())


def reason_against() -> str | None:
    """Why no kernel can be compiled, if so: CuPy looks for its compiler when it first needs one."""
    try:
        run.compile_one()
    except (RuntimeError, OSError, ImportError, cupy.cuda.compiler.CompileException) as error:
        return f"{type(error).__name__}: {error}"
    return None


def tile_partial(xp: Any, visits: Visits) -> tuple[Any, Any] | None:
    """Partial results of visits of tensors by the kernel; None where it does not take them."""
    query: Any = visits.pairs.query
    with _runner_beside(query) as runner:
        return run.tile_partial(xp, visits, runner)


def running_merge(xp: Any, ref: Any, acc: Any, segment: Any) -> tuple[Any, Any] | None:
    """Running merges of tensors by the kernel; None where it does not take them."""
    with _runner_beside(acc) as runner:
        return states.running_merge(xp, ref, acc, segment, runner)


def sort_jointly(xp: Any, buckets: tuple[Any, Any], ranks: tuple[Any, Any]) -> Sorted | None:
    """Keys and queries sorted by bucket, then by rank; None where no number holds both."""
    with _runner_beside(buckets[0]) as runner:
        return hashes.sort_jointly(xp, buckets, ranks, runner)


def hyperplane_codes(xp: Any, x: Any, normals: Any, direction: Any | None) -> tuple[Any, Any | None] | None:
    """Codes of tensors, and their products with a direction; None where the kernel does not take them."""
    with _runner_beside(x) as runner:
        return hashes.hyperplane_codes(xp, x, normals, direction, runner)


def scatter_add(total: Any, index: Any, rows: Any) -> Any:
    """`total` with rows added, those of one index in one order on every run."""
    total = total.contiguous()
    with _on_stream_of(total):
        sums = _as_cupy(total.reshape(len(total), -1))
        run.scatter_add(sums, _as_cupy(index), _as_cupy(rows.reshape(len(rows), -1)))
    return total
