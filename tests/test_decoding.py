"""Decoding: prefill and steps equal the full causal call; states are saved, loaded and refused."""

from __future__ import annotations

import io
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from libraries import make_library
from oracle import METHODS, relative_error, tolerance
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_core.decoding import calls

ALL = METHODS | {
    "trigonometric": sb.Scatterbrain(sb.TrigonometricFeatures(16)),
    "elu alone": sb.Scatterbrain(sb.EluFeatures()),
    "lsh, limited": sb.Scatterbrain(None, sb.RandomHyperplanes(2, 1, 4)),
    "one key": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(0, 1, 1)),
}


def decode(library, parts, q, k, v, lengths, **arguments):
    """Output of a prefill of the first length and steps of the others, and the last state."""
    edges = np.cumsum([0, *lengths])
    outputs, state = [], None
    for first, last in pairwise(edges):
        tokens = library.arrays(*(x[..., first:last, :] for x in (q, k, v)))
        if state is None:
            out, state = parts.prefill(*tokens, **arguments)
        else:
            out, state = parts.step(*tokens, state)
        assert library.is_own(out)
        outputs.append(library.to_numpy(out))
    return np.concatenate(outputs, axis=-2), state


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lengths", [(40, 1, 1, 9, 1), (1, 30, 21)])
def test_steps_are_the_full_causal_call(library, dtype, rng, name, lengths):
    q, k, v = draw_problem(rng, sum(lengths), sum(lengths), dtype=dtype)
    if name == "trigonometric":
        q, k = (q / 4).astype(dtype), (k / 4).astype(dtype)
    got, state = decode(library, ALL[name], q, k, v, lengths, seed=3)
    whole = sb.attention(*library.arrays(q, k, v), method=ALL[name], is_causal=True, seed=3)
    assert relative_error(got, library.to_numpy(whole)) <= tolerance(dtype, q, k)
    assert int(state["length"]) == sum(lengths)
    assert all(library.is_own(x) for x in state.values())


@pytest.mark.parametrize("name", ["performer", "limited", "tables", "exact"])
def test_heads_in_groups_are_kept_once(library, dtype, rng, name):
    q, _, _ = draw_problem(rng, 33, 1, lead=(2, 6), dtype=dtype)
    _, k, v = draw_problem(rng, 1, 33, lead=(2, 2), dtype=dtype)
    arguments = {"enable_gqa": True, "scale": -0.4}
    got, state = decode(library, METHODS[name], q, k, v, (20, 1, 12), **arguments)
    whole = sb.attention(*library.arrays(q, k, v), method=METHODS[name], is_causal=True, **arguments)
    assert relative_error(got, library.to_numpy(whole)) <= tolerance(dtype, q[:, :2], k, -0.4)
    kept = [x for name, x in state.items() if name in ("key", "acc")]
    assert kept
    assert all(x.shape[0] == 4 for x in kept)


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(data=st.data())
def test_any_steps_of_any_parts(data):
    library = make_library("numpy")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    steps = [data.draw(st.integers(1, 40)), *data.draw(lengths)]
    q, k, v = draw_problem(rng, sum(steps), sum(steps), lead=data.draw(st.sampled_from([(), (1,), (2, 2)])))
    low_rank = data.draw(st.sampled_from([None, sb.PositiveFeatures(5), sb.EluFeatures()]))
    sparse = data.draw(
        st.builds(
            sb.RandomHyperplanes,
            st.integers(0, 4),
            st.sampled_from([1, 1, 2]),
            st.sampled_from([None, 1, 2, 5]),
        )
    )
    parts = sb.Scatterbrain(low_rank, sparse)
    seed = data.draw(st.integers(0, 2**31))
    got, _ = decode(library, parts, q, k, v, steps, seed=seed)
    whole = sb.attention(q, k, v, method=parts, is_causal=True, seed=seed)
    assert relative_error(got, whole) <= tolerance("float64", q, k)


def test_buckets_beyond_the_limit_fall_back_to_the_cache(library, dtype, rng, monkeypatch):
    q, k, v = draw_problem(rng, 40, 40, dtype=dtype)
    parts = METHODS["limited"]
    expected, small = decode(library, parts, q, k, v, (30, 10))
    monkeypatch.setattr(calls, "MAX_LEAVES", 1)
    got, large = decode(library, parts, q, k, v, (30, 10))
    assert relative_error(got, expected) <= tolerance(dtype, q, k)
    assert "leaf_acc" in small
    assert "feature" in large


def test_the_state_of_features_alone_does_not_grow(library, rng):
    q, k, v = draw_problem(rng, 60, 60)
    parts = METHODS["performer"]
    _, state = decode(library, parts, q, k, v, (10, 50))
    # Hk * m * (Dv + 2) numbers.
    assert sum(np.size(library.to_numpy(state[name])) for name in ("ref", "acc")) == 2 * 6 * (3 + 2)


@pytest.mark.parametrize("name", ["performer", "limited", "tables", "elu, cross-polytope"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "array_api_strict"])
def test_a_state_goes_through_savez(rng, name, kind):
    library = make_library(kind)
    q, k, v = draw_problem(rng, 40, 40, dtype="float32")
    start, rest = (library.arrays(*(x[:, part] for x in (q, k, v))) for part in (slice(30), slice(30, 40)))
    _, state = METHODS[name].prefill(*start)
    file = io.BytesIO()
    np.savez(file, **{key: library.to_numpy(x) for key, x in state.items()})
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        again = dict(loaded)
    expected, _ = METHODS[name].step(*rest, state)
    got, _ = METHODS[name].step(*rest, again)
    assert library.is_own(got)
    np.testing.assert_array_equal(library.to_numpy(got), library.to_numpy(expected))


def test_a_step_leaves_its_state_as_it_was(library, rng):
    q, k, v = draw_problem(rng, 40, 40)
    for parts in ALL.values():
        _, state = parts.prefill(*library.arrays(*(x[:, :30] for x in (q, k, v))))
        before = {name: library.to_numpy(x).copy() for name, x in state.items()}
        first, _ = parts.step(*library.arrays(*(x[:, 30:] for x in (q, k, v))), state)
        second, _ = parts.step(*library.arrays(*(x[:, 30:] for x in (q, k, v))), state)
        np.testing.assert_array_equal(library.to_numpy(first), library.to_numpy(second))
        for name, x in before.items():
            np.testing.assert_array_equal(library.to_numpy(state[name]), x)


def test_half_precision_is_kept_in_float32(rng):
    q, k, v = (x.astype(np.float16) for x in draw_problem(rng, 40, 40))
    parts = METHODS["limited"]
    out, state = parts.prefill(q[:, :30], k[:, :30], v[:, :30])
    assert out.dtype == np.float16
    assert state["key"].dtype == np.float32
    out, _ = parts.step(q[:, 30:], k[:, 30:], v[:, 30:], state)
    whole = sb.attention(q, k, v, method=parts, is_causal=True)[:, 30:]
    assert out.dtype == np.float16
    assert np.abs(out - whole).max() <= 2.0**-10 * np.abs(whole).max()


def test_no_tokens_change_nothing(library, rng):
    q, k, v = draw_problem(rng, 20, 20)
    _, state = METHODS["limited"].prefill(*library.arrays(q, k, v))
    out, same = METHODS["limited"].step(*library.arrays(*(x[:, :0] for x in (q, k, v))), state)
    assert out.shape == (2, 0, 3)
    assert int(same["length"]) == 20


def test_open_parts_are_planned_for_the_prompt(rng):
    q, k, v = draw_problem(rng, 200, 200)
    open_parts = sb.Scatterbrain(sb.PositiveFeatures(), sb.RandomHyperplanes())
    planned = sb.estimate(q[:, :150], k[:, :150], v[:, :150], method=open_parts, is_causal=True, budget=0.2)
    got, _ = decode(make_library("numpy"), open_parts, q, k, v, (150, 50), budget=0.2)
    whole = sb.attention(q, k, v, method=planned.parts, is_causal=True)
    assert relative_error(got, whole) <= tolerance("float64", q, k)
    exact, _ = decode(make_library("numpy"), open_parts, q, k, v, (150, 50), budget=1.0)
    assert relative_error(exact, sb.attention(q, k, v, method="exact", is_causal=True)) <= 1e-13


def _damaged(state, **changes):
    return {name: x for name, x in (state | changes).items() if x is not None}


def _bad_states(state):
    nan, inf = state["leaf_acc"].copy(), state["key"].copy()
    nan[0, 0, 0, 0], inf[0, 0, 0] = np.nan, np.inf
    yield list(state), TypeError, "state must be a dict of arrays"
    yield {}, ValueError, "state must hold 'configuration'"
    yield _damaged(state, key=None), ValueError, "state must hold .*'key'.*, got"
    yield _damaged(state, extra=state["key"]), ValueError, "state must hold .*, got .*'extra'"
    yield _damaged(state, key=state["key"][:, 1:]), ValueError, r"state\['key'\] must have shape \(2, 30, 5\)"
    yield _damaged(state, leaf_acc=nan), ValueError, r"state\['leaf_acc'\] must be finite, got NaN or inf"
    yield _damaged(state, key=inf), ValueError, r"state\['key'\] must be finite"
    yield _damaged(state, leaf_ref=state["leaf_ref"] * np.nan), ValueError, r"state\['leaf_ref'\] must be fin"
    yield (
        _damaged(state, key=state["key"].astype("f4")),
        ValueError,
        r"state\['key'\] must have dtype float64",
    )
    yield _damaged(state, key=[1.0]), TypeError, r"state\['key'\] must be an array, got list"
    yield (
        _damaged(state, configuration=state["configuration"][:-5]),
        ValueError,
        "what prefill wrote in format",
    )
    yield _damaged(state, configuration=state["key"]), ValueError, "what prefill wrote in format"
    yield _damaged(state, length=np.asarray(-1)), ValueError, r"state\['length'\] must be one number of keys"
    yield (
        _damaged(state, length=np.asarray(29)),
        ValueError,
        r"must have shape \(2, 29, 5\), got \(2, 30, 5\)",
    )
    yield (
        _damaged(state, length=np.asarray([30])),
        ValueError,
        r"state\['length'\] must be one number of keys",
    )


def test_a_damaged_state_is_refused_and_left(rng):
    tokens = draw_problem(rng, 2, 2)
    parts = METHODS["limited"]
    _, state = parts.prefill(*draw_problem(rng, 30, 30))
    for bad, error, message in _bad_states(state):
        with pytest.raises(error, match=message):
            parts.step(*tokens, bad)
    parts.step(*tokens, state)


def test_a_state_belongs_to_its_method_and_its_heads(rng):
    q, k, v = draw_problem(rng, 20, 20)
    parts = METHODS["limited"]
    _, state = parts.prefill(q, k, v)
    with pytest.raises(
        ValueError, match=r"state must come from .*PositiveFeatures\(n_features=7.*got one of"
    ):
        METHODS["tables"].step(q, k, v, state)
    one = tuple(x[:, :1] for x in (q, k, v))
    for i, message in [
        (0, r"query must have the shape \(2, t, 5\) of the state, got \(2, 1, 4\)"),
        (1, r"key must have the shape \(2, t, 5\) of the state, got \(2, 1, 4\)"),
        (2, r"value must have the shape \(2, t, 3\) of the state, got \(2, 1, 2\)"),
    ]:
        wrong = list(one)
        wrong[i] = wrong[i][..., :-1]
        with pytest.raises(ValueError, match=message):
            parts.step(*wrong, state)
    with pytest.raises(
        ValueError, match=r"query must have the shape \(2, t, 5\) of the state, got \(1, 1, 5\)"
    ):
        parts.step(*(x[:1] for x in one), state)
    with pytest.raises(ValueError, match=r"key must have the shape .*, got \(2, 2, 5\)"):
        parts.step(one[0], k[:, :2], v[:, :2], state)
    with pytest.raises(TypeError, match="query must have the dtype float64 of the state, got float32"):
        parts.step(*(x.astype("f4") for x in one), state)
    with pytest.raises(ValueError, match="query must be finite"):
        parts.step(one[0] * np.nan, *one[1:], state)
    torch = pytest.importorskip("torch")
    _, theirs = parts.prefill(*(torch.asarray(x) for x in (q, k, v)))
    with pytest.raises(TypeError, match="must come from NumPy or the library of query, numpy, got torch"):
        parts.step(*one, theirs)


def test_a_prompt_is_causal_and_not_empty(rng):
    q, k, v = draw_problem(rng, 20, 20)
    with pytest.raises(ValueError, match="query and key must have the same length"):
        METHODS["performer"].prefill(q[:, :5], k, v)
    with pytest.raises(ValueError, match="at least one head and one token"):
        METHODS["performer"].prefill(q[:, :0], k[:, :0], v[:, :0])
    with pytest.raises(ValueError, match=r"low_rank must not take statistics.*is_causal"):
        sb.Scatterbrain(sb.PositiveFeatures(4, centred=True)).prefill(q, k, v)
