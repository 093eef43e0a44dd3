"""Forms of a tile: what the kernels of tiles are compiled for, and which form suits which visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

C_TYPES = {"float32": "float", "float64": "double"}
C_TYPES_OF_HALF = {"float16": "Float16", "bfloat16": "BFloat16"}


@dataclass(frozen=True)
class Tile:
    """What `tile_partial` is compiled for, but for its dtype.

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
    source: ClassVar[str] = "tile_partial"

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
        return n_entries * np.dtype(dtype).itemsize + _bytes_of_numbers(self)


@dataclass(frozen=True)
class HalfTile:
    """What `tile_partial_half` is compiled for, but for its dtype.

    Attributes
    ----------
    width : int
        Columns of queries, keys and values, padded.
    warps : int
        Of 16 places each.
    keys : int
        Slots of a tile.
    """

    width: int
    warps: int
    keys: int
    source: ClassVar[str] = "tile_partial_half"

    @property
    def queries(self) -> int:
        """Places of a tile."""
        return ROWS_OF_WARP * self.warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return LANES_OF_WARP * self.warps

    def kernel(self, dtype: str) -> str:
        """The instantiation."""
        return f"tile_partial_half<{C_TYPES_OF_HALF[dtype]}, {self.width}, {self.warps}, {self.keys}>"

    def shared_bytes(self, dtype: str) -> int:  # noqa: ARG002
        """Shared memory: queries, keys and values in 2 bytes, weights, and the numbers of rows and slots."""
        rows = self.queries + 2 * self.keys
        return 2 * rows * (self.width + PADDING_OF_HALF) + 4 * self.keys + _bytes_of_numbers(self)


Form: TypeAlias = Tile | HalfTile


def _bytes_of_numbers(tile: Form) -> int:
    return (3 * tile.queries + 2 * tile.keys) * INDEX_BYTES


# As in the kernels.
ROWS_SIDE_BY_SIDE, PADDING, INDEX_BYTES = 16, 4, 8
ROWS_OF_WARP, LANES_OF_WARP, PADDING_OF_HALF = 16, 32, 8
# Places of a block up to which it gets a form for small blocks.
SMALL_BLOCK = 16
# Lanes that share a row by the slots of a tile, for each dtype, rows of a thread, and columns that tiles
# are compiled for; other widths are padded to the next, what is wider than the last runs generic code. Fewer
# lanes read shared memory less often, but each holds more of a row's sums; more slots are read less often,
# but leave room for fewer thread blocks. Small blocks get one row a thread.
NARROW, WIDE, SMALL, DOUBLE = {16: 4, 64: 8}, {16: 8, 32: 8}, {32: 8}, {16: 8}
LANES: dict[tuple[str, int], dict[int, dict[int, int]]] = {
    ("float32", 4): {32: NARROW, 64: NARROW, 96: WIDE, 128: WIDE},
    ("float32", 1): {64: SMALL, 128: SMALL},
    ("float64", 4): {64: DOUBLE, 128: DOUBLE},
}
# Columns and slots of tiles of half precision, by the number of warps. None of these forms has been timed.
HALF_WIDTHS = {4: (32, 64, 80, 96, 128), 1: (64, 128)}
HALF_KEYS = {4: (16, 64), 1: (32,)}


def all_tiles() -> list[tuple[str, Form]]:
    """Every form of a tile that may be launched, with its dtype."""
    sizes = (SMALL_BLOCK, SMALL_BLOCK + 1)
    found = [
        (dtype, tile)
        for dtype in (*C_TYPES, *C_TYPES_OF_HALF)
        for size in sizes
        for tile in _forms(dtype, size)
    ]
    return list(dict.fromkeys(found))


def _forms(dtype: str, size: int) -> list[Form]:
    """Forms for blocks of a size."""
    if dtype in C_TYPES_OF_HALF:
        warps = 1 if size <= SMALL_BLOCK else 4
        return [HalfTile(width, warps, n) for width in HALF_WIDTHS[warps] for n in HALF_KEYS[warps]]
    rows = 1 if size <= SMALL_BLOCK and (dtype, 1) in LANES else 4
    of_width = LANES.get((dtype, rows), {})
    return [
        Tile(width, rows, n, lanes) for width, of_keys in of_width.items() for n, lanes in of_keys.items()
    ]


def choose_tile(dtype: str, columns: int, size: int, tile_keys: int, shared_bytes: int) -> Form | None:
    """The form of a tile, by shapes alone: what rows hold changes no form, and so no rounding of others.

    Parameters
    ----------
    dtype : str
        What is multiplied.
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
    Tile, HalfTile or None
        None where there is none that fits.
    """
    forms = [tile for tile in _forms(dtype, size) if tile.width >= columns]
    if not forms:
        return None
    width = min(tile.width for tile in forms)
    forms = [tile for tile in forms if tile.width == width]
    most = max(tile_keys, min(tile.keys for tile in forms))
    fitting = [tile for tile in forms if tile.keys <= most and tile.shared_bytes(dtype) <= shared_bytes]
    return max(fitting, key=lambda tile: tile.keys, default=None)
