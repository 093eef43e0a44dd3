"""The forward pass of a Llama-style decoder, one text at a time, on the arrays that its weights are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device

Array: TypeAlias = Any
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
    xp = array_namespace(query, key, value)
    length, dim = query.shape[-2:]
    group = query.shape[0] // key.shape[0]
    heads = []
    for head, q in enumerate(query[i, ...] for i in range(query.shape[0])):
        chunks = []
        for start, stop in _chunks(length):
            logits = q[start:stop, :] @ key[head // group, :stop, :].T / dim**0.5
            logits = logits + xp.triu(xp.full_like(logits, -math.inf), k=start + 1)
            weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
            total = xp.sum(weights, axis=-1, keepdims=True)
            chunks.append(weights @ value[head // group, :stop, :] / total)
        heads.append(xp.concat(chunks))
    return xp.stack(heads)


class Decoder:
    """SmolLM2: pre-norm layers of rotary grouped-query attention and SwiGLU, embeddings tied to the output.

    Parameters
    ----------
    weights : mapping of str to array
        The tensors under the names that GGUF files give them, each matrix of shape (outputs, inputs).
        Rows of queries and keys are in the files' order, in which a rotation takes neighbours 2i, 2i + 1.
        Of NumPy, Torch, CuPy or any array-API library: everything runs where they are.
    configuration : Configuration
        Numbers of layers and heads, and constants.
    """

    def __init__(self, weights: Mapping[str, Array], configuration: Configuration) -> None:
        self.weights = weights
        self._xp = array_namespace(weights["token_embd.weight"])
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
        embedding = self.weights["token_embd.weight"]
        x = self._xp.take(embedding, self._integers(ids), axis=0)
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
        x = self.hidden(ids, attention)[:-1, :]
        targets = self._integers(ids[1:])
        losses = [
            self._losses(x[start:stop, :], targets[start:stop]) for start, stop in _chunks(len(ids) - 1)
        ]
        return self._xp.concat(losses)

    def perplexity(self, ids: Sequence[int], attention: Attention = causal_attention) -> float:
        """Return exp of the mean of `nll`, over the tokens from the second on."""
        xp = self._xp
        return math.exp(float(xp.mean(xp.astype(self.nll(ids, attention), xp.float64))))

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
        together = self._xp.reshape(self._xp.permute_dims(mixed, (1, 0, 2)), (x.shape[0], -1))
        return self._linear(f"{name}.attn_output", together)

    def _heads(self, name: str, x: Array, heads: int) -> Array:
        xp = self._xp
        return xp.permute_dims(xp.reshape(self._linear(name, x), (x.shape[0], heads, -1)), (1, 0, 2))

    def _feed_forward(self, name: str, x: Array) -> Array:
        gate = self._linear(f"{name}.ffn_gate", x)
        # silu(x) = x / (1 + exp(−x)), written so that nothing overflows.
        silu = 0.5 * gate * (1 + self._xp.tanh(0.5 * gate))
        return self._linear(f"{name}.ffn_down", silu * self._linear(f"{name}.ffn_up", x))

    def _losses(self, x: Array, targets: Array) -> Array:
        xp = self._xp
        logits = self._linear("token_embd", x)
        logits = logits - xp.max(logits, axis=-1, keepdims=True)
        chosen = xp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return xp.log(xp.sum(xp.exp(logits), axis=-1)) - chosen

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T

    def _norm(self, name: str, x: Array) -> Array:
        mean_square = self._xp.mean(x * x, axis=-1, keepdims=True)
        root = self._xp.sqrt(mean_square + self.configuration.epsilon)
        return x / root * self.weights[f"{name}.weight"]

    def _integers(self, ids: Sequence[int]) -> Array:
        return self._xp.asarray(np.asarray(ids), device=device(self.weights["token_embd.weight"]))


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of runs of at most CHUNK rows."""
    return ((start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def rotate(x: Array, base: float) -> Array:
    """Rotate neighbours 2i, 2i + 1 of (heads, L, d) by their position times base^(−2i/d) (RoPE)."""
    xp = array_namespace(x)
    length, dim = x.shape[-2:]
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    cosine, sine = (
        xp.astype(xp.asarray(wave(angles), device=device(x)), x.dtype) for wave in (np.cos, np.sin)
    )
    even, odd = x[..., ::2], x[..., 1::2]
    turned = xp.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return xp.reshape(turned, x.shape)
