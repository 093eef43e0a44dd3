"""The attention function: what a layer asks for, by the method where it can, else exactly or an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scatterbrain_backends.transformers.approximate import Layer, approximate
from scatterbrain_backends.transformers.exact import Asked, exact
from scatterbrain_backends.transformers.intervals import Intervals
from scatterbrain_backends.transformers.models import facts_of
from scatterbrain_backends.transformers.settings import current

# Arguments that are obeyed, and those that change nothing here: windows and packed sequences are in the mask.
KNOWN = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "deterministic",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "position_bias",
    "position_ids",
    "return_dict",
    "s_aux",
    "seq_idx",
    "sliding_window",
    "softcap",
    "use_cache",
}

uncompiled_approximate = torch.compiler.disable(approximate)


def scatterbrain_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of `AttentionInterface`.

    By the method of `configure` where queries and keys are at least `exact_below`, the mask is none, padding,
    causal (with a cache too) or causal within sequences that are packed into rows, and the logits are plain
    products, with or without attention sinks. Exact elsewhere.

    Parameters
    ----------
    module : torch.nn.Module
        The layer. Its `is_causal` says what no mask means, where `is_causal` does not.
    query : tensor, shape (B, H, Lq, D)
    key, value : tensor, shape (B, Hkv, Lk, D) and (B, Hkv, Lk, Dv)
    attention_mask : tensor or None
        What `scatterbrain_mask` gave, or a mask as transformers' "sdpa" takes it.
    dropout : float
        Must be 0.
    scaling : float, optional
        Factor of the logits, by default 1/√D.
    softcap : float, optional
        Logits s become softcap · tanh(s / softcap), exactly.
    s_aux : tensor, shape (H,), optional
        For each head the logit of one more key, of value zero.
    position_bias : tensor, optional
        Added to the logits, exactly.

    Returns
    -------
    output : tensor, shape (B, Lq, H, Dv)
    weights : None

    Raises
    ------
    ValueError
        Saying why: dropout, weights that are asked for, a paged cache, arguments that are not known, or what
        the method itself refuses.
    """
    refuse(module, dropout, {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias} | kwargs)
    mask = visible(module, query, key, attention_mask, is_causal)
    output = None
    if softcap is None and position_bias is None and is_for_method(query, key, mask):
        output = uncompiled_approximate(Layer(current(), scaling, s_aux), query, key, value, mask)
    if output is None:
        asked = Asked(attention_mask, mask, scaling, softcap, s_aux, position_bias)
        output = exact(module, query, key, value, asked)
    return output.transpose(1, 2).contiguous(), None


def visible(
    module: Any, query: Tensor, key: Tensor, attention_mask: Tensor | None, is_causal: bool | None
) -> Intervals | Tensor | None:
    """What each query sees; no mask means what it means to "sdpa", or to "eager" where there is no "sdpa"."""
    if attention_mask is None:
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if not is_causal or query.shape[2] == 1 or not _has_sdpa(module):
            return None
        shown = torch.ones((key.shape[0], key.shape[2]), dtype=torch.bool, device=key.device)
        return Intervals.causal(shown, query.shape[2])
    if Intervals.is_packed(attention_mask):
        found = Intervals.unpack(attention_mask, query.shape[2])
        return found.shown[:, None, None, :] if found.is_all() else found
    return attention_mask


def is_for_method(query: Tensor, key: Tensor, mask: Intervals | Tensor | None) -> bool:
    """Whether there are queries and keys enough, and no mask of all pairs."""
    if min(query.shape[2], key.shape[2]) < max(2, current().exact_below) or query.shape[0] != key.shape[0]:
        return False
    if not isinstance(mask, Tensor):
        return True
    return bool(mask.ndim == 4 and mask.dtype == torch.bool and mask.shape[2] == 1)


def refuse(module: Any, dropout: float, arguments: dict[str, Any]) -> None:
    """Raise for what would not be computed as it is asked for."""
    layer = type(module).__name__
    given = {name for name, value in arguments.items() if value is not None and value is not False}
    if dropout:
        raise ValueError(
            f"dropout must be 0 with attn_implementation='scatterbrain', got {dropout} in {layer}; set "
            "attention_dropout=0 in the model's configuration, or call model.eval()"
        )
    if "output_attentions" in given:
        raise ValueError(
            "output_attentions must be False with attn_implementation='scatterbrain', which forms no "
            "weights; use 'eager'"
        )
    if "cache" in given:
        raise ValueError("cache must be None: attn_implementation='scatterbrain' has no continuous batching")
    if "position_bias" in given and given & {"softcap", "s_aux"}:
        raise ValueError(f"position_bias goes with neither softcap nor s_aux, got both in {layer}")
    unknown = sorted(given - KNOWN)
    if unknown and not _has_sdpa(module):
        raise ValueError(
            f"{layer} has attention that torch's own cannot compute and gives it {', '.join(unknown)}, which "
            "attn_implementation='scatterbrain' does not know; use 'eager'"
        )


def _has_sdpa(module: Any) -> bool:
    return facts_of(getattr(module, "config", None)).has_sdpa
