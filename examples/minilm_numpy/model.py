"""The forward pass of a BERT sentence encoder, one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import erf

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Attention: TypeAlias = Callable[[Array, Array, Array], Array]

POSITIONS = 512
HEADS = 12
EMBEDDINGS = ("word", "position", "token_type")
EPSILON = 1e-12


def softmax_attention(query: Array, key: Array, value: Array) -> Array:
    """Exact attention of (heads, L, d) arrays, scaled by 1/√d."""
    logits = query @ np.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights @ value / weights.sum(axis=-1, keepdims=True))


class Encoder:
    """MiniLM-L6: 6 post-norm layers of 12 heads, then the mean over tokens.

    A text is never padded, so the model's masked mean is a plain mean here and attention needs no mask.

    Parameters
    ----------
    weights : mapping of str to array
        The checkpoint's tensors under their own names, in float32.
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.layer.")})

    def __call__(self, ids: Sequence[int], attention: Attention = softmax_attention) -> Array:
        """Embed a text given as token ids.

        Parameters
        ----------
        ids : sequence of int
            At most 512 ids of the model's vocabulary, [CLS] and [SEP] included.
        attention : callable
            Maps query, key and value of shape (heads, L, d) to the output of that shape, in every layer.

        Returns
        -------
        array of shape (384,)
            The sentence embedding, of unit length.
        """
        mean = self.token_vectors(ids, attention).mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def token_vectors(self, ids: Sequence[int], attention: Attention = softmax_attention) -> Array:
        """Return the last layer's vectors, one a token: an array of shape (L, 384)."""
        if not 0 < len(ids) <= POSITIONS:
            raise ValueError(f"ids: {len(ids)} tokens came, 1 to {POSITIONS} were expected")
        table = {part: self.weights[f"embeddings.{part}_embeddings.weight"] for part in EMBEDDINGS}
        x = table["word"][np.asarray(ids)] + table["position"][: len(ids)] + table["token_type"][0]
        x = self._norm("embeddings.LayerNorm", x)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            mixed = self._linear(f"{name}.attention.output.dense", self._attend(name, x, attention))
            x = self._norm(f"{name}.attention.output.LayerNorm", x + mixed)
            wide = _gelu(self._linear(f"{name}.intermediate.dense", x))
            x = self._norm(f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", wide))
        return x

    def attention_inputs(self, ids: Sequence[int]) -> list[tuple[Array, Array, Array]]:
        """Return query, key and value of each layer, of shape (heads, L, d), in an exact run."""
        seen: list[tuple[Array, Array, Array]] = []

        def recording(query: Array, key: Array, value: Array) -> Array:
            seen.append((query, key, value))
            return softmax_attention(query, key, value)

        self.token_vectors(ids, recording)
        return seen

    def _attend(self, name: str, x: Array, attention: Attention) -> Array:
        projections = (self._linear(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        heads = (p.reshape(len(x), HEADS, -1).swapaxes(0, 1) for p in projections)
        return attention(*heads).swapaxes(0, 1).reshape(x.shape)

    def _linear(self, name: str, x: Array) -> Array:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
        return np.asarray(centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + erf(x / 2**0.5)))
