"""The mask function: what transformers says of a mask, brought to what costs memory linear in the length.

There a mask is a function of places. It is evaluated a few rows at a time and kept as intervals where each
row is one; what is not stays a mask of all pairs, as transformers makes it for its own attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
    prepare_padding_mask,
    sdpa_mask,
)
from transformers.utils.import_utils import is_tracing

from scatterbrain_backends.transformers.intervals import Intervals
from scatterbrain_backends.transformers.models import facts_of
from scatterbrain_backends.transformers.settings import current

# Pairs that a mask function is asked about at a time.
CHUNK_ELEMENTS = 2**22


def scatterbrain_mask(**arguments: Any) -> Tensor | None:
    """The mask function of `AttentionMaskInterface`; its arguments are those of transformers' `sdpa_mask`.

    Returns
    -------
    tensor or None
        What `sdpa_mask` gives, or `eager_mask` for a model without "sdpa", where attention is exact in any
        case (short inputs, decoding) and where what a query sees is no interval. Elsewhere None for no mask
        or plain causality, a key-padding mask (B, 1, 1, Lk) of bool, or `Intervals.pack`.

    Raises
    ------
    ValueError
        The model computes its attention by itself, without `AttentionInterface`.
    """
    config = arguments.get("config")
    facts = facts_of(config)
    if facts.own_attention is not None:
        raise ValueError(
            f"attn_implementation must not be 'scatterbrain' for {type(config).__name__}: its "
            f"{facts.own_attention} does not use transformers' AttentionInterface"
        )
    asked = _Asked.of(arguments)
    found = None if facts.combines_masks or asked.is_of_all_pairs() else asked.intervals()
    if found is None:
        mask: Tensor | None = (sdpa_mask if facts.has_sdpa else eager_mask)(**arguments)
        return mask
    if not facts.has_sdpa:
        return found.pack()
    # No mask at all means to a layer what its own `is_causal` says.
    if found.is_all():
        is_plain = asked.allow_is_bidirectional_skip and bool(found.shown.all())
        return None if is_plain else found.shown[:, None, None, :]
    is_plain = found.causal_past() == 0 and bool(found.shown[:, : asked.n_queries].all())
    return None if is_plain and asked.allow_is_causal_skip else found.pack()


@dataclass(frozen=True)
class _Asked:
    """The arguments of a mask function that say what each query sees, with their defaults."""

    batch_size: int
    kv_length: int
    q_length: int = 0
    q_offset: Any = 0
    kv_offset: int = 0
    mask_function: Callable[..., Tensor] = causal_mask_function
    attention_mask: Tensor | None = None
    allow_is_causal_skip: bool = True
    allow_is_bidirectional_skip: bool = False
    use_vmap: bool = False
    device: Any = "cpu"
    cache_position: Tensor | None = None  # before transformers 5.4, in the place of q_length and q_offset

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> _Asked:
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in arguments.items() if name in names})

    @property
    def n_queries(self) -> int:
        return self.q_length if self.cache_position is None else len(self.cache_position)

    @property
    def offset(self) -> int:
        """Place of the first query in the whole sequence."""
        return int(self.q_offset if self.cache_position is None else self.cache_position[0])

    def is_of_all_pairs(self) -> bool:
        """Whether the mask must be one of all pairs: where attention is exact, or the model asks for it."""
        if self.n_queries < max(2, current().exact_below) or self.n_queries > self.kv_length:
            return True
        if self.use_vmap or is_tracing(self.attention_mask):
            return True
        if self.mask_function is bidirectional_mask_function:
            return not self.allow_is_bidirectional_skip
        return self.mask_function is causal_mask_function and not self.allow_is_causal_skip

    def intervals(self) -> Intervals | None:
        """The keys that each query sees, counted as in the arrays; None where they are no interval."""
        shown = self._shown()
        if self.mask_function is causal_mask_function:
            return Intervals.causal(shown, self.n_queries, self.offset - self.kv_offset)
        if self.mask_function is bidirectional_mask_function:
            return Intervals.all(shown, self.n_queries)
        step = max(1, CHUNK_ELEMENTS // shown.numel())
        parts = []
        for start in range(0, self.n_queries, step):
            part = self._interval_of(start, min(start + step, self.n_queries), shown.device)
            if part is None:
                return None
            parts.append(part)
        first, last = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        return Intervals(shown, first, last)

    def _shown(self) -> Tensor:
        shape = (self.batch_size, self.kv_length)
        padding = prepare_padding_mask(self.attention_mask, self.kv_length, self.kv_offset)
        if padding is None:
            device = self.device if self.cache_position is None else self.cache_position.device
            return torch.ones(shape, dtype=torch.bool, device=device)
        shown: Tensor = padding[:, self.kv_offset : self.kv_offset + self.kv_length].bool().expand(shape)
        return shown

    def _interval_of(self, start: int, stop: int, device: Any) -> tuple[Tensor, Tensor] | None:
        """First and last key of these queries by the mask function; None where a key between is hidden."""
        sequences, head, queries, keys = (
            torch.arange(n, device=device) for n in (self.batch_size, 1, stop - start, self.kv_length)
        )
        seen = self.mask_function(
            sequences[:, None, None, None],
            head[None, :, None, None],
            queries[None, None, :, None] + start + self.offset,
            keys[None, None, None, :] + self.kv_offset,
        )
        seen = seen.expand(self.batch_size, 1, len(queries), len(keys))[:, 0]
        first = seen.to(torch.int8).argmax(-1)
        last = first + seen.sum(-1) - 1
        is_interval = ((keys >= first[..., None]) & (keys <= last[..., None]) == seen).all()
        return (first, last) if bool(is_interval) else None
