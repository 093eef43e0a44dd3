"""The tile kernel alone, beside what the device was measured to do: its share of the slower of two floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cupy
import numpy as np
import torch

from benchmarks.gpu.devices import DTYPES as TORCH_DTYPES
from benchmarks.gpu.devices import OnCupy, OnTorch, median_milliseconds
from scatterbrain_backends.cupy_ import run
from scatterbrain_backends.cupy_.forms import Form, HalfTile, Tile, all_tiles
from scatterbrain_backends.cupy_.launches import Runner
from scatterbrain_backends.cupy_.tile_partial import half_rows, launch
from scatterbrain_backends.visits import inputs
from scatterbrain_core.problem import HalfPrecision
from scatterbrain_core.rows import Pairs, exact_weights
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.tables import Intervals
from scatterbrain_core.tiles import Blocks

QUERY_ROWS, KEY_ROWS, BLOCKS, SIZE = 2**18, 2**18, 2**14, 64
# Beside those that are launched, forms that might be: which ones are, was chosen without a device.
CANDIDATES = (
    Tile(64, 4, 16, 8),
    Tile(64, 4, 32, 4),
    Tile(64, 4, 32, 8),
    Tile(64, 4, 64, 16),
    Tile(64, 2, 16, 4),
    Tile(128, 4, 64, 8),
)
HALF_CANDIDATES = (
    HalfTile(64, 4, 32),
    HalfTile(64, 2, 64),
    HalfTile(64, 1, 16),
    HalfTile(128, 4, 32),
    HalfTile(128, 2, 64),
)
REPEATS = 10


# What is multiplied, in which tiles; half precision has queries in float32, as the core hands them over.
DTYPES = ("float32", "float16", "bfloat16")
FACTOR = 0.3  # of queries and of keys of half precision, which leaves them so no longer


def ceilings() -> dict[str, Any]:
    """Operations a second of Torch's matrix product in each dtype, and bytes a second of a copy."""
    source, target = (cupy.zeros(2**28, dtype=cupy.float32) for _ in range(2))
    seconds = _seconds(OnCupy(), lambda: cupy.copyto(target, source))
    return {"flops": {dtype: _flops(dtype) for dtype in DTYPES}, "bytes": 2 * source.nbytes / seconds}


def _flops(dtype: str) -> float:
    library, n = OnTorch(), 6144
    a, b = (library.asarray(np.ones((n, n), dtype=np.float32), dtype) for _ in range(2))
    return float(2 * n**3 / _seconds(library, lambda: a @ b))


def _seconds(library: OnTorch | OnCupy, call: Callable[[], Any]) -> float:
    call()
    return median_milliseconds(library, call, REPEATS, 5)[0] / 1000


def measure(ceiling: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record for every dtype, width, length of the intervals and form of a tile."""
    widths = {64: (16, 64, 256), 128: (16, 128)}
    for dim, lengths in widths.items():
        for length in lengths:
            for dtype in DTYPES:
                visits = _visits(dim, length, dtype)
                for tile in _tiles(dtype, dim, length):
                    of_tile = {"dtype": dtype, "dim": dim, "keys": length, "tile": vars(tile)}
                    yield of_tile | _record(visits, tile, ceiling, length)
                OnCupy().free()


def _tiles(dtype: str, dim: int, length: int) -> list[Form]:
    """Forms for blocks of this dtype, width and length."""
    forms = [tile for own, tile in all_tiles() if own == dtype]
    candidates = CANDIDATES if dtype == "float32" else HALF_CANDIDATES
    if dtype != "float32" and not run.has_mma():
        return []
    return [
        tile
        for tile in dict.fromkeys((*forms, *candidates))
        if tile.width == dim and tile.keys <= max(length, 16)
    ]


def _visits(dim: int, length: int, dtype: str) -> Visits:
    """Blocks of random rows, each at one interval of gathered keys."""
    rng = np.random.default_rng(0)

    def normal(n: int, columns: int) -> Any:
        x = torch.asarray(rng.standard_normal((n, columns), dtype=np.float32), device="cuda")
        return cupy.asarray(x.to(TORCH_DTYPES[dtype]).float())

    value = normal(KEY_ROWS, dim + 1)
    value[:, -1] = 1
    n_visits = BLOCKS * SIZE // QUERY_ROWS
    lo = np.repeat(rng.integers(0, KEY_ROWS - length, BLOCKS), SIZE)
    order = rng.permutation(BLOCKS * SIZE)  # visit at each place
    of_visit = cupy.asarray(lo[np.argsort(order)].reshape(QUERY_ROWS, n_visits))
    rows = cupy.asarray(order.reshape(BLOCKS, SIZE))
    blocks = Blocks(rows, cupy.ones(rows.shape, dtype=bool), rows[:, 0], rows[:, 0])
    intervals = Intervals(cupy.asarray(rng.permutation(KEY_ROWS)), of_visit, of_visit + length)
    query, key = (normal(n, dim) * np.float32(FACTOR) for n in (QUERY_ROWS, KEY_ROWS))
    half = None if dtype == "float32" else HalfPrecision(dtype, FACTOR, FACTOR)
    return Visits(blocks, intervals, Pairs(query, key, exact_weights, half), value, 64, ())


def _record(visits: Visits, tile: Form, ceiling: dict[str, Any], length: int) -> dict[str, Any]:
    import array_api_compat.cupy as xp

    arrays = [cupy.ascontiguousarray(x) for x in inputs(xp, visits)]
    ref = cupy.empty(visits.blocks.rows.shape, dtype=cupy.float32)
    acc = cupy.empty((*ref.shape, visits.weighted_value.shape[1]), dtype=cupy.float32)
    runner = Runner(run.run, cupy.ascontiguousarray, cupy.empty)
    halves = half_rows(xp, visits, runner) if isinstance(tile, HalfTile) else []
    launched = launch(tile, visits, [*arrays, ref, acc], [x.data.ptr for x in arrays[:2]], halves)
    try:
        run.run(launched)
        milliseconds, _ = median_milliseconds(OnCupy(), lambda: run.run(launched), REPEATS, 2)
    except (cupy.cuda.driver.CUDADriverError, cupy.cuda.compiler.CompileException) as error:
        return {"failed": str(error)}
    return {"milliseconds": milliseconds, **_floors(visits, length, milliseconds / 1000, ceiling)}


def _floors(visits: Visits, length: int, seconds: float, ceiling: dict[str, Any]) -> dict[str, float]:
    """Least times by arithmetic and by bytes, each row read once a block, and the share of the larger.

    Keys and values of half precision are read as such; to make them so is not counted.
    The arithmetic is that of two products, though weights of half precision are multiplied in two terms.
    """
    dim, columns = visits.pairs.query.shape[1], visits.weighted_value.shape[1]
    n_rows, n_keys = BLOCKS * SIZE, BLOCKS * length
    flops = 2 * BLOCKS * SIZE * length * (dim + columns)
    half = visits.pairs.half
    of_key = 4 * (dim + columns) if half is None else 2 * (dim + columns - 1) + 4
    moved = 4 * n_rows * (dim + columns + 1) + n_keys * of_key + 8 * (3 * n_rows + n_keys)
    peak = ceiling["flops"]["float32" if half is None else half.dtype]
    arithmetic, bytes_ = flops / peak, moved / ceiling["bytes"]
    return {
        "arithmetic_share": arithmetic / seconds,
        "bandwidth_share": bytes_ / seconds,
        "share_of_floor": max(arithmetic, bytes_) / seconds,
    }
