"""A kernel's launch, from shapes alone: without an array library, so that it can be checked without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scatterbrain_backends.cupy_.forms import C_TYPES, C_TYPES_OF_HALF, Form


def dtype_name(x: Any) -> str:
    """Name of an array's dtype, whatever its library."""
    return str(x.dtype).rpartition(".")[2]


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
class Runner:
    """How kernels run on the arrays of a library.

    Attributes
    ----------
    run : callable
        Runs a launch.
    as_own : callable
        An array of the library as one that a launch takes, contiguous, and of the same memory where the
        former is contiguous.
    empty : callable
        A new contiguous array of the library, from its shape and dtype.
    """

    run: Callable[[Launch], None]
    as_own: Callable[[Any], Any]
    empty: Callable[[tuple[int, ...], Any], Any]

    def launch(self, prepare: Callable[..., Launch], *arrays: Any, **others: Any) -> None:
        """Run the launch that `prepare` makes of arrays of the library, and of what else it takes."""
        self.run(prepare(*map(self.as_own, arrays), **others))


# Elements of a temporary of generic code on such a device: launches cost more than its memory.
CHUNK_ELEMENTS = 2**24
# Threads of `running_merge`, and the most thread blocks side by side, by CUDA's own limits.
MERGE_THREADS, MOST_BLOCKS_X, MOST_BLOCKS_Y = 256, 2**31 - 1, 2**16 - 1
# Threads of the kernels of which each has a row, or two neighbours in it.
ROW_THREADS = 256
C_TYPES_OF_RANKS = {"float32": "float", "int64": "Index"}
# As in `hyperplane_codes`: rows of a thread block, and directions of a warp and in all.
ROWS_OF_CODES, DIRECTIONS_OF_WARP, MOST_DIRECTIONS = 32, 4, 31
# Threads of `segment_sum`, and how many of them stand side by side in a row.
SUM_THREADS, SUM_COLUMNS = 256, 32


def tile_partial(
    tile: Form,
    dtype: str,
    arrays: Sequence[Any],
    n_visits: int,
    n_excluded: tuple[int, int],
    is_aligned: bool,
    more: Sequence[Any] = (),
) -> Launch:
    """Launch of `tile_partial` or `tile_partial_half`.

    Parameters
    ----------
    dtype : str
        What is multiplied.
    arrays : sequence of array
        As the kernel's file lists them, contiguous.
    n_visits : int
        Of a query row.
    n_excluded : tuple of int
        Tables whose pairs are left out, and intervals of a query row in each.
    is_aligned : bool
        Whether rows of floats may be read 16 bytes at a time.
    more : sequence
        Further arguments of `tile_partial_half`, as its file lists them.
    """
    query, key, value, rows = arrays[0], arrays[1], arrays[2], arrays[6]
    n_blocks, size = rows.shape
    numbers = (size, n_visits, query.shape[1], value.shape[1], *n_excluded)
    scalars = (*map(np.int32, numbers), np.int64(key.shape[0]), np.int32(is_aligned))
    return Launch(
        tile.source,
        tile.kernel(dtype),
        (n_blocks, -(-size // tile.queries)),
        (tile.threads,),
        (*arrays, *scalars, *more),
        tile.shared_bytes(dtype),
    )


def half_rows(x: Any, rows: Any, *, dtype: str, width: int, factor: float) -> Launch:
    """Launch of `half_rows`: `width` columns of `x` (n, ·) times a factor, into `rows` (n, stride)."""
    n, stride = rows.shape
    numbers = (np.int64(n), *map(np.int32, (x.shape[1], width, stride)), np.float32(factor))
    return Launch(
        "half_rows",
        f"half_rows<{C_TYPES_OF_HALF[dtype]}>",
        (-(-n * stride // (2 * ROW_THREADS)),),
        (ROW_THREADS,),
        (x, rows, *numbers),
    )


def running_merge(ref: Any, acc: Any, segment: Any, ref_out: Any, acc_out: Any) -> Launch:
    """Launch of `running_merge`: partial results (n, m) of blocks, merged along those of a segment."""
    n, rows, columns = acc.shape
    return Launch(
        "running_merge",
        f"running_merge<{C_TYPES[dtype_name(acc)]}>",
        (n, min(-(-rows * columns // MERGE_THREADS), MOST_BLOCKS_Y)),
        (MERGE_THREADS,),
        (ref, acc, segment, ref_out, acc_out, np.int64(n), np.int32(rows), np.int32(columns)),
    )


def sort_numbers(bucket: Any, rank: Any, number: Any) -> Launch:
    """Launch of `sort_numbers`: a number for each row, in order of bucket and rank."""
    n = len(bucket)
    kernel = f"sort_numbers<{C_TYPES_OF_RANKS[dtype_name(rank)]}>"
    arguments = (bucket, rank, number, np.int64(n))
    return Launch("sort_numbers", kernel, (-(-n // ROW_THREADS),), (ROW_THREADS,), arguments)


def bucket_intervals(keys: Any, queries: Any, start: Any, stop: Any, rank: Any) -> Launch:
    """Launch of `bucket_intervals`: for each query its bucket's slots among the numbers of sorted keys."""
    n_keys, n_queries = len(keys), len(queries)
    arguments = (keys, queries, start, stop, rank, np.int64(n_keys), np.int64(n_queries))
    grid = (-(-n_queries // ROW_THREADS),)
    return Launch("bucket_intervals", "bucket_intervals", grid, (ROW_THREADS,), arguments)


def hyperplane_codes(x: Any, directions: Any, code: Any, projection: Any, *, n_bits: int) -> Launch:
    """Launch of `hyperplane_codes`: of vectors (..., D), by so many of the directions (n, D)."""
    n_directions, dim = directions.shape
    n_warps = -(-n_directions // DIRECTIONS_OF_WARP)
    numbers = (np.int64(code.size), *map(np.int32, (dim, n_bits, n_directions)))
    return Launch(
        "hyperplane_codes",
        f"hyperplane_codes<{C_TYPES[dtype_name(x)]}>",
        (-(-code.size // ROWS_OF_CODES),),
        (ROWS_OF_CODES, n_warps),
        (x, directions, code, projection, *numbers),
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
