"""The tile kernel alone, beside what the device was measured to do: its share of the slower of two floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cupy
import numpy as np

from benchmarks.gpu.devices import OnCupy, median_milliseconds
from scatterbrain_backends.cupy_ import run
from scatterbrain_backends.cupy_.forms import Tile, all_tiles
from scatterbrain_backends.cupy_.tile_partial import inputs, launch
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
REPEATS = 10


def ceilings() -> dict[str, float]:
    """Float32 operations and bytes a second: of CuPy's matrix product, and of a copy."""
    library, n = OnCupy(), 6144
    a, b, out = (cupy.ones((n, n), dtype=cupy.float32) for _ in range(3))
    source, target = (cupy.zeros(2**28, dtype=cupy.float32) for _ in range(2))

    def seconds(call: Callable[[], Any]) -> float:
        call()
        return median_milliseconds(library, call, REPEATS, 5)[0] / 1000

    flops = 2 * n**3 / seconds(lambda: cupy.matmul(a, b, out=out))
    return {"flops": flops, "bytes": 2 * source.nbytes / seconds(lambda: cupy.copyto(target, source))}


def measure(ceiling: dict[str, float]) -> Iterator[dict[str, Any]]:
    """A record for every width, length of the intervals and form of a tile."""
    widths = {64: (16, 64, 256), 128: (16, 128)}
    forms = [tile for dtype, tile in all_tiles() if dtype == "float32" and isinstance(tile, Tile)]
    for dim, lengths in widths.items():
        for length in lengths:
            visits = _visits(dim, length)
            for tile in [*forms, *CANDIDATES]:
                if tile.width == dim and tile.keys <= max(length, 16):
                    yield {"dim": dim, "keys": length, "tile": vars(tile)} | _record(
                        visits, tile, ceiling, length
                    )
            OnCupy().free()


def _visits(dim: int, length: int) -> Visits:
    """Blocks of random rows, each at one interval of gathered keys."""
    rng = np.random.default_rng(0)

    def normal(n: int, columns: int) -> Any:
        return cupy.asarray(rng.standard_normal((n, columns), dtype=np.float32))

    value = normal(KEY_ROWS, dim + 1)
    value[:, -1] = 1
    n_visits = BLOCKS * SIZE // QUERY_ROWS
    lo = np.repeat(rng.integers(0, KEY_ROWS - length, BLOCKS), SIZE)
    order = rng.permutation(BLOCKS * SIZE)  # visit at each place
    of_visit = cupy.asarray(lo[np.argsort(order)].reshape(QUERY_ROWS, n_visits))
    rows = cupy.asarray(order.reshape(BLOCKS, SIZE))
    blocks = Blocks(rows, cupy.ones(rows.shape, dtype=bool), rows[:, 0], rows[:, 0])
    intervals = Intervals(cupy.asarray(rng.permutation(KEY_ROWS)), of_visit, of_visit + length)
    query = normal(QUERY_ROWS, dim) / np.float32(dim**0.5)
    return Visits(blocks, intervals, Pairs(query, normal(KEY_ROWS, dim), exact_weights), value, 64, ())


def _record(visits: Visits, tile: Tile, ceiling: dict[str, float], length: int) -> dict[str, Any]:
    import array_api_compat.cupy as xp

    arrays = [cupy.ascontiguousarray(x) for x in inputs(xp, visits)]
    ref = cupy.empty(visits.blocks.rows.shape, dtype=cupy.float32)
    acc = cupy.empty((*ref.shape, visits.weighted_value.shape[1]), dtype=cupy.float32)
    launched = launch(tile, visits, [*arrays, ref, acc], [x.data.ptr for x in arrays[:2]])
    try:
        run.run(launched)
        milliseconds, _ = median_milliseconds(OnCupy(), lambda: run.run(launched), REPEATS, 2)
    except (cupy.cuda.driver.CUDADriverError, cupy.cuda.compiler.CompileException) as error:
        return {"failed": str(error)}
    return {"milliseconds": milliseconds, **_floors(visits, length, milliseconds / 1000, ceiling)}


def _floors(visits: Visits, length: int, seconds: float, ceiling: dict[str, float]) -> dict[str, float]:
    """Least times by arithmetic and by bytes, each row read once a block, and the share of the larger."""
    dim, columns = visits.pairs.query.shape[1], visits.weighted_value.shape[1]
    n_rows, n_keys = BLOCKS * SIZE, BLOCKS * length
    flops = 2 * BLOCKS * SIZE * length * (dim + columns)
    moved = 4 * (n_rows * (dim + columns + 1) + n_keys * (dim + columns)) + 8 * (3 * n_rows + n_keys)
    arithmetic, bytes_ = flops / ceiling["flops"], moved / ceiling["bytes"]
    return {
        "arithmetic_share": arithmetic / seconds,
        "bandwidth_share": bytes_ / seconds,
        "share_of_floor": max(arithmetic, bytes_) / seconds,
    }
