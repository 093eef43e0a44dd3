"""The forward pass of a Llama-style decoder, one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Attention: TypeAlias = Callable[[Array, Array, Array], Array]

CHUNK = 512


@dataclass(frozen=True)
class Configuration:
    """What the weights' shapes do not say.

    Attributes
    ----------
    layers, heads, key_heads : int
        Layers; heads of queries; heads of keys and values, each shared by ``heads // key_heads`` of queries.
    positions : int
        The longest text, in tokens.
    rotation_base : float
        Base θ of the frequencies θ^(−2i/d) of the rotary position embedding.
    epsilon : float
        What the root mean square is kept away from zero by.
    """

    layers: int = 30
    heads: int = 9
    key_heads: int = 3
    positions: int = 8192
    rotation_base: float = 100_000.0
    epsilon: float = 1e-5


def causal_attention(query: Array, key: Array, value: Array) -> Array:
    """Exact causal attention: (heads, L, d) queries on (key heads, L, d) keys and values, scaled by 1/√d.

    Rows are taken in chunks, so memory is linear in the length.
    """
    heads, length, dim = query.shape
    owner = np.arange(heads) // (heads // key.shape[0])
    out = np.empty((heads, length, value.shape[-1]), dtype=value.dtype)
    for head, start in product(range(heads), range(0, length, CHUNK)):
        rows = slice(start, min(start + CHUNK, length))
        logits = query[head, rows] @ key[owner[head], : rows.stop].T / dim**0.5
        logits += np.triu(np.full_like(logits, -np.inf), start + 1)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        out[head, rows] = weights @ value[owner[head], : rows.stop] / total
    return out


class Decoder:
    """SmolLM2: pre-norm layers of rotary grouped-query attention and SwiGLU, embeddings tied to the output.

    Parameters
    ----------
    weights : mapping of str to array
        The tensors under the names that GGUF files give them, each matrix of shape (outputs, inputs).
        Rows of queries and keys are in the files' order, in which a rotation takes neighbours 2i, 2i + 1.
    configuration : Configuration
        Numbers of layers and heads, and constants.
    """

    def __init__(self, weights: Mapping[str, Array], configuration: Configuration) -> None:
        self.weights = weights
        self.configuration = configuration

    def hidden(self, ids: Sequence[int], attention: Attention = causal_attention) -> Array:
        """Return the vectors after the last norm, one a token.

        Parameters
        ----------
        ids : sequence of int
            Ids of the model's vocabulary, at most `Configuration.positions`.
        attention : callable
            Maps query (heads, L, d), key and value (key heads, L, d) to the output (heads, L, d), in every
            layer; it must be causal, which nothing here sees to.

        Returns
        -------
        array of shape (L, width)
        """
        positions = self.configuration.positions
        if not 0 < len(ids) <= positions:
            raise ValueError(f"ids: {len(ids)} tokens came, 1 to {positions} were expected")
        x = self.weights["token_embd.weight"][np.asarray(ids)]
        for layer in range(self.configuration.layers):
            name = f"blk.{layer}"
            x = x + self._attend(name, self._norm(f"{name}.attn_norm", x), attention)
            x = x + self._feed_forward(name, self._norm(f"{name}.ffn_norm", x))
        return self._norm("output_norm", x)

    def nll(self, ids: Sequence[int], attention: Attention = causal_attention) -> Array:
        """Return −log p(token | those before it) in nats, of shape (L − 1,): the first token has none.

        Logits are made a chunk of rows at a time: with 49,152 words those of a long text fill gigabytes.
        """
        if len(ids) < 2:
            raise ValueError(
                f"ids: {len(ids)} tokens came, 2 or more were expected, as the first has no loss"
            )
        x = self.hidden(ids, attention)[:-1]
        targets = np.asarray(ids[1:])
        losses = [
            self._losses(x[start : start + CHUNK], targets[start : start + CHUNK])
            for start in range(0, len(targets), CHUNK)
        ]
        return np.concatenate(losses)

    def perplexity(self, ids: Sequence[int], attention: Attention = causal_attention) -> float:
        """Return exp of the mean of `nll`, over the tokens from the second on."""
        return float(np.exp(self.nll(ids, attention).mean(dtype=np.float64)))

    def attention_inputs(self, ids: Sequence[int]) -> list[tuple[Array, Array, Array]]:
        """Return query (heads, L, d), key and value (key heads, L, d) of each layer, in an exact run.

        Queries and keys are as attention sees them, that is, rotated.
        """
        seen: list[tuple[Array, Array, Array]] = []

        def recording(query: Array, key: Array, value: Array) -> Array:
            seen.append((query, key, value))
            return causal_attention(query, key, value)

        self.hidden(ids, recording)
        return seen

    def _attend(self, name: str, x: Array, attention: Attention) -> Array:
        configuration = self.configuration
        query = self._heads(f"{name}.attn_q", x, configuration.heads)
        key = self._heads(f"{name}.attn_k", x, configuration.key_heads)
        value = self._heads(f"{name}.attn_v", x, configuration.key_heads)
        base = configuration.rotation_base
        mixed = attention(rotate(query, base), rotate(key, base), value)
        return self._linear(f"{name}.attn_output", mixed.swapaxes(0, 1).reshape(len(x), -1))

    def _heads(self, name: str, x: Array, heads: int) -> Array:
        return self._linear(name, x).reshape(len(x), heads, -1).swapaxes(0, 1)

    def _feed_forward(self, name: str, x: Array) -> Array:
        gate = self._linear(f"{name}.ffn_gate", x)
        return self._linear(f"{name}.ffn_down", _silu(gate) * self._linear(f"{name}.ffn_up", x))

    def _losses(self, x: Array, targets: npt.NDArray[np.integer[Any]]) -> Array:
        logits = self._linear("token_embd", x)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = logits[np.arange(len(targets)), targets]
        return np.asarray(np.log(np.exp(logits).sum(axis=-1)) - chosen)

    def _linear(self, name: str, x: Array) -> Array:
        return np.asarray(x @ self.weights[f"{name}.weight"].T)

    def _norm(self, name: str, x: Array) -> Array:
        mean_square = np.square(x).mean(axis=-1, keepdims=True)
        return np.asarray(
            x / np.sqrt(mean_square + self.configuration.epsilon) * self.weights[f"{name}.weight"]
        )


def rotate(x: Array, base: float) -> Array:
    """Rotate neighbours 2i, 2i + 1 of (heads, L, d) by their position times base^(−2i/d) (RoPE)."""
    length, dim = x.shape[-2:]
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    cosine, sine = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return np.asarray(turned.reshape(x.shape))


def _silu(x: Array) -> Array:
    """Return x / (1 + exp(−x)), written so that nothing overflows."""
    return np.asarray(0.5 * x * (1 + np.tanh(0.5 * x)))
