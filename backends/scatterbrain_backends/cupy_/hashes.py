"""Codes of rows and the sort of buckets by kernels, for any library on whose arrays they can be run."""

from __future__ import annotations

from typing import Any

from scatterbrain_backends.cupy_ import launches
from scatterbrain_backends.cupy_.forms import C_TYPES
from scatterbrain_backends.cupy_.launches import C_TYPES_OF_RANKS, MOST_DIRECTIONS, Runner, dtype_name
from scatterbrain_core.tiles import Sorted

# Of the 64 bits of a number that orders rows, 32 are a rank's and one is a sign.
BITS_OF_RANK = 32
MOST_BUCKETS, MOST_ROWS = 2**31, 2**BITS_OF_RANK


def sort_jointly(xp: Any, buckets: tuple[Any, Any], ranks: tuple[Any, Any], runner: Runner) -> Sorted | None:
    """Keys and queries sorted by bucket, then by rank; None where no number of 64 bits holds both.

    Parameters
    ----------
    xp : namespace
        Of the arrays; its stable sort of 64-bit integers is all the sorting there is.
    buckets, ranks : tuple of array
        Of keys, and of queries.
    """
    dtypes, lengths = {dtype_name(x) for x in ranks}, {x.shape[0] for x in ranks}
    is_taken = len(dtypes) == 1 and dtypes <= C_TYPES_OF_RANKS.keys()
    if not is_taken or 0 in lengths or max(lengths) > MOST_ROWS or _largest(xp, buckets) >= MOST_BUCKETS:
        return None
    numbers = [_numbers(xp, bucket, rank, runner) for bucket, rank in zip(buckets, ranks, strict=True)]
    orders = [xp.argsort(x, stable=True) for x in numbers]
    keys, queries = (xp.take(x, order) for x, order in zip(numbers, orders, strict=True))
    of_query = [runner.empty(tuple(queries.shape), xp.int64) for _ in range(3)]
    runner.launch(launches.bucket_intervals, keys, numbers[1], *of_query)
    return Sorted(orders[0], keys >> BITS_OF_RANK, orders[1], queries >> BITS_OF_RANK, *of_query)


def _largest(xp: Any, buckets: tuple[Any, Any]) -> int:
    return int(xp.maximum(*(xp.max(x) for x in buckets)))


def _numbers(xp: Any, bucket: Any, rank: Any, runner: Runner) -> Any:
    number = runner.empty(tuple(bucket.shape), xp.int64)
    runner.launch(launches.sort_numbers, xp.astype(bucket, xp.int64, copy=False), rank, number)
    return number


def hyperplane_codes(
    xp: Any, x: Any, normals: Any, direction: Any | None, runner: Runner
) -> tuple[Any, Any | None] | None:
    """Codes of vectors (..., D), and their products with a direction; None for what the kernel does not take.

    Parameters
    ----------
    xp : namespace
        Of the arrays.
    normals : array, shape (K, D)
        Of the hyperplanes.
    direction : array, shape (D,), or None
        None for codes alone.
    """
    directions = normals if direction is None else xp.concat([normals, direction[None, :]], axis=0)
    is_one_dtype = x.dtype == directions.dtype and dtype_name(x) in C_TYPES
    if not is_one_dtype or 0 in (*x.shape, *directions.shape) or directions.shape[0] > MOST_DIRECTIONS:
        return None
    lead = tuple(x.shape[:-1])
    code = runner.empty(lead, xp.int64)
    # Any array stands for a projection that is not asked for.
    projection = directions if direction is None else runner.empty(lead, x.dtype)
    runner.launch(launches.hyperplane_codes, x, directions, code, projection, n_bits=normals.shape[0])
    return code, None if direction is None else projection
