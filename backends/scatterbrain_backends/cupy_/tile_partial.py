"""Sums over the tiles of visits by one kernel, for the visits that it can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scatterbrain_backends.cupy_ import launches
from scatterbrain_backends.cupy_.forms import Form, HalfTile, choose_tile
from scatterbrain_backends.cupy_.launches import Launch, Runner, dtype_name
from scatterbrain_backends.visits import is_of_intervals
from scatterbrain_core.problem import HalfPrecision
from scatterbrain_core.rows import exact_weights, unit_weights
from scatterbrain_core.sparse_correction import Visits

VECTOR_BYTES = 16
HALVES_OF_VECTOR = VECTOR_BYTES // 2
# Divided by smaller or larger factors, entries could leave float32 before they are of half precision again.
LEAST_FACTOR, LARGEST_FACTOR = 2.0**-40, 2.0**40


def is_taken(visits: Visits) -> bool:
    """Whether the kernel computes such visits: exact or unit weights on intervals, no array empty."""
    return visits.pairs.weights in (exact_weights, unit_weights) and is_of_intervals(visits)


def tile_of(visits: Visits, shared_bytes: int, has_mma: bool) -> Form | None:
    """The form of the kernel's tiles; None where no form fits.

    Parameters
    ----------
    shared_bytes : int
        That a thread block may have.
    has_mma : bool
        Whether the device multiplies half precision by `mma.sync`.
    """
    columns = max(visits.pairs.query.shape[1], visits.weighted_value.shape[1] - 1)
    dtypes = [dtype_name(visits.pairs.query)]
    half = visits.pairs.half
    if has_mma and half is not None and _is_recovered(half) and dtypes == ["float32"]:
        dtypes.insert(0, half.dtype)
    sizes = (columns, visits.blocks.size, visits.tile_keys, shared_bytes)
    forms = (choose_tile(dtype, *sizes) for dtype in dtypes)
    return next((tile for tile in forms if tile is not None), None)


def _is_recovered(half: HalfPrecision) -> bool:
    factors = (abs(half.query_factor), half.key_factor)
    return all(LEAST_FACTOR <= factor <= LARGEST_FACTOR for factor in factors)


def half_rows(xp: Any, visits: Visits, runner: Runner) -> list[Any]:
    """Keys and values in half precision, as 16-bit integers, made once for all visits to these arrays."""
    half, key, value = visits.pairs.half, visits.pairs.key, visits.weighted_value
    assert half is not None
    dtype = half.dtype

    def rounded(x: Any, width: int, factor: float) -> Any:
        rows = runner.empty((x.shape[0], half_stride(width)), xp.int16)
        if 0 not in rows.shape:
            runner.launch(launches.half_rows, x, rows, dtype=dtype, width=width, factor=factor)
        return rows

    return [
        half.once("key", key, lambda: rounded(key, key.shape[1], 1 / half.key_factor)),
        half.once("value", value, lambda: rounded(value, value.shape[1] - 1, 1.0)),
    ]


def half_stride(width: int) -> int:
    """Columns of rows of half precision, which are read 16 bytes at a time."""
    return -(-width // HALVES_OF_VECTOR) * HALVES_OF_VECTOR


def launch(
    tile: Form, visits: Visits, arrays: Sequence[Any], addresses: Sequence[int], halves: Sequence[Any] = ()
) -> Launch:
    """Launch for the kernel's arrays, inputs and then outputs.

    Parameters
    ----------
    addresses : sequence of int
        Of query and key.
    halves : sequence of array
        Keys and values in half precision, for tiles of it.
    """
    n_excluded = len(visits.excluded), max((table.n_visits for table in visits.excluded), default=0)
    query = arrays[0]
    # Rows are read four entries at a time, whatever their size.
    is_aligned = query.shape[1] % 4 == 0 and all(x % VECTOR_BYTES == 0 for x in addresses)
    half, numbers = visits.pairs.half, (visits.intervals.n_visits, n_excluded, is_aligned)
    if not isinstance(tile, HalfTile):
        return launches.tile_partial(tile, dtype_name(query), arrays, *numbers)
    assert half is not None
    key, value = halves
    factors = map(np.float32, (1 / half.query_factor, half.query_factor * half.key_factor))
    more = (value, np.int32(key.shape[1]), np.int32(value.shape[1]), *factors)
    return launches.tile_partial(tile, half.dtype, [query, key, *arrays[2:]], *numbers, more)
