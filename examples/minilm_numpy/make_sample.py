"""Write the sample of the model's real Q, K and V that the command line carries.

``python -m minilm_numpy.make_sample [FILE]`` writes ``scatterbrain_core/cli/data/minilm_qkv.npz``, or FILE.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from minilm_numpy.model import Array
from minilm_numpy.pretrained import cut, load
from minilm_numpy.text import DARWIN, sample_text

LAYERS = (0, 2, 5)
SOURCE = f"all-MiniLM-L6-v2 on: {DARWIN}; float16"


def spread_heads(query: Array, key: Array) -> list[int]:
    """Return the most peaked head, the median one and the most diffuse, by the mean entropy of its rows."""
    logits = query @ np.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    entropy = -np.sum(weights * np.log(weights + 1e-30), axis=-1).mean(axis=-1)
    order = np.argsort(entropy)
    return [int(order[position]) for position in (0, len(order) // 2, -1)]


def main(argv: list[str]) -> None:
    """Write the sample: arrays of shape (layers, heads, L, d) with the numbers of those layers and heads."""
    model = load()
    layers = model.encoder.attention_inputs(cut(model.token_ids(sample_text())))
    heads = [spread_heads(*layers[layer][:2]) for layer in LAYERS]
    picked = list(zip(LAYERS, heads, strict=True))
    query, key, value = (
        np.stack([layers[layer][part][chosen] for layer, chosen in picked]).astype(np.float16)
        for part in range(3)
    )
    target = Path(argv[0]) if argv else default_target()
    np.savez_compressed(target, query=query, key=key, value=value, layers=LAYERS, heads=heads, source=SOURCE)
    sys.stdout.write(f"{target}: {target.stat().st_size} bytes, layers {LAYERS}, heads {heads}\n")


def default_target() -> Path:
    """Return where the command line looks for the sample."""
    spec = find_spec("scatterbrain_core.cli")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scatterbrain_core is not installed: name the file to write")
    return Path(spec.origin).parent / "data" / "minilm_qkv.npz"


if __name__ == "__main__":
    main(sys.argv[1:])
