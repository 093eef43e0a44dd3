"""CuPy: sums without atomics, tiles by one kernel, all on the arrays' device and the current stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import cupy

from scatterbrain_backends.cupy_ import hashes, run, states
from scatterbrain_backends.cupy_.forms import C_TYPES
from scatterbrain_backends.cupy_.launches import CHUNK_ELEMENTS, Runner, dtype_name
from scatterbrain_core.backend import Backend
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.tiles import Sorted


class CupyBackend(Backend):
    """Backend for `cupy.ndarray`."""

    chunk_elements = CHUNK_ELEMENTS

    def full_precision(self, like: Any) -> AbstractContextManager[Any]:
        """On the device of `like`."""
        device: AbstractContextManager[Any] = cupy.cuda.Device(like.device.id)
        return device

    def exp_below(self, logits: Any, reference: Any) -> Any:
        """exp(logits - reference), written over `logits` in one pass."""
        return run.exp_below(logits, reference)

    def scatter_add(self, total: Any, index: Any, rows: Any) -> Any:
        """`total` with rows added in place, those of one index in one order on every run."""
        width = math.prod(total.shape[1:])
        if 0 in rows.shape:
            return total
        if rows.dtype != total.dtype or dtype_name(rows) not in C_TYPES:
            return super().scatter_add(total, index, rows)
        sums = cupy.ascontiguousarray(total).reshape(len(total), width)
        run.scatter_add(sums, index, cupy.ascontiguousarray(rows).reshape(len(rows), width))
        return sums.reshape(total.shape)

    def true_places(self, mask: Any, generic: Callable[[], Any]) -> Any:
        """In one pass."""
        del generic
        return cupy.flatnonzero(mask)

    def tile_partial(self, visits: Visits, generic: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """By the kernel where it takes such visits, else by array-API code."""
        found = run.tile_partial(self.xp, visits, _runner())
        return generic() if found is None else found

    def running_merge(
        self, ref: Any, acc: Any, segment: Any, generic: Callable[[], tuple[Any, Any]]
    ) -> tuple[Any, Any]:
        """By the kernel, one thread a row and column of a segment; else by array-API code."""
        found = states.running_merge(self.xp, ref, acc, segment, _runner())
        return generic() if found is None else found

    def sort_jointly(
        self,
        key_bucket: Any,
        query_bucket: Any,
        key_rank: Any,
        query_rank: Any,
        generic: Callable[[], Sorted],
    ) -> Sorted:
        """One sort of keys and one of queries, each by a number of bucket and rank, where these fit."""
        buckets, ranks = (key_bucket, query_bucket), (key_rank, query_rank)
        found = hashes.sort_jointly(self.xp, buckets, ranks, _runner())
        return generic() if found is None else found

    def hyperplane_codes(
        self, x: Any, normals: Any, direction: Any, generic: Callable[[], tuple[Any, Any]]
    ) -> tuple[Any, Any]:
        """By the kernel, in one pass over `x`; else by array-API code."""
        found = hashes.hyperplane_codes(self.xp, x, normals, direction, _runner())
        return generic() if found is None else found


def _runner() -> Runner:
    return Runner(run.run, cupy.ascontiguousarray, cupy.empty)
