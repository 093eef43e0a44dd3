"""Causal states, codes and the sort of buckets: their kernels beside generic code and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat.cupy as xp
import cupy

from benchmarks.gpu.devices import OnCupy, median_milliseconds
from scatterbrain_core.backend import Backend, backend_of
from scatterbrain_core.normalization import Partial, running_merge
from scatterbrain_core.sparse.hyperplanes import RandomHyperplanes
from scatterbrain_core.tiles import jointly_sorted

LENGTHS, HEADS, DIM, RANK, KEYS_OF_BLOCK, BITS = (2**13, 2**15, 2**17), 16, 64, 64, 64, 10
REPEATS, MOST_SECONDS = 10, 2.0


@dataclass(frozen=True)
class _Pass:
    """A call on a backend, and the bytes of what it is given and gives."""

    name: str
    call: Callable[[Backend], Any]
    n_bytes: int


def measure(bytes_a_second: float) -> Iterator[dict[str, Any]]:
    """A record for every length and kernel, float32."""
    for length in LENGTHS:
        for prepare in (_states, _codes, _sort):
            yield {"length": length, **_record(prepare(length), bytes_a_second)}
            OnCupy().free()


def _states(length: int) -> _Pass:
    blocks = length // KEYS_OF_BLOCK
    ref = cupy.random.standard_normal((HEADS * blocks, RANK), dtype=cupy.float32)
    acc = cupy.random.standard_normal((*ref.shape, DIM + 1), dtype=cupy.float32)
    head = cupy.arange(HEADS * blocks) // blocks
    moved = 2 * (ref.nbytes + acc.nbytes) + head.nbytes
    return _Pass(
        "running_merge", lambda backend: running_merge(backend, Partial(ref, acc), head, blocks), moved
    )


def _codes(length: int) -> _Pass:
    x = cupy.random.standard_normal((HEADS, length, DIM), dtype=cupy.float32)
    draws = cupy.random.standard_normal((BITS + 1, DIM), dtype=cupy.float32)
    hashing = RandomHyperplanes(BITS)
    query = x[:, :1, :]

    def call(backend: Backend) -> Any:
        return hashing.hashed(backend, (draws[:-1], draws[-1]), query, x, is_cut=True)

    return _Pass("hyperplane_codes", call, x.nbytes + HEADS * length * 12)


def _sort(length: int) -> _Pass:
    n = HEADS * length
    buckets = [cupy.random.randint(0, HEADS << BITS, n) for _ in range(2)]
    ranks = [cupy.random.standard_normal(n, dtype=cupy.float32) for _ in range(2)]
    in_and_out = n * (2 * (8 + 4) + 4 * 8 + 3 * 8)
    return _Pass("sort_jointly", lambda backend: jointly_sorted(backend, *buckets, *ranks), in_and_out)


def _record(measured: _Pass, bytes_a_second: float) -> dict[str, Any]:
    own = backend_of(x=cupy.zeros(1))
    seconds, generic = (_seconds(lambda b=b: measured.call(b)) for b in (own, Backend(xp)))  # type: ignore[misc]
    return {
        "pass": measured.name,
        "milliseconds": 1000 * seconds,
        "generic_milliseconds": 1000 * generic,
        "bandwidth_share": measured.n_bytes / bytes_a_second / seconds,
    }


def _seconds(call: Callable[[], Any]) -> float:
    call()
    return median_milliseconds(OnCupy(), call, REPEATS, MOST_SECONDS)[0] / 1000
