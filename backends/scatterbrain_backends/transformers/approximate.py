"""Scatterbrain's estimate of a layer's attention: cached and packed sequences brought to plain calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import scatterbrain_core as sb
from scatterbrain_backends.transformers.exact import in_blocks
from scatterbrain_backends.transformers.intervals import Intervals
from scatterbrain_backends.transformers.settings import Settings


@dataclass(frozen=True)
class Layer:
    """What all calls of a layer have in common.

    Attributes
    ----------
    settings : Settings
    scaling : float or None
        Factor of the logits.
    sinks : tensor, shape (H,), or None
        For each head the logit of one more key, of value zero.
    """

    settings: Settings
    scaling: float | None
    sinks: Tensor | None


def approximate(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Intervals | Tensor | None
) -> Tensor | None:
    """The output, shape (B, H, Lq, Dv); None where the mask is of a kind that is computed exactly.

    Parameters
    ----------
    mask : Intervals, tensor of bool of shape (B, 1, 1, Lk), or None
    """
    if not isinstance(mask, Intervals):
        return _with_sinks(layer, *_attend(layer, query, key, value, mask, False, layer.sinks is not None))
    past = mask.causal_past()
    if past is None:
        return _packed(layer, query, key, value, mask)
    return _causal(layer, query, key, value, mask.shown, past)


def _causal(layer: Layer, query: Tensor, key: Tensor, value: Tensor, shown: Tensor, past: int) -> Tensor:
    """Causal attention of the last tokens: among themselves, and to all that came before them."""
    stop = past + query.shape[2]  # behind it a static cache has room for tokens to come
    mask = None if bool(shown[:, :stop].all()) else shown[:, None, None, :]

    def attend(keys: slice, is_causal: bool, needs_lse: bool) -> tuple[Tensor, Tensor | None]:
        of_keys = None if mask is None else mask[..., keys]
        return _attend(layer, query, key[:, :, keys], value[:, :, keys], of_keys, is_causal, needs_lse)

    own = attend(slice(past, stop), True, past > 0 or layer.sinks is not None)
    if past == 0:
        return _with_sinks(layer, *own)
    return _with_sinks(layer, *_joined(own, attend(slice(0, past), False, True)))


def _packed(layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Intervals) -> Tensor | None:
    """Causal attention of sequences packed into rows, one by one; None if none is, or all are short."""
    rows = [mask.packed_sequences(row) for row in range(query.shape[0])]
    longest = max((places.stop - places.start for row in rows for places in row or []), default=0)
    if None in rows or longest < layer.settings.exact_below:
        return None

    def of_sequence(row: int, places: slice) -> Tensor:
        q, k, v = (x[row : row + 1, :, places] for x in (query, key, value))
        shown = mask.shown[row : row + 1, places]
        if q.shape[2] < max(2, layer.settings.exact_below):
            return in_blocks(q, k, v, Intervals.causal(shown, q.shape[2]), layer.scaling, sinks=layer.sinks)
        return _causal(layer, q, k, v, shown, 0)

    return torch.cat(
        [torch.cat([of_sequence(i, places) for places in row or []], dim=2) for i, row in enumerate(rows)]
    )


def _attend(
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    needs_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output and, where it is needed, log-normaliser (B, H, Lq)."""
    settings = layer.settings
    call = sb.estimate if needs_lse else sb.attention
    found = call(
        query,
        key,
        value,
        method=settings.method if key.shape[2] >= settings.exact_below else "exact",
        budget=settings.budget,
        attn_mask=mask,
        is_causal=is_causal,
        scale=layer.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        seed=settings.seed,
        check_finite=False,
    )
    if not needs_lse:
        return found, None
    if bool(torch.isnan(found.lse).any()):
        raise ValueError(
            "method must have positive weights where a cached past or attention sinks need its normaliser, "
            f"got {found.method}, or NaN or inf in query or key"
        )
    return found.output, found.lse


def _joined(*parts: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Output and log-normaliser of disjoint sets of keys together."""
    lse = torch.stack([lse for _, lse in parts if lse is not None])
    # Where no part sees a key the outputs are zeros, whatever their weights.
    lse = lse.clamp(min=torch.finfo(lse.dtype).min)
    outputs = torch.stack([output.to(lse.dtype) for output, _ in parts])
    output = (torch.softmax(lse, dim=0)[..., None] * outputs).sum(0)
    return output.to(parts[0][0].dtype), torch.logsumexp(lse, dim=0)


def _with_sinks(layer: Layer, output: Tensor, lse: Tensor | None) -> Tensor:
    """The output where one more key of value zero takes its share of the weight."""
    if layer.sinks is None or lse is None:
        return output
    share = torch.sigmoid(lse - layer.sinks.to(lse.dtype)[None, :, None])
    return (output * share[..., None]).to(output.dtype)
