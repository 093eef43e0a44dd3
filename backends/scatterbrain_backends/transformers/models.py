"""What transformers' own code says of a model, found by the class of its configuration."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Facts:
    """How a model computes attention.

    Attributes
    ----------
    own_attention : str or None
        Name of an attention class, where no `AttentionInterface` is used.
    has_sdpa : bool
        Whether it has transformers' "sdpa": its layers then say what no mask means, what they pass on that
        "sdpa" does not know changes nothing, and whoever else looks at a mask takes booleans.
    combines_masks : bool
        Whether it puts masks of all pairs together with others of its own.
    """

    own_attention: str | None = None
    has_sdpa: bool = True
    combines_masks: bool = False


def facts_of(config: Any) -> Facts:
    """The facts of a configuration's models; those of most models where its code is not found."""
    kind = type(config)
    if kind not in _facts:
        _facts[kind] = _read(kind)
    return _facts[kind]


# A dict, which `torch.compile` looks into without a break.
_facts: dict[type, Facts] = {}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read(configuration: type) -> Facts:
    name = configuration.__module__.replace("configuration_", "modeling_")
    modeling = sys.modules.get(name)
    if modeling is None or name == configuration.__module__:
        return Facts()
    classes = [kind for kind in vars(modeling).values() if isinstance(kind, type) and kind.__module__ == name]
    models: list[Any] = [kind for kind in classes if issubclass(kind, PreTrainedModel)]
    models = [model for model in models if model.config_class is configuration] or models
    attention = [
        kind.__name__
        for kind in classes
        if "Attention" in kind.__name__ and issubclass(kind, torch.nn.Module)
    ]
    source = _source(modeling)
    return Facts(
        attention[0] if attention and "ALL_ATTENTION_FUNCTIONS" not in source else None,
        all(model._supports_sdpa for model in models),
        "allow_is_causal_skip" in source or "indexed_attention" in source,
    )


def _source(modeling: ModuleType) -> str:
    try:
        return inspect.getsource(modeling)
    except (OSError, TypeError):
        return "ALL_ATTENTION_FUNCTIONS"
