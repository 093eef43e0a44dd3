"""Exact attention of a layer: by transformers' own "sdpa", or in blocks that need no mask of all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from scatterbrain_backends.transformers.intervals import Intervals

# Queries in a block, and at most so many logits where they are formed.
BLOCK_QUERIES = 512
BLOCK_LOGITS = 2**25


@dataclass(frozen=True)
class Asked:
    """What a layer asks for.

    Attributes
    ----------
    attention_mask : tensor or None
        As the layer was handed it.
    mask : Intervals, tensor or None
        What it says.
    scaling, softcap, sinks, position_bias
        As `scatterbrain_attention_forward` takes them; `sinks` is its `s_aux`.
    """

    attention_mask: Tensor | None
    mask: Intervals | Tensor | None
    scaling: float | None
    softcap: float | None
    sinks: Tensor | None
    position_bias: Tensor | None


def exact(module: Any, query: Tensor, key: Tensor, value: Tensor, asked: Asked) -> Tensor:
    """The exact output, shape (B, H, Lq, Dv)."""
    attention_mask, mask = asked.attention_mask, asked.mask
    is_packed = Intervals.is_packed(attention_mask)
    if asked.softcap is not None or asked.sinks is not None or (is_packed and asked.position_bias is None):
        return in_blocks(query, key, value, mask, asked.scaling, asked.softcap, asked.sinks)
    if is_packed:
        attention_mask = mask.dense() if isinstance(mask, Intervals) else mask
    output: Tensor = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=asked.scaling,
        is_causal=isinstance(mask, Intervals),
        position_bias=asked.position_bias,
    )[0]
    return output.transpose(1, 2)


def in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Intervals | Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention a block of queries at a time, over the keys that it may see, shape (B, H, Lq, Dv).

    Parameters
    ----------
    mask : Intervals, tensor of shape (B, 1 or H, 1 or Lq, Lk), or None
        Booleans, True where a query may attend, or numbers that are added to the logits.
    softcap : float, optional
        Logits s become softcap · tanh(s / softcap).
    sinks : tensor, shape (H,), optional
        For each head the logit of one more key, of value zero.
    """
    is_plain = softcap is None and sinks is None
    n_logits = query.shape[0] * query.shape[1] * key.shape[2]
    step = BLOCK_QUERIES if is_plain else min(BLOCK_QUERIES, max(1, BLOCK_LOGITS // n_logits))
    outputs = []
    for start in range(0, query.shape[2], step):
        rows = slice(start, min(start + step, query.shape[2]))
        columns, of_block = _block(mask, rows, key.shape[2])
        q, k, v = query[:, :, rows], key[:, :, columns], value[:, :, columns]
        if is_plain:
            outputs.append(_plain(q, k, v, of_block, scaling))
        else:
            outputs.append(_by_logits(q, k, v, of_block, scaling, softcap, sinks))
    return torch.cat(outputs, dim=2)


def _block(mask: Intervals | Tensor | None, rows: slice, n_keys: int) -> tuple[slice, Tensor | None]:
    """The keys of a block of queries, and their mask."""
    if isinstance(mask, Intervals):
        columns = mask.columns(rows)
        return columns, mask.pairs(rows, columns)
    if mask is not None and mask.shape[-2] > 1:
        mask = mask[:, :, rows]
    return slice(0, n_keys), mask


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    output: Tensor = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=is_grouped
    )
    return output


def _by_logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query @ key.transpose(-1, -2)) * factor
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    elif mask is not None:
        logits = logits + mask
    if sinks is not None:
        sink = sinks.to(logits.dtype).reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sink], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value
