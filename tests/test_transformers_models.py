"""Whole models with the drop-in for transformers, tiny and of random weights, against their own attention."""

from __future__ import annotations

import pytest

import scatterbrain_core as sb

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import (  # noqa: E402
    MODELS,
    OWN,
    PADDING,
    PARTS,
    N,
    assert_close,
    model_of,
    output_of,
    tokens,
)

import scatterbrain_backends.transformers as drop_in  # noqa: E402
from scatterbrain_backends.transformers import settings  # noqa: E402

pytestmark = pytest.mark.usefixtures("exact_drop_in")


@pytest.fixture
def calls():
    """What the layers of all models hand to the drop-in, and what they get back."""
    seen = []

    def recorded(module, *arrays, **asked):
        output = drop_in.scatterbrain_attention_forward(module, *arrays, **asked)
        seen.append((module, arrays, asked, output[0]))
        return output

    transformers.AttentionInterface.register(drop_in.NAME, recorded)
    yield seen
    transformers.AttentionInterface.register(drop_in.NAME, drop_in.scatterbrain_attention_forward)


@torch.no_grad()
@pytest.mark.parametrize("least", [0, 1000], ids=["long", "short"])
@pytest.mark.parametrize("name", MODELS)
def test_exact_is_the_models_own_attention(name, least, calls):
    model = model_of(name)
    own = model_of(name, OWN.get(name, "sdpa"))
    own.load_state_dict(model.state_dict())
    unpadded = output_of(own)
    with drop_in.configure(exact_below=least):
        for padding in PADDING.values():
            got, expected = (output_of(m, padding) for m in (model, own))
            real = slice(None) if padding is None else padding.bool()
            assert_close(got[real], expected[real])
            if padding is not None:
                assert (expected - unpadded).abs().max() > 0.1
    assert len(calls) % 6 == 0 < len(calls)


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(calls):
    model, own = model_of("Llama"), model_of("Llama", "sdpa")
    packed = {
        "position_ids": torch.cat([torch.arange(15), torch.arange(25)]).expand(2, -1),
        "use_cache": False,
    }
    assert_close(output_of(model, **packed), output_of(own, **packed))
    assert (output_of(own, **packed) - output_of(own)).abs().max() > 0.1
    assert {tuple(arrays[3].shape) for _, arrays, _, _ in calls} == {(2, 1, 3, N)}


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT-OSS"])
def test_generation_is_the_models_own(name, cache, calls):
    generated = []
    for attention in (drop_in.NAME, OWN.get(name, "sdpa")):
        model = model_of(name, attention, transformers.AutoModelForCausalLM)
        generated.append(
            model.generate(
                tokens(),
                attention_mask=PADDING["left"],
                max_new_tokens=10,
                do_sample=False,
                pad_token_id=0,
                cache_implementation=cache,
            )
        )
    assert generated[0].shape == (2, N + 10)
    torch.testing.assert_close(*generated, rtol=0, atol=0)
    assert {arrays[0].shape[2] for _, arrays, _, _ in calls} == {N, 1}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # transformers 5.24
@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT-OSS"])
def test_a_prompt_in_chunks_is_the_models_own(name):
    outputs = []
    for attention in (drop_in.NAME, OWN.get(name, "sdpa")):
        model, past, parts = model_of(name, attention), None, []
        for start, stop in [(0, 17), (17, 33), (33, 34), (34, N)]:
            mask = PADDING["left"][:, :stop]
            found = model(tokens()[:, start:stop], attention_mask=mask, past_key_values=past, use_cache=True)
            past = found.past_key_values
            parts.append(found[0])
        outputs.append(torch.cat(parts, dim=1)[PADDING["left"].bool()])
    assert_close(*outputs)


def gradients(model, checkpointing=False):
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = model(tokens(), attention_mask=PADDING["left"], labels=tokens(), use_cache=False)
    found.loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT-OSS"])
def test_exact_has_the_gradient_of_the_models_own(name):
    kind = transformers.AutoModelForCausalLM
    expected = gradients(model_of(name, OWN.get(name, "sdpa"), kind))
    for parameter, gradient in gradients(model_of(name, kind=kind)).items():
        assert_close(gradient, expected[parameter])
    assert all(gradient.any() for gradient in expected.values())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_draws_the_same_again():
    with drop_in.configure(method=PARTS):
        once, again = (
            gradients(model_of("Llama", kind=transformers.AutoModelForCausalLM), checkpointing)
            for checkpointing in (False, True)
        )
    for parameter, gradient in once.items():
        torch.testing.assert_close(again[parameter], gradient, rtol=0, atol=0)
        assert torch.isfinite(gradient).all()
        assert gradient.any()


@torch.no_grad()
@pytest.mark.parametrize("padding", PADDING)
def test_layers_of_a_model_get_the_method(padding, calls):
    model = model_of("Llama")
    exact = output_of(model, PADDING[padding])
    calls.clear()
    with drop_in.configure(method="scatterbrain", budget=0.5, seed=3):
        found = output_of(model, PADDING[padding])
    assert len(calls) == 2
    shown = None if padding == "none" else PADDING[padding].bool()[:, None, None, :]
    for module, (query, key, value, _), _, got in calls:
        by_hand = sb.attention(
            query,
            key,
            value,
            method="scatterbrain",
            budget=0.5,
            attn_mask=shown,
            is_causal=True,
            scale=module.scaling,
            enable_gqa=True,
            seed=3,
        )
        torch.testing.assert_close(got, by_hand.transpose(1, 2), rtol=0, atol=0)
    assert (found - exact).abs().max() > 0.1


@torch.no_grad()
def test_short_inputs_are_the_models_own_by_default():
    model = model_of("Llama")
    with drop_in.configure(method="performer", exact_below=settings.Settings().exact_below):
        got = output_of(model, PADDING["left"])
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(got, output_of(model, PADDING["left"]), rtol=0, atol=0)


@torch.no_grad()
def test_half_precision_comes_and_goes(calls):
    model = model_of("Llama").to(torch.bfloat16)
    with drop_in.configure(method=PARTS):
        assert torch.isfinite(output_of(model, PADDING["right"])).all()
    assert {x.dtype for *_, output in calls for x in [output]} == {torch.bfloat16}


@torch.no_grad()
def test_a_compiled_model_is_the_model():
    model = model_of("Llama")
    with drop_in.configure(method=PARTS):
        expected = output_of(model, PADDING["left"])
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(output_of(compiled, PADDING["left"]), expected)


@torch.no_grad()
def test_every_way_to_ask_for_it(tmp_path, calls):
    model = model_of("Llama", "sdpa", transformers.AutoModelForCausalLM)
    model.save_pretrained(tmp_path)
    output_of(model)
    assert not calls
    model.set_attn_implementation("scatterbrain")
    expected = output_of(model)
    assert len(calls) == 2
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="scatterbrain")
    torch.testing.assert_close(output_of(loaded), expected, rtol=0, atol=0)
    assert len(calls) == 4
