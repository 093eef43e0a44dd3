"""Segments of consecutive rows of a head."""

from __future__ import annotations

from dataclasses import dataclass

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.tiles import integers


@dataclass(frozen=True)
class Segments:
    """The visible rows of each head, by position, in nearly equal segments, the first ones larger by a row.

    Attributes
    ----------
    label : array of int, shape (H, L)
        Segment of each row; -1 where it is hidden.
    offset : array of int, shape (H, L)
        Place of each row in its segment.
    start, size : array of int, shape (H, n_segments)
        Visible rows before each segment and in it; a head of fewer rows than segments has empty ones, last.
    """

    label: Array
    offset: Array
    start: Array
    size: Array


def segments(xp: Namespace, rows: Array, mask: Array | None, n_segments: int) -> Segments:
    """Segments of rows (H, L, D); `mask` of shape (H, L), or None where all of them are visible."""
    shape = rows.shape[:2]
    rank = xp.broadcast_to(integers(xp, shape[1], rows), shape)
    count = xp.full_like(rank[:, :1], shape[1])
    if mask is not None:
        seen = xp.cumulative_sum(xp.astype(mask, rank.dtype), axis=1)
        rank, count = seen - 1, seen[:, -1:]
    size, n_larger = count // n_segments, count % n_segments
    in_larger = n_larger * (size + 1)
    behind = n_larger + (rank - in_larger) // xp.maximum(size, 1)
    label = xp.where(rank < in_larger, rank // (size + 1), behind)
    number = integers(xp, n_segments, rows)[None, :]
    start = number * size + xp.minimum(number, n_larger)
    if mask is not None:
        label = xp.where(mask, label, -1)
    offset = rank - xp.take_along_axis(start, xp.maximum(label, 0), axis=1)
    return Segments(label, offset, start, size + xp.astype(number < n_larger, size.dtype))
