"""Which keys each query sees, as an interval of its own less the padding: linear in the length.

Causal, cached, sliding, chunked and packed sequences and blocks of an image are all of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Intervals:
    """Query i of sequence b sees the keys j with first[b, i] <= j <= last[b, i] that are shown.

    Attributes
    ----------
    shown : tensor of bool, shape (B, Lk)
        False hides a key from every query: padding.
    first, last : tensor of int, shape (B, Lq)
        last < first where a query sees no key.
    """

    shown: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def causal(cls, shown: Tensor, n_queries: int, past: int = 0) -> Intervals:
        """Queries at the places past, past + 1, ... that see all keys up to their own place."""
        places = _places(past, n_queries, shown).expand(shown.shape[0], -1)
        return cls(shown, torch.zeros_like(places), places.clamp(max=shown.shape[1] - 1))

    @classmethod
    def all(cls, shown: Tensor, n_queries: int) -> Intervals:
        """Queries that see all keys."""
        first = torch.zeros((shown.shape[0], n_queries), dtype=torch.int64, device=shown.device)
        return cls(shown, first, first + (shown.shape[1] - 1))

    @staticmethod
    def is_packed(mask: Any) -> bool:
        """Whether a mask that a layer was handed is what `pack` gave."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.int32:
            return False
        return bool(mask.ndim == 4 and mask.shape[2] == 3)

    @classmethod
    def unpack(cls, mask: Tensor, n_queries: int) -> Intervals:
        """The intervals that `pack` gave."""
        shown, first, last = mask[:, 0].unbind(1)
        return cls(shown.bool(), first[:, :n_queries], last[:, :n_queries])

    def pack(self) -> Tensor:
        """As one tensor of shape (B, 1, 3, Lk), int32; Lq must be at most Lk.

        Four axes: transformers hands on what has four as it is. Three rows, where a mask of pairs has Lq or
        one: what takes it for such a mask fails, and does not compute something else.
        """
        rest = (0, self.shown.shape[1] - self.first.shape[1])
        rows = [self.shown, *(torch.nn.functional.pad(x, rest) for x in (self.first, self.last))]
        return torch.stack([x.to(torch.int32) for x in rows], dim=1)[:, None]

    def is_all(self) -> bool:
        """Whether every query sees every key that is shown."""
        return bool((self.first == 0).all() & (self.last == self.shown.shape[1] - 1).all())

    def causal_past(self) -> int | None:
        """How many keys come before the first query, where each query sees all up to its own; else None."""
        past = int(self.last[0, 0])
        is_causal = (self.first == 0).all() & (
            self.last == _places(past, self.last.shape[1], self.last)
        ).all()
        return past if past >= 0 and bool(is_causal) else None

    def packed_sequences(self, row: int) -> list[slice] | None:
        """Places of the sequences, each causal by itself, that are packed into a row; None if none are."""
        first, places = self.first[row], _places(0, self.last.shape[1], self.last)
        begins = first == places
        latest = torch.cummax(torch.where(begins, places, 0), 0).values
        if not bool((self.last[row] == places).all() & (first == latest).all()):
            return None
        edges = [*torch.nonzero(begins)[:, 0].tolist(), len(places)]
        return [slice(start, stop) for start, stop in pairwise(edges)]

    def columns(self, rows: slice) -> slice:
        """From the first to the last key that some of these queries see."""
        start, stop = int(self.first[:, rows].min()), int(self.last[:, rows].max()) + 1
        return slice(start, max(start, stop))

    def pairs(self, rows: slice, columns: slice) -> Tensor:
        """The mask of these queries and keys, shape (B, 1, r, c), bool."""
        places = _places(columns.start, columns.stop - columns.start, self.shown)
        first, last = self.first[:, rows, None], self.last[:, rows, None]
        return ((places >= first) & (places <= last) & self.shown[:, None, columns])[:, None]

    def dense(self) -> Tensor:
        """The mask of all pairs, shape (B, 1, Lq, Lk), bool."""
        return self.pairs(slice(None), slice(0, self.shown.shape[1]))


def _places(start: int, count: int, like: Tensor) -> Tensor:
    return torch.arange(start, start + count, device=like.device)
