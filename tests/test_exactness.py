"""S = everything is softmax attention; S = nothing is the low-rank part; what every weighted mean obeys."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import BY_CONTENT, METHODS, oracle, relative_error, tolerance
from problems import draw_problem, eps, set_chunks
from scipy.special import softmax

import scatterbrain_core as sb
from scatterbrain_core.backend import backend_of

NAMES = ["exact", "performer", "lsh", "scatterbrain"]


def softmax_attention(q, k, v, is_causal=False):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    logits = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if is_causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    return softmax(logits, axis=-1) @ v


EVERYTHING = {
    "exact": {"method": "exact"},
    "budget 1": {"method": "scatterbrain", "budget": 1.0},
    "lsh, budget 1": {"method": "lsh", "budget": 1.0},
    "one bucket": {"method": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(0))},
    "one bucket, 3 tables": {"method": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(0, 3))},
    "one large bucket": {"method": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(0, 1, 500))},
}


@pytest.mark.parametrize("arguments", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_a_support_of_everything_is_softmax_attention(library, dtype, is_causal, rng, arguments):
    q, k, v = draw_problem(rng, 150, 131, dim=8, dtype=dtype)
    out = sb.attention(*library.arrays(q, k, v), is_causal=is_causal, **arguments)
    assert relative_error(library.to_numpy(out), softmax_attention(q, k, v, is_causal)) <= tolerance(
        dtype, q, k
    )


def test_an_empty_support_is_the_low_rank_part(library, dtype, is_causal, rng):
    """Keys opposite to all queries share no bucket with them."""
    q, k, v = draw_problem(rng, 60, 60, dim=6, dtype=dtype)
    direction = rng.standard_normal(6)
    q, k = (0.01 * q + direction).astype(dtype), (0.01 * k - direction).astype(dtype)
    features = sb.PositiveFeatures(7)
    both = sb.Scatterbrain(features, sb.RandomHyperplanes(3, 2))
    est = sb.estimate(*library.arrays(q, k, v), method=both, is_causal=is_causal)
    assert est.cost.pairs == 0
    alone = sb.attention(*library.arrays(q, k, v), method=sb.Scatterbrain(features), is_causal=is_causal)
    error = relative_error(library.to_numpy(est.output), library.to_numpy(alone))
    assert error <= tolerance(dtype, q, k)
    nothing = sb.estimate(*library.arrays(q, k, v), method=sb.Scatterbrain(None, both.sparse))
    assert not library.to_numpy(nothing.output).any()
    assert np.isneginf(library.to_numpy(nothing.lse)).all()


@pytest.mark.parametrize("name", METHODS)
def test_values_of_one_give_one(library, dtype, is_causal, rng, name):
    """The numerator with V = 1 is the denominator."""
    q, k, _ = draw_problem(rng, 70, 50, dtype=dtype)
    est = sb.estimate(*library.arrays(q, k, np.ones_like(k)), method=METHODS[name], is_causal=is_causal)
    seen = ~np.isneginf(library.to_numpy(est.lse))
    np.testing.assert_allclose(library.to_numpy(est.output)[seen], 1, rtol=8 * eps(dtype))
    assert not library.to_numpy(est.output)[~seen].any()


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_keys_changes_nothing(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 90, 110, dtype=dtype)
    order = rng.permutation(110)
    first = sb.attention(*library.arrays(q, k, v), method=name)
    second = sb.attention(*library.arrays(q, k[:, order], v[:, order]), method=name)
    assert relative_error(library.to_numpy(second), library.to_numpy(first)) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("name", BY_CONTENT)
def test_permuting_the_queries_permutes_the_output(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 90, 75, dtype=dtype)
    order = rng.permutation(90)
    first = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=METHODS[name]))
    second = library.to_numpy(sb.attention(*library.arrays(q[:, order], k, v), method=METHODS[name]))
    assert relative_error(second, first[:, order]) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("name", METHODS)
def test_the_output_is_linear_in_the_values(library, dtype, is_causal, rng, name):
    q, k, v = draw_problem(rng, 64, 80, dtype=dtype)
    arguments = {"method": METHODS[name], "is_causal": is_causal}
    est = sb.estimate(*library.arrays(q, k, v), **arguments)
    moved = library.to_numpy(sb.attention(*library.arrays(q, k, 3 * v + 5), **arguments))
    seen = ~np.isneginf(library.to_numpy(est.lse))[..., None]
    expected = np.where(seen, 3 * library.to_numpy(est.output) + 5, 0)
    assert relative_error(moved, expected) <= tolerance(dtype, q, k)


def test_shifting_all_keys_leaves_exact_attention(library, dtype, rng):
    q, k, v = draw_problem(rng, 40, 50, dtype=dtype)
    shifted = (k + rng.standard_normal(k.shape[-1])).astype(dtype)
    first = sb.attention(*library.arrays(q, k, v), method="exact")
    second = sb.attention(*library.arrays(q, shifted, v), method="exact")
    assert relative_error(library.to_numpy(second), library.to_numpy(first)) <= tolerance(dtype, q, shifted)


@pytest.mark.parametrize("name", NAMES)
def test_rotating_queries_and_keys_leaves_exact_attention_alone(library, dtype, rng, name):
    """Only `exact` is unchanged: the draws of the others are tied to the axes, and must be."""
    q, k, v = draw_problem(rng, 40, 50, dtype=dtype)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    first = sb.attention(*library.arrays(q, k, v), method=name)
    rotated = ((q @ rotation).astype(dtype), (k @ rotation).astype(dtype), v)
    second = sb.attention(*library.arrays(*rotated), method=name)
    error = relative_error(library.to_numpy(second), library.to_numpy(first))
    assert (error <= tolerance(dtype, q, k)) == (name == "exact")


@pytest.mark.parametrize("name", NAMES)
def test_a_head_does_not_depend_on_the_others(library, dtype, is_causal, rng, name):
    q, k, v = draw_problem(rng, 45, 55, lead=(2, 3), dtype=dtype)
    whole = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=name, is_causal=is_causal))
    for head in np.ndindex(2, 3):
        one = sb.attention(*library.arrays(q[head], k[head], v[head]), method=name, is_causal=is_causal)
        assert relative_error(library.to_numpy(one), whole[head]) <= 64 * eps(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_grouped_query_heads_are_repeated_keys(library, dtype, is_causal, rng, name):
    q, _, _ = draw_problem(rng, 33, 1, lead=(2, 6), dtype=dtype)
    _, k, v = draw_problem(rng, 1, 47, lead=(2, 2), dtype=dtype)
    arguments = {"method": name, "is_causal": is_causal}
    grouped = sb.attention(*library.arrays(q, k, v), enable_gqa=True, **arguments)
    repeated = sb.attention(*library.arrays(q, np.repeat(k, 3, -3), np.repeat(v, 3, -3)), **arguments)
    np.testing.assert_array_equal(library.to_numpy(grouped), library.to_numpy(repeated))
    expected = np.concatenate([softmax_attention(q[:, :3], k[:, :1], v[:, :1], is_causal)], axis=1)
    if name == "exact":
        assert relative_error(library.to_numpy(grouped)[:, :3], expected) <= tolerance(
            dtype, q[:, :3], k[:, :1]
        )


def test_the_scale_is_that_of_the_logits(library, dtype, rng):
    q, k, v = draw_problem(rng, 30, 30, dtype=dtype)
    for scale in (1.0, 0.3, -2.0):
        got = sb.estimate(*library.arrays(q, k, v), method="exact", scale=scale)
        expected, lse = oracle(q, k, v, METHODS["exact"], scale=scale)
        assert relative_error(library.to_numpy(got.output), expected) <= tolerance(dtype, q, k, scale)
        assert np.abs(library.to_numpy(got.lse) - lse).max() <= tolerance(dtype, q, k, scale)


@pytest.mark.parametrize("method", ["auto", "scatterbrain"])
@pytest.mark.parametrize("masked", ["no", "causal", "padding", "dense"])
def test_many_heads_in_groups_are_the_same(library, rng, monkeypatch, method, masked):
    """Heads are run a few at a time, tiles a few at a time: neither may change a result."""
    q, k, v = draw_problem(rng, 90, 100, lead=(7,))
    shape = {"padding": (7, 1, 100), "dense": (7, 90, 100)}.get(masked)
    mask = None if shape is None else rng.random(shape) < 0.7
    arrays = library.arrays(q, k, v)
    arguments = {"method": method, "budget": 0.25, "is_causal": masked == "causal"}
    arguments["attn_mask"] = None if mask is None else library.asarray(mask)
    whole = sb.estimate(*arrays, **arguments)
    monkeypatch.setattr(backend_of(query=arrays[0]), "group_elements", 1)
    set_chunks(monkeypatch, 1)
    parts = sb.estimate(*arrays, **arguments)
    for name in ("output", "lse", *(["stderr"] if method == "scatterbrain" else [])):
        got, expected = (library.to_numpy(getattr(est, name)) for est in (parts, whole))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert parts.cost == whole.cost
