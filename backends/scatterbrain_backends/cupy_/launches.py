"""A kernel's launch, from shapes alone: without an array library, so that it can be checked without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def dtype_name(x: Any) -> str:
    """Name of an array's dtype, whatever its library."""
    return str(x.dtype).rpartition(".")[2]


C_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Launch:
    """What is run, on how many threads, with which arguments.

    Attributes
    ----------
    source : str
        Name of the file.
    kernel : str
        The instantiation, as a C++ expression.
    grid, block : tuple of int
    arguments : tuple
        Arrays, and NumPy scalars of the very type of the kernel's parameters.
    shared_bytes : int
        Dynamic shared memory of a thread block.
    """

    source: str
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]
    shared_bytes: int = 0


@dataclass(frozen=True)
class Tile:
    """Form of a tile: what `tile_partial` is compiled for, but for its dtype.

    Attributes
    ----------
    width : int
        Columns of queries, keys and values, padded.
    rows : int
        Of each thread: a tile has 16 times as many places.
    keys : int
        Slots of a tile.
    lanes : int
        Neighbouring threads that share a row.
    """

    width: int
    rows: int
    keys: int
    lanes: int

    @property
    def queries(self) -> int:
        """Places of a tile."""
        return ROWS_SIDE_BY_SIDE * self.rows

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return ROWS_SIDE_BY_SIDE * self.lanes

    def kernel(self, dtype: str) -> str:
        """The instantiation."""
        return f"tile_partial<{C_TYPES[dtype]}, {self.width}, {self.rows}, {self.keys}, {self.lanes}>"

    def shared_bytes(self, dtype: str) -> int:
        """Shared memory: queries, keys, values, weights, and the numbers of rows and slots."""
        rows = self.queries + 2 * self.keys
        n_entries = rows * (self.width + PADDING) + self.queries * (self.keys + PADDING) + self.keys
        return n_entries * np.dtype(dtype).itemsize + (3 * self.queries + 2 * self.keys) * INDEX_BYTES


# As in the kernel.
ROWS_SIDE_BY_SIDE, PADDING, INDEX_BYTES = 16, 4, 8
# Lanes that share a row by the slots of a tile, for each dtype, rows of a thread, and columns that tiles
# are compiled for; other widths are padded to the next, what is wider than the last runs generic code. Fewer
# lanes read shared memory less often, but each holds more of a row's sums; more slots are read less often,
# but leave room for fewer thread blocks. Small blocks get one row a thread.
NARROW, WIDE, SMALL, DOUBLE = {16: 4, 64: 8}, {16: 8, 32: 8}, {32: 8}, {16: 8}
LANES = {
    ("float32", 4): {32: NARROW, 64: NARROW, 96: WIDE, 128: WIDE},
    ("float32", 1): {64: SMALL, 128: SMALL},
    ("float64", 4): {64: DOUBLE, 128: DOUBLE},
}
# Elements of a temporary of generic code on such a device: launches cost more than its memory.
CHUNK_ELEMENTS = 2**24
# Threads of `segment_sum`, and how many of them stand side by side in a row.
SUM_THREADS, SUM_COLUMNS = 256, 32


def all_tiles() -> list[tuple[str, Tile]]:
    """Every form of a tile that may be launched, with its dtype."""
    return [
        (dtype, Tile(width, rows, keys, lanes))
        for (dtype, rows), of_width in LANES.items()
        for width, of_keys in of_width.items()
        for keys, lanes in of_keys.items()
    ]


def choose_tile(dtype: str, columns: int, size: int, tile_keys: int, shared_bytes: int) -> Tile | None:
    """The form of a tile, by shapes alone: what rows hold changes no form, and so no rounding of others.

    Parameters
    ----------
    columns : int
        The more of queries' and values' columns.
    size : int
        Places of a block.
    tile_keys : int
        Slots of a tile that the table asks for; the least form may have more.
    shared_bytes : int
        Shared memory that a thread block may have.

    Returns
    -------
    Tile or None
        None where there is none that fits.
    """
    rows = 1 if size <= ROWS_SIDE_BY_SIDE and (dtype, 1) in LANES else 4
    of_width = LANES.get((dtype, rows), {})
    width = next((width for width in of_width if width >= columns), None)
    if width is None:
        return None
    of_keys = of_width[width]
    most = max(tile_keys, min(of_keys))
    tiles = [Tile(width, rows, keys, of_keys[keys]) for keys in sorted(of_keys, reverse=True) if keys <= most]
    return next((tile for tile in tiles if tile.shared_bytes(dtype) <= shared_bytes), None)


def tile_partial(
    tile: Tile, arrays: Sequence[Any], n_visits: int, n_excluded: tuple[int, int], is_aligned: bool
) -> Launch:
    """Launch of `tile_partial`.

    Parameters
    ----------
    arrays : sequence of array
        As the kernel's file lists them, contiguous.
    n_visits : int
        Of a query row.
    n_excluded : tuple of int
        Tables whose pairs are left out, and intervals of a query row in each.
    is_aligned : bool
        Whether rows of queries and keys may be read 16 bytes at a time.
    """
    query, key, value, rows = arrays[0], arrays[1], arrays[2], arrays[6]
    n_blocks, size = rows.shape
    numbers = (size, n_visits, query.shape[1], value.shape[1], *n_excluded)
    scalars = (*map(np.int32, numbers), np.int64(key.shape[0]), np.int32(is_aligned))
    dtype = dtype_name(query)
    return Launch(
        "tile_partial",
        tile.kernel(dtype),
        (n_blocks, -(-size // tile.queries)),
        (tile.threads,),
        (*arrays, *scalars),
        tile.shared_bytes(dtype),
    )


def segment_sum(rows: Any, order: Any, first: Any, last: Any, total: Any) -> Launch:
    """Launch of `segment_sum`: rows in order of their segments, added to `total` (n_segments, width)."""
    n_segments, width = total.shape
    columns = min(SUM_COLUMNS, 1 << max(width - 1, 0).bit_length())
    return Launch(
        "segment_sum",
        f"segment_sum<{C_TYPES[dtype_name(rows)]}>",
        (n_segments, -(-width // columns)),
        (columns, SUM_THREADS // columns),
        (rows, order, first, last, total, np.int32(width)),
    )
