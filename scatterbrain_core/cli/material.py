"""What the demonstration runs on: the real model over a text, or the bundled sample of its Q, K, V."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scatterbrain_core.cli.errors import UserError, install, reason
from scatterbrain_core.cli.files import read_text
from scatterbrain_core.cli.measure import Array

if TYPE_CHECKING:
    from minilm_numpy import MiniLM

Attention: TypeAlias = Callable[[Array, Array, Array], Array]
Embed: TypeAlias = Callable[[Attention], Array]

MODEL_NEEDS = ("safetensors", "scipy", "tokenizers")


@dataclass(frozen=True)
class Material:
    """Inputs of attention, and the model they came from.

    Attributes
    ----------
    told : str
        One line on what it is.
    layers : list of (query, key, value)
        The inputs of exact attention, each (heads, L, d), one triple a layer.
    embed : callable or None
        Runs the model over the text with another attention and returns the sentence embedding.
    """

    told: str
    layers: list[tuple[Array, Array, Array]]
    embed: Embed | None = None


def find_material(text_file: str | None) -> Material:
    """Return the model over the text where it is installed, else the bundled sample.

    Parameters
    ----------
    text_file : str or None
        A text of the user's own; only the model can read it.
    """
    text = None if text_file is None else read_text(text_file)
    try:
        from minilm_numpy import load

        model = load()
    except Exception as error:  # whatever the reason, the demonstration goes on without the model
        missing = [name for name in MODEL_NEEDS if find_spec(name) is None]
        why = f"{reason(error)}, {install(*missing)}" if missing else reason(error)
        if text is not None:
            raise UserError(f"--text {text_file} needs the MiniLM model: {why}") from error
        return from_sample(why)
    return from_model(model, text, text_file)


def from_model(model: MiniLM, text: str | None, text_file: str | None) -> Material:
    """Return the layers of an exact run of `model` over a text, by default the bundled one."""
    from minilm_numpy import DARWIN, POSITIONS, cut, sample_text

    ids = model.token_ids(sample_text() if text is None else text)
    length = (
        f"its {len(ids)} tokens" if len(ids) <= POSITIONS else f"the first {POSITIONS} of {len(ids)} tokens"
    )
    kept = cut(ids)
    return Material(
        told=f"all-MiniLM-L6-v2 over {text_file or DARWIN}: {length}",
        layers=model.encoder.attention_inputs(kept),
        embed=lambda attention: model.encoder(kept, attention),
    )


def from_sample(why: str) -> Material:
    """Return the bundled sample; `why` says why not the model."""
    packed = files("scatterbrain_core.cli").joinpath("data", "minilm_qkv.npz")
    with packed.open("rb") as file, np.load(file, allow_pickle=False) as data:
        query, key, value = (data[name].astype(np.float32) for name in ("query", "key", "value"))
        told = f"the bundled sample, {query.shape[1]} heads of {query.shape[0]} layers of {data['source']}"
    return Material(f"{told} (no model: {why})", list(zip(query, key, value, strict=True)))
