"""Decoding: prefill and steps equal the full causal call; states are saved, loaded and refused."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from libraries import make_library
from oracle import BY_CONTENT, CAUSAL, METHODS, relative_error, tolerance
from parts import Segments
from problems import draw_problem, set_chunks

import scatterbrain_core as sb
from scatterbrain_core.decoding import calls

# No state is kept of parts by position, and none of an oracle.
ALL = {
    name: METHODS[name]
    for name in BY_CONTENT
    if name in CAUSAL and not any(isinstance(part, sb.TopKeys) for part in METHODS[name].supports)
} | {
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


def _bad_arrays(state):
    nan, inf = state["leaf_acc"].copy(), state["key"].copy()
    nan[0, 0, 0, 0], inf[0, 0, 0] = np.nan, np.inf
    code = state["code"]
    yield "key", state["key"][:, 1:], r"must have shape \(2, 30, 5\)"
    yield "leaf_acc", nan, "must be finite, got NaN or inf"
    yield "key", inf, "must be finite"
    yield "leaf_ref", state["leaf_ref"] * np.nan, "must be finite"
    yield "key", state["key"].astype("f4"), "must have dtype float64"
    yield "length", np.asarray(-1), "must be one integer.* got int64 -1"
    yield "length", np.asarray(30.0), "must be one integer.* got float64 30"
    yield "length", np.asarray([30]), r"must be one integer.* got shape \(1,\)"
    yield "code", code + 2, r"must be in \[0, 2\), got 2 to 3"
    yield "code", code - 2, r"must be in \[0, 2\), got -2 to -1"
    yield "code", code > 0, "must be of signed integers, got bool"
    yield "code", code * 1.0, "must be of signed integers, got float64"
    yield "configuration", state["configuration"][:-5], "must be what prefill wrote"
    yield "configuration", state["key"], "must be what prefill wrote"
    for junk in _junk(json.loads(state["configuration"].tobytes())):
        packed = np.frombuffer(json.dumps(junk).encode(), np.uint8)
        yield "configuration", packed, "must be what prefill wrote"


def _bad_states(state):
    yield list(state), TypeError, "state must be a dict of arrays"
    yield {}, ValueError, "state must hold 'configuration'"
    yield _damaged(state, key=None), ValueError, "state must hold .*'key'.*, got"
    yield _damaged(state, extra=state["key"]), ValueError, "state must hold .*, got .*'extra'"
    yield _damaged(state, key=[1.0]), TypeError, r"state\['key'\] must be an array, got list"
    yield _damaged(state, length=np.asarray(29)), ValueError, r"have shape \(2, 29, 5\), got \(2, 30, 5\)"
    for name, x, message in _bad_arrays(state):
        yield _damaged(state, **{name: x}), ValueError, rf"state\['{name}'\] {message}"


def _junk(stated):
    yield from (None, 5, [], {}, stated | {"format": 2}, stated | {"extra": 1})
    for name, value in [
        ("low_rank", {}),
        ("low_rank", 5),
        ("low_rank", {"type": ["a"]}),
        ("low_rank", {"type": "PositiveFeatures", "bogus": 1}),
        ("low_rank", stated["low_rank"] | {"n_features": 6}),
        ("low_rank", stated["low_rank"] | {"rows": "simplex"}),
        ("sparse", stated["sparse"] | {"n_bits": None}),
        ("sparse", stated["sparse"] | {"max_bucket": 4}),
        ("query_lead", 5),
        ("seed", "x"),
        ("scale", None),
    ]:
        yield stated | {name: value}


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


def test_a_state_is_no_view_of_the_callers_arrays(library, rng):
    """A cache that the caller writes over must not reach a state that was made before."""
    for parts in ALL.values():
        arrays = library.arrays(*draw_problem(rng, 20, 20))
        _, state = parts.prefill(*arrays, scale=1.0)
        for x in state.values():
            for theirs in arrays:
                assert not np.shares_memory(library.to_numpy(x), library.to_numpy(theirs))


def test_a_step_without_tokens_gives_a_state_of_its_own(library, rng):
    q, k, v = draw_problem(rng, 20, 20, dtype="float32")
    _, state = METHODS["limited"].prefill(*library.arrays(q, k, v))
    saved = {name: library.to_numpy(x) for name, x in state.items()}
    _, again = METHODS["limited"].step(*library.arrays(*(x[:, :0] for x in (q, k, v))), saved)
    assert again is not saved
    assert all(library.is_own(x) for x in again.values())


def test_values_may_have_no_columns(library, rng):
    q, k, v = draw_problem(rng, 40, 40, columns=0)
    for parts in ALL.values():
        got, _ = decode(library, parts, q, k, v, (30, 1, 9))
        assert got.shape == (2, 40, 0)


def test_pairs_are_worked_in_chunks(library, rng, monkeypatch):
    q, k, v = draw_problem(rng, 40, 40)
    for name in ("limited", "tables", "exact"):
        expected, _ = decode(library, METHODS[name], q, k, v, (20, 20))
        with monkeypatch.context() as patch:
            set_chunks(patch, 1)
            got, _ = decode(library, METHODS[name], q, k, v, (20, 20))
        assert relative_error(got, expected) <= 1e-13


def test_the_length_to_come_is_what_a_budget_is_of(rng):
    q, k, v = draw_problem(rng, 400, 400)
    parts = sb.Scatterbrain(sb.PositiveFeatures(), sb.RandomHyperplanes())
    planned = sb.estimate(q, k, v, method=parts, is_causal=True).parts
    got, _ = decode(make_library("numpy"), parts, q, k, v, (3, 397), length=400)
    whole = sb.attention(q, k, v, method=planned, is_causal=True)
    assert relative_error(got, whole) <= tolerance("float64", q, k)
    with pytest.raises(ValueError, match="length must be at least that of the prompt, 400, got 3"):
        parts.prefill(q, k, v, length=3)
    with pytest.raises(TypeError, match="length must be an int or None, got float"):
        parts.prefill(q, k, v, length=400.0)


def test_values_that_sums_to_come_may_overflow_are_refused(rng):
    q, k, v = (x.astype(np.float32) for x in draw_problem(rng, 10, 10))
    with pytest.raises(ValueError, match=r"value must be below .* for sums over all tokens to come"):
        METHODS["performer"].prefill(q, k, np.full_like(v, 1e30))
    _, state = METHODS["performer"].prefill(q, k, v)
    with pytest.raises(ValueError, match=r"value must be below .* for sums over all tokens to come"):
        METHODS["performer"].step(q[:, :1], k[:, :1], np.full_like(v[:, :1], 1e30), state)


def test_a_loaded_file_is_a_state(rng, tmp_path):
    q, k, v = draw_problem(rng, 10, 10)
    _, state = METHODS["limited"].prefill(q, k, v)
    np.savez(tmp_path / "state.npz", **state)
    expected, _ = METHODS["limited"].step(q[:, :1], k[:, :1], v[:, :1], state)
    with np.load(tmp_path / "state.npz") as file:
        got, _ = METHODS["limited"].step(q[:, :1], k[:, :1], v[:, :1], file)
    np.testing.assert_array_equal(got, expected)


def test_sizes_of_any_integer_type_decode(rng):
    q, k, v = draw_problem(rng, 20, 20)
    features = sb.PositiveFeatures(np.int8(4), rho=np.float32(0.5))
    odd = sb.Scatterbrain(features, sb.RandomHyperplanes(np.int8(1)))
    plain = sb.Scatterbrain(sb.PositiveFeatures(4, rho=0.5), sb.RandomHyperplanes(1))
    assert repr(odd) == repr(plain)
    got, state = odd.prefill(q, k, v)
    np.testing.assert_array_equal(got, plain.prefill(q, k, v)[0])
    plain.step(q[:, :1], k[:, :1], v[:, :1], state)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            sb.Scatterbrain(None, sb.LocalWindow(3)),
            "sparse must be hashes, AllPairs or None in decoding, which",
        ),
        (sb.Scatterbrain(None, (sb.RandomHyperplanes(2),) * 2), "sparse must be one part in decoding, which"),
        (sb.Scatterbrain(Segments()), "low_rank must be a feature map or None in decoding, which"),
        (
            sb.Scatterbrain(sb.EluFeatures(), debias=3),
            "debias must be None and double_counting False in deco",
        ),
        (
            sb.Scatterbrain(sb.EluFeatures(), sb.RandomHyperplanes(2), double_counting=True),
            "debias must be None and double_counting False in decoding, which keeps no state for them",
        ),
    ],
)
def test_parts_without_a_state_are_refused(rng, parts, message):
    q, k, v = draw_problem(rng, 8, 8)
    with pytest.raises(ValueError, match=message):
        parts.prefill(q, k, v)
