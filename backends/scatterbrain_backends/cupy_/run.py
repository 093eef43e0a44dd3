"""Kernels on CuPy arrays, on the current device and stream; each is compiled once a device, on first use."""

from __future__ import annotations

from typing import Any

import cupy

from scatterbrain_backends.cupy_.forms import HalfTile
from scatterbrain_backends.cupy_.launches import Launch, Runner, segment_sum
from scatterbrain_backends.cupy_.sources import OPTIONS, source
from scatterbrain_backends.cupy_.tile_partial import half_rows, is_taken, launch, tile_of
from scatterbrain_backends.visits import inputs
from scatterbrain_core.sparse_correction import Visits

LEAST_CAPABILITY_OF_MMA = 80
exp_in_one_pass = cupy.ElementwiseKernel("T x, T reference", "T y", "y = exp(x - reference)", "exp_below")


def exp_below(logits: Any, reference: Any) -> Any:
    """exp(logits - reference), written over `logits`."""
    return exp_in_one_pass(logits, reference, logits)


def scatter_add(total: Any, index: Any, rows: Any) -> None:
    """Add rows to those of `total` (n, width), both contiguous: one thread block a row of `total`."""
    order = cupy.argsort(index)
    index = index[order]
    numbers = cupy.arange(len(total), dtype=index.dtype)
    first, last = (cupy.searchsorted(index, numbers, side) for side in ("left", "right"))
    order, first, last = (x.astype(cupy.int64, copy=False) for x in (order, first, last))
    run(segment_sum(rows, order, first, last, total))


def tile_partial(xp: Any, visits: Visits, runner: Runner) -> tuple[Any, Any] | None:
    """Partial results of visits by the kernel, `ref` and `acc`; None where it does not take them.

    Parameters
    ----------
    xp : namespace
        Of the arrays in `visits`.
    """
    tile = tile_of(visits, shared_bytes(), has_mma()) if is_taken(visits) else None
    if tile is None:
        return None
    arrays = [runner.as_own(x) for x in inputs(xp, visits)]
    shape, dtype = tuple(visits.blocks.rows.shape), visits.pairs.query.dtype
    found = [runner.empty(s, dtype) for s in (shape, (*shape, visits.weighted_value.shape[1]))]
    halves = half_rows(xp, visits, runner) if isinstance(tile, HalfTile) else []
    outputs, halves = ([runner.as_own(x) for x in xs] for xs in (found, halves))
    runner.run(launch(tile, visits, [*arrays, *outputs], [x.data.ptr for x in arrays[:2]], halves))
    return found[0], found[1]


@cupy.memoize(for_each_device=True)  # type: ignore[untyped-decorator]
def _function(name: str, kernel: str, shared: int) -> Any:
    module = cupy.RawModule(code=source(name), options=OPTIONS, name_expressions=(kernel,))
    function = module.get_function(kernel)
    if shared:
        function.max_dynamic_shared_size_bytes = shared
        function.preferred_shared_memory_carveout = 100  # per cent: as many thread blocks as find room
    return function


def compile_one() -> None:
    """Compile the smallest kernel for the current device: an error where none can be."""
    _function("bucket_intervals", "bucket_intervals", 0)


def run(launched: Launch) -> None:
    """Run a kernel; its arrays are on the current device."""
    function = _function(launched.source, launched.kernel, launched.shared_bytes)
    function(launched.grid, launched.block, launched.arguments, shared_mem=launched.shared_bytes)


@cupy.memoize(for_each_device=True)  # type: ignore[untyped-decorator]
def shared_bytes() -> int:
    """Shared memory that a thread block may have on the current device."""
    runtime = cupy.cuda.runtime
    device, attribute = cupy.cuda.Device().id, runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin
    return int(runtime.deviceGetAttribute(attribute, device))


@cupy.memoize(for_each_device=True)  # type: ignore[untyped-decorator]
def has_mma() -> bool:
    """Whether the current device multiplies half precision as `mma.cuh` does."""
    return int(cupy.cuda.Device().compute_capability) >= LEAST_CAPABILITY_OF_MMA
