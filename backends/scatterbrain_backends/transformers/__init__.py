"""Scatterbrain as the attention of any model of transformers (version 5 or later) with `AttentionInterface`.

Importing this module registers it under the name "scatterbrain"::

    import scatterbrain_backends.transformers
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("...", attn_implementation="scatterbrain")

or ``model.set_attn_implementation("scatterbrain")``; `configure` sets the method and its budget.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from scatterbrain_backends.transformers.forward import scatterbrain_attention_forward
from scatterbrain_backends.transformers.masks import scatterbrain_mask
from scatterbrain_backends.transformers.settings import Settings, configure, current

NAME = "scatterbrain"

# What a mask is, and the method, depend on the data: `torch.compile` runs them as they are.
AttentionInterface.register(NAME, scatterbrain_attention_forward)
AttentionMaskInterface.register(NAME, torch.compiler.disable(scatterbrain_mask))

__all__ = [
    "NAME",
    "Settings",
    "configure",
    "current",
    "scatterbrain_attention_forward",
    "scatterbrain_mask",
]
