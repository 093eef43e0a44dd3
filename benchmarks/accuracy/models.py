"""The real models: inputs of their attention, and what becomes of them with their attention replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.accuracy.places import Place

Array: TypeAlias = Any
Attention = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Model:
    """A model over one text.

    Attributes
    ----------
    name, told : str
        A word, and a line on model and text.
    tokens, layers : int
    run : callable
        From an attention, which every layer then uses, to the model's quality.
    exact : callable
        The attention it was trained with.
    quality : str
        What `run` returns: "perplexity" or "cosine".
    options : dict
        Further arguments of `scatterbrain_core.attention`.
    """

    name: str
    told: str
    tokens: int
    layers: int
    run: Callable[[Attention], float]
    exact: Attention
    quality: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """Inputs and output of exact attention in one layer of an exact run.

    Attributes
    ----------
    number : int
    query, key, value, output : array, shape (heads, L, d)
        Where the methods run. Keys and values may have fewer heads.
    """

    number: int
    query: Array
    key: Array
    value: Array
    output: Array


def minilm(tokens: int, text: str | None, where: Place) -> Model:
    """MiniLM-L6 over at most its 512 tokens; its quality is the cosine to the exact embedding."""
    from minilm_numpy import DARWIN, cut, load, sample_text, softmax_attention

    model = load()  # SciPy's, so that only the methods run elsewhere
    ids = cut(model.token_ids(sample_text() if text is None else text))[:tokens]
    embedding = model.encoder(ids)

    def run(attention: Attention) -> float:
        def elsewhere(*arrays: Array) -> Array:
            return where.to_numpy(attention(*where.arrays(*arrays)))

        return float(model.encoder(ids, elsewhere) @ embedding)

    told = f"all-MiniLM-L6-v2 over {_source(text, DARWIN)}"

    def exact(*arrays: Array) -> Array:
        return where.make(softmax_attention(*map(where.to_numpy, arrays)))

    return Model("minilm", told, len(ids), model.encoder.layers, run, exact, "cosine")


def smollm2(tokens: int, text: str | None, where: Place) -> Model:
    """SmolLM2-135M; its quality is the perplexity of the text, every token from the second on."""
    from smollm2_numpy import DARWIN, causal_attention, load, sample_text

    model = load(where.make)
    ids = model.token_ids(sample_text() if text is None else text)
    if len(ids) < tokens:
        raise ValueError(f"text must have {tokens} tokens for smollm2, got {len(ids)}")

    def run(attention: Attention) -> float:
        return model.decoder.perplexity(ids[:tokens], attention)

    told = f"SmolLM2-135M (4-bit weights) over {_source(text, DARWIN)}"
    options = {"is_causal": True, "enable_gqa": True}
    layers = model.decoder.configuration.layers
    return Model("smollm2", told, tokens, layers, run, causal_attention, "perplexity", options)


MODELS: dict[str, Callable[[int, str | None, Place], Model]] = {"minilm": minilm, "smollm2": smollm2}


def exact_run(model: Model, kept: Sequence[int]) -> tuple[float, list[Layer]]:
    """Return the quality of the exact model, and the layers whose numbers are `kept`."""
    seen: list[Layer] = []
    numbers = iter(range(model.layers))

    def recording(query: Array, key: Array, value: Array) -> Array:
        output = model.exact(query, key, value)
        if (number := next(numbers)) in kept:
            seen.append(Layer(number, query, key, value, output))
        return output

    return model.run(recording), seen


def _source(text: str | None, bundled: str) -> str:
    return bundled if text is None else "a text of the caller's"
