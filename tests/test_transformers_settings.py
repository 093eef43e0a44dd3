"""The drop-in for transformers: its settings, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import scatterbrain_core as sb

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import PARTS, forward, model_of, output_of, problem, tokens  # noqa: E402

import scatterbrain_backends.transformers as drop_in  # noqa: E402
from scatterbrain_backends.transformers import settings  # noqa: E402

pytestmark = pytest.mark.usefixtures("exact_drop_in")


# Settings.


def test_settings_hold_until_they_are_changed_back():
    before = drop_in.current()
    with drop_in.configure(method=PARTS, budget=1, exact_below=7) as inside:
        assert inside == drop_in.current() == drop_in.Settings(PARTS, 1.0, 7, 0)
        with drop_in.configure(seed=4):
            assert drop_in.current() == drop_in.Settings(PARTS, 1.0, 7, 4)
        assert drop_in.current() == inside
    assert drop_in.current() == before
    change = drop_in.configure(seed=9)
    assert drop_in.current().seed == 9
    with change:
        pass
    assert drop_in.current() == before


def test_settings_are_changed_back_after_an_error():
    before = drop_in.current()
    with pytest.raises(RuntimeError), drop_in.configure(seed=4):
        raise RuntimeError
    assert drop_in.current() == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "exakt"}, ValueError, "'exakt' is unknown; the nearest: 'exact'"),
        ({"method": 3}, TypeError, "method must be a name or a Scatterbrain, got int"),
        ({"budget": 0}, ValueError, r"budget must be in \(0, 1\], got 0.0"),
        ({"budget": "1/8"}, TypeError, "budget must be a real number"),
        ({"exact_below": -1}, ValueError, "exact_below must not be negative, got -1"),
        ({"exact_below": 1.5}, TypeError, "exact_below must be an int, got float"),
        ({"seed": np.random.default_rng(0)}, TypeError, "seed must be an int, got numpy.*Generator"),
        ({"seed": True}, TypeError, "seed must be an int, got bool"),
    ],
)
def test_wrong_settings_change_nothing(changes, error, message):
    before = drop_in.current()
    with pytest.raises(error, match=message):
        drop_in.configure(**changes)
    assert drop_in.current() == before


def test_the_environment_says_what_the_settings_are_at_first():
    assert settings.from_environment({}) == drop_in.Settings("auto", 0.125, 512, 0)
    environment = {
        "SCATTERBRAIN_METHOD": "performer",
        "SCATTERBRAIN_BUDGET": "1/4",
        "SCATTERBRAIN_EXACT_BELOW": "100",
        "SCATTERBRAIN_SEED": "7",
    }
    assert settings.from_environment(environment) == drop_in.Settings("performer", 0.25, 100, 7)
    code = "import scatterbrain_backends.transformers as drop_in; print(drop_in.current())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(drop_in.Settings("performer", 0.25, 100, 7))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("METHOD", "exakt", "SCATTERBRAIN_METHOD is 'exakt': method 'exakt' is unknown"),
        ("BUDGET", "much", "SCATTERBRAIN_BUDGET is 'much': "),
        ("BUDGET", "1/0", "SCATTERBRAIN_BUDGET is '1/0': "),
        ("BUDGET", "2", r"SCATTERBRAIN_BUDGET is '2': budget must be in \(0, 1\], got 2.0"),
        ("EXACT_BELOW", "", "SCATTERBRAIN_EXACT_BELOW is '': "),
        ("SEED", "-1", "SCATTERBRAIN_SEED is '-1': seed must not be negative"),
    ],
)
def test_a_wrong_variable_is_named(name, text, message):
    with pytest.raises(ValueError, match=message):
        settings.from_environment({f"SCATTERBRAIN_{name}": text})


# What cannot be done as it is asked for.


def test_dropout_is_refused():
    model = model_of("Llama").train()
    model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(
        ValueError, match=r"dropout must be 0 .*, got 0.1 in LlamaAttention; set attention_dropout"
    ):
        output_of(model)


def test_weights_are_refused():
    with pytest.raises(ValueError, match=r"output_attentions must be False .* forms no weights"):
        output_of(model_of("Llama"), output_attentions=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cache": object()}, "cache must be None: .* no continuous batching"),
        (
            {"position_bias": torch.zeros(1), "softcap": 2.0},
            "position_bias goes with neither softcap nor s_aux",
        ),
        ({"position_bias": torch.zeros(1), "s_aux": torch.zeros(4)}, "position_bias goes with neither"),
    ],
)
def test_arguments_that_would_not_be_obeyed_are_refused(rng, asked, message):
    with pytest.raises(ValueError, match=message):
        forward(problem(rng, 9, 9), None, **asked)


def test_arguments_that_are_not_known_are_refused_where_torchs_own_attention_is_not_enough():
    with pytest.raises(
        ValueError, match="gives it biases, which attn_implementation='scatterbrain' does not"
    ):
        output_of(model_of("GPT-OSS"), biases=torch.zeros(4))


@torch.no_grad()
def test_what_torchs_own_attention_ignores_is_ignored_where_it_is_the_models_own():
    model = model_of("Llama")
    torch.testing.assert_close(output_of(model, image_sizes=torch.zeros(3)), output_of(model), rtol=0, atol=0)


def test_what_a_method_refuses_is_refused():
    model = model_of("Llama")
    with (
        drop_in.configure(method=sb.Scatterbrain(sb.PositiveFeatures(8, centred=True))),
        pytest.raises(ValueError, match=r"low_rank must not take statistics .* is_causal=True"),
    ):
        output_of(model)


def test_weights_of_both_signs_have_no_normaliser_for_sinks(rng):
    arrays = problem(rng, 60, 60)
    with (
        drop_in.configure(method=sb.Scatterbrain(sb.TrigonometricFeatures(2))),
        pytest.raises(ValueError, match=r"method must have positive weights .* got Scatterbrain"),
    ):
        forward(arrays, None, scaling=3.0, s_aux=torch.zeros(4))


def test_a_model_with_attention_of_its_own_is_refused():
    config = transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4)
    model = transformers.AutoModel.from_config(config, attn_implementation="scatterbrain")
    with pytest.raises(
        ValueError, match=r"for BloomConfig: its BloomAttention does not use .*AttentionInterface"
    ):
        model(tokens())
