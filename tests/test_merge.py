"""Estimates over shards of the keys: equal to the whole call where weights are of pairs alone."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import parts as parts_of_tests
import pytest
from libraries import make_library
from oracle import BY_CONTENT, CAUSAL, METHODS, relative_error, tolerance
from problems import draw_problem

import scatterbrain_core as sb

SEPARABLE = {
    name: METHODS[name]
    for name in BY_CONTENT
    if name in CAUSAL and all(getattr(part, "max_bucket", 0) is None for part in METHODS[name].supports)
}


def shards_of(library, q, k, v, edges, **arguments):
    for first, last in pairwise(edges):
        yield sb.estimate(*library.arrays(q, k[:, first:last], v[:, first:last]), **arguments)


@pytest.mark.parametrize("name", SEPARABLE)
def test_shards_merge_to_the_whole(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 40, 90, dtype=dtype)
    arguments = {"method": SEPARABLE[name], "seed": 5}
    merged = sb.merge(list(shards_of(library, q, k, v, (0, 30, 31, 90), **arguments)))
    whole = sb.estimate(*library.arrays(q, k, v), **arguments)
    assert library.is_own(merged.output)
    assert relative_error(library.to_numpy(merged.output), library.to_numpy(whole.output)) <= tolerance(
        dtype, q, k
    )
    of_heads, expected = (library.to_numpy(x.cost.of_heads) for x in (merged, whole))
    np.testing.assert_allclose(of_heads, expected, rtol=1e-5)
    lse, expected = library.to_numpy(merged.lse), library.to_numpy(whole.lse)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected))
    assert np.abs(lse - expected)[~np.isneginf(expected)].max() <= tolerance(dtype, q, k)
    assert merged.cost.pairs == pytest.approx(whole.cost.pairs, rel=1e-5)
    assert merged.cost.fraction == pytest.approx(whole.cost.fraction, rel=1e-5)
    assert (merged.parts, merged.seed, merged.method) == (whole.parts, whole.seed, whole.method)


def test_a_merged_error_bounds_that_of_the_whole(rng):
    """To first order: small norms, many features. The groups of all shards are the same features."""
    q, k, v = draw_problem(rng, 30, 400, dim=8)
    q, k = 0.3 * q, 0.3 * k
    parts = sb.Scatterbrain(sb.PositiveFeatures(512), sb.RandomHyperplanes(2))
    merged = sb.merge(list(shards_of(make_library("numpy"), q, k, v, (0, 100, 400), method=parts)))
    whole = sb.estimate(q, k, v, method=parts)
    assert (merged.stderr >= 0.98 * whole.stderr).all()
    assert (merged.lse_stderr >= 0.98 * whole.lse_stderr).all()
    assert np.median(merged.stderr / whole.stderr) < 3


def test_clusters_of_shards_are_their_own(library, rng):
    """Weights and costs add up: a shard's clusters and groups are seen beside those of the others."""
    q, k, v = draw_problem(rng, 100, 240)
    parts = sb.Scatterbrain(sparse=sb.RoutedClusters(24))
    shards = list(shards_of(library, q, k, v, (0, 100, 240), method=parts))
    merged = sb.merge(shards)
    edges = ((0, 100), (100, 240))
    matrix = np.concatenate(
        [sb.attention_matrix(q, k[:, a:b], method=parts, normalize=False) for a, b in edges], axis=-1
    )
    expected = matrix @ v / matrix.sum(-1, keepdims=True)
    assert relative_error(library.to_numpy(merged.output), expected) <= tolerance("float64", q, k)
    for name in ("pairs", "rank"):
        assert getattr(merged.cost, name) == sum(getattr(shard.cost, name) for shard in shards)
    assert merged.cost.fraction == pytest.approx((merged.cost.pairs + merged.cost.rank) / 240)
    of_heads = library.to_numpy(merged.cost.of_heads)
    assert of_heads.mean() == pytest.approx(merged.cost.fraction)


def test_shards_whose_weights_depend_on_their_other_keys_are_another_estimate(rng):
    q, k, v = draw_problem(rng, 40, 90)
    for parts in (METHODS["limited"], sb.Scatterbrain(sb.PositiveFeatures(8, centred=True))):
        merged = sb.merge(list(shards_of(make_library("numpy"), q, k, v, (0, 45, 90), method=parts)))
        whole = sb.estimate(q, k, v, method=parts)
        assert relative_error(merged.output, whole.output) > 1e-3


def test_a_shard_that_sees_nothing_adds_nothing(library, rng):
    q, k, v = draw_problem(rng, 10, 20)
    hidden = library.asarray(np.zeros((1, 20), dtype=bool))
    parts = METHODS["scatterbrain"]
    some = sb.estimate(*library.arrays(q, k, v), method=parts)
    none = sb.estimate(*library.arrays(q, k, v), method=parts, attn_mask=hidden)
    both = sb.merge([none, some])
    for name in ("output", "lse", "stderr", "lse_stderr"):
        got, expected = (library.to_numpy(getattr(est, name)) for est in (both, some))
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    nothing = sb.merge([none, none])
    assert not library.to_numpy(nothing.output).any()
    assert np.isneginf(library.to_numpy(nothing.lse)).all()
    assert not library.to_numpy(nothing.stderr).any()


def test_one_shard_is_itself(library, dtype, rng):
    q, k, v = draw_problem(rng, 10, 20, dtype=dtype)
    est = sb.estimate(*library.arrays(q, k, v), method="performer")
    merged = sb.merge([est])
    for name in ("output", "lse", "stderr"):
        got, expected = (library.to_numpy(getattr(x, name)) for x in (merged, est))
        np.testing.assert_allclose(got, expected, rtol=8 * np.finfo(dtype).eps)


def test_what_does_not_belong_together_is_refused(rng):
    q, k, v = draw_problem(rng, 10, 20)
    performer, lsh = METHODS["performer"], METHODS["lsh"]
    est = sb.estimate(q, k, v, method=performer)
    for others, error, message in [
        ([sb.estimate(q, k, v, method=lsh)], ValueError, r"one method, got .* in estimates\[0\] and .*\[1\]"),
        ([sb.estimate(q, k, v, method=performer, seed=1)], ValueError, r"one seed, got 0 .* and 1 in"),
        ([sb.estimate(q[:1], k[:1], v[:1], method=performer)], ValueError, "one shape"),
        ([sb.estimate(*(x.astype("f4") for x in (q, k, v)), method=performer)], ValueError, "one dtype"),
        ([est.output], TypeError, r"estimates\[1\] must be an Estimate, got numpy.ndarray"),
    ]:
        with pytest.raises(error, match=message):
            sb.merge([est, *others])
    causal = sb.estimate(q, k, v, method=performer, is_causal=True)
    for shards, message in [
        ([est, sb.estimate(q, k, v, method=performer, scale=2.0)], r"one scale, got 0\.447.* and 2\.0 in"),
        ([est, sb.estimate(q + 1, k, v, method=performer)], "one set of queries"),
        ([causal, est, causal], r"at most one with is_causal=True.*got estimates\[0\], estimates\[2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            sb.merge(shards)
    signed = [sb.estimate(q, k, v, method=sb.Scatterbrain(sb.TrigonometricFeatures(4)))] * 2
    with pytest.raises(
        ValueError, match=r"positive weights to be merged, got those of .*TrigonometricFeatures"
    ):
        sb.merge(signed)
    assert sb.merge([causal, est]).output.shape == est.output.shape
    with pytest.raises(ValueError, match="at least one Estimate"):
        sb.merge([])
    with pytest.raises(TypeError, match=r"sequence of Estimate, got .*Estimate"):
        sb.merge(est)
    torch = pytest.importorskip("torch")
    other = sb.estimate(*(torch.asarray(x) for x in (q, k, v)), method=performer)
    with pytest.raises(ValueError, match=r"one library, got numpy .* and torch"):
        sb.merge([est, other])


def test_a_seed_matters_only_where_something_is_drawn(rng):
    q, k, v = draw_problem(rng, 10, 20)
    shards = [sb.estimate(q, k, v, method="exact", seed=seed) for seed in (0, 1)]
    np.testing.assert_allclose(sb.merge(shards).output, shards[0].output, rtol=1e-12)


PARTS = [
    *METHODS.values(),
    sb.Scatterbrain(sb.TrigonometricFeatures(4)),
    sb.Scatterbrain(sb.PositiveFeatures(8, "simplex", paired=True, rho="optimal", centred=True)),
]


@pytest.mark.parametrize("parts", PARTS, ids=repr)
def test_parts_pickle_and_their_repr_rebuilds_them(parts):
    assert pickle.loads(pickle.dumps(parts)) == parts
    assert eval(repr(parts), vars(sb) | vars(parts_of_tests)) == parts
    assert hash(pickle.loads(pickle.dumps(parts))) == hash(parts)


def test_an_estimate_pickles(rng):
    est = sb.estimate(*draw_problem(rng, 10, 20), method="scatterbrain")
    again = pickle.loads(pickle.dumps(est))
    np.testing.assert_array_equal(again.output, est.output)
    assert (again.parts, again.cost, again.seed) == (est.parts, est.cost, est.seed)


def test_errors_that_are_not_finite_stay_what_they_are(rng):
    """A feature that holds all weight beside one that underflows: the error is inf, and NaN nowhere."""
    q, k, v = draw_problem(rng, 20, 30, dim=4)
    est = sb.estimate(400 * q, 400 * k, v, method=sb.Scatterbrain(sb.PositiveFeatures(2)))
    assert np.isinf(est.lse_stderr).any()
    for merged in (sb.merge([est]), sb.merge([est, est])):
        assert not np.isnan(merged.stderr).any()
        assert not np.isnan(merged.lse_stderr).any()
    np.testing.assert_array_equal(sb.merge([est]).stderr, est.stderr)
