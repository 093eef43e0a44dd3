"""What the tests of the drop-in for transformers share: a definition, and tiny models of random weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logsumexp

import scatterbrain_core as sb

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import scatterbrain_backends.transformers as drop_in  # noqa: E402

PARTS = sb.Scatterbrain(sb.PositiveFeatures(6), sb.RandomHyperplanes(2, 2))


def definition(query, key, value, seen, scaling, softcap=None, sinks=None):
    """Attention of query (B, H, Lq, D) and key (B, Hkv, Lk, D) over the pairs seen (B, 1, Lq, Lk)."""
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, group, axis=1) for x in (key, value))
    logits = scaling * query @ np.swapaxes(key, -1, -2)
    logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
    logits = np.where(seen, logits, -np.inf)
    lse = logsumexp(logits, axis=-1, keepdims=True)
    if sinks is not None:
        lse = np.logaddexp(lse, sinks[None, :, None, None])
    weights = np.exp(logits - np.where(np.isneginf(lse), 0.0, lse))
    return np.swapaxes(weights @ value, 1, 2)


def forward(arrays, mask, arguments=None, **asked):
    """The drop-in's output for NumPy arrays; what no mask means is said by the module."""
    is_causal = not (arguments or {}).get("allow_is_bidirectional_skip", False)
    groups = arrays[0].shape[1] // arrays[1].shape[1]
    module = SimpleNamespace(is_causal=is_causal, num_key_value_groups=groups)
    tensors = [torch.asarray(x) for x in arrays]
    output, weights = drop_in.scatterbrain_attention_forward(module, *tensors, mask, **asked)
    assert weights is None
    return output.numpy()


def problem(rng, n_queries, n_keys, batch=2, groups=2):
    query = rng.standard_normal((batch, 2 * groups, n_queries, 8))
    return query, *(rng.standard_normal((batch, 2, n_keys, 8)) for _ in range(2))


TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # peaked attention: whoever sees the wrong key is found out
}
GROUPED = TINY | {"num_key_value_heads": 2}
TOKENS = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], 0)
MODELS = {
    "Llama": lambda: transformers.LlamaConfig(**GROUPED),
    "Llama, not causal": lambda: transformers.LlamaConfig(**GROUPED, is_causal=False),
    "Mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=10),
    "Gemma 2": lambda: transformers.Gemma2Config(
        **GROUPED, head_dim=8, sliding_window=10, attn_logit_softcapping=1.5
    ),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=10),
    "GPT-OSS": lambda: transformers.GptOssConfig(
        **GROUPED,
        head_dim=8,
        sliding_window=10,
        num_local_experts=4,
        rope_parameters={"rope_type": "default"},
    ),
    "Llama 4": lambda: transformers.Llama4TextConfig(
        **GROUPED, head_dim=8, attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=32
    ),
    "BERT": lambda: transformers.BertConfig(**TINY),
    "ModernBERT": lambda: transformers.ModernBertConfig(**TINY, local_attention=10, **TOKENS),
    "Splinter": lambda: transformers.SplinterConfig(**TINY),
    "NLLB-MoE": lambda: transformers.NllbMoeConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_experts=2,
        init_std=0.4,
    ),
    "T5": lambda: transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, initializer_factor=5.0
    ),
}
N = 40
PADDING = {
    "none": None,
    "left": torch.asarray((np.arange(N) >= [[0], [13]]).astype(np.int64)),
    "right": torch.asarray((np.arange(N) < [[N], [27]]).astype(np.int64)),
}


# What Torch's own attention does not compute these models compute by "eager".
OWN = dict.fromkeys(["Gemma 2", "GPT-OSS", "NLLB-MoE", "Splinter"], "eager")


def model_of(name, attention=drop_in.NAME, kind=transformers.AutoModel):
    torch.manual_seed(0)
    return kind.from_config(MODELS[name](), attn_implementation=attention).eval()


def tokens(n=N, batch=2):
    return torch.randint(0, 50, (batch, n), generator=torch.Generator().manual_seed(1))


def output_of(model, attention_mask=None, **others):
    if model.config.is_encoder_decoder:
        others |= {"decoder_input_ids": tokens().flip(1), "decoder_attention_mask": attention_mask}
    return model(input_ids=tokens(), attention_mask=attention_mask, **others)[0]


def assert_close(got, expected):
    """Equal to float32 rounding: some hundred of its units of the largest entry."""
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
