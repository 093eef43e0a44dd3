"""Sampled residuals: unbiased by enumeration of all samples, and what the definition says of each."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import log_weights, relative_error, tolerance
from parts import Segments
from problems import draw_problem, eps

import scatterbrain_core as sb
from scatterbrain_core.random import Draws, stratified

# Low-rank parts of all kinds, biased and not, with supports of all kinds.
PARTS = {
    "linear": (sb.EluFeatures(), None),
    "features, window": (sb.PositiveFeatures(6), sb.LocalWindow(5)),
    "nothing, hashes": (None, sb.RandomHyperplanes(2)),
    "linear, tables": (sb.EluFeatures(), sb.RandomHyperplanes(3, 2)),
    "segments, union": (Segments(), (sb.LocalWindow(3), sb.GlobalTokens(2, (), 2))),
    "trigonometric": (sb.TrigonometricFeatures(40), sb.LocalWindow(4)),
}


@pytest.fixture(params=PARTS)
def parts(request):
    return PARTS[request.param]


def sums(*arrays, **arguments):
    """Output times normaliser, and normaliser, of every row."""
    est = sb.estimate(*arrays, **arguments)
    weight = np.exp(est.lse)
    return est.output * weight[..., None], weight


def every_sample(monkeypatch, n_sampled, n_keys):
    """Sets of draws over which the mean of sums is their expectation, one at a time.

    Stretches begin and end at multiples of 1/s: with one place in each of n parts of a stretch, the keys of a
    stretch come as often as they are expected, and sums over keys are sums over stretches.
    """
    for part in range(n_keys):
        place = np.full(n_sampled, (part + 0.5) / n_keys)
        monkeypatch.setattr(
            Draws, "columns", lambda _self, _n, n_keys, place=place: stratified(place, n_keys)
        )
        yield part


@pytest.mark.parametrize("n_sampled", [1, 4, 12, 30])
def test_the_mean_over_all_samples_is_exact(rng, monkeypatch, is_causal, parts, n_sampled):
    """Of every weight, whatever the low-rank part: nothing random is left but what is enumerated."""
    q, k, _ = draw_problem(rng, 9, 12, dim=3)
    arguments = {"is_causal": is_causal, "scale": 1.0, "normalize": False}
    method = sb.Scatterbrain(*parts, debias=n_sampled)
    samples = every_sample(monkeypatch, n_sampled, 12)
    found = [sb.attention_matrix(q, k, method=method, **arguments) for _ in samples]
    exact = sb.attention_matrix(q, k, method="exact", **arguments)
    rounding = 8 * eps("float64") * np.abs(found).max()  # of signed weights, which cancel in the mean
    np.testing.assert_allclose(np.mean(found, axis=0), exact, rtol=1e-11, atol=rounding)
    biased = sb.attention_matrix(q, k, method=sb.Scatterbrain(*parts), **arguments)
    assert relative_error(biased, exact) > 1e-3


MASKS = {"no mask": None, "keys": (12,), "a head": (2, 1, 12), "dense": (9, 12)}


@pytest.mark.parametrize("masked", MASKS)
def test_the_mean_of_the_sums_is_exact(rng, monkeypatch, masked):
    """By tiles and under masks: output times normaliser, where all weights are positive."""
    arrays = draw_problem(rng, 9, 12, dim=3)
    mask = None if masked == "no mask" else rng.random(MASKS[masked]) < 0.7
    method = sb.Scatterbrain(None, sb.RandomHyperplanes(2), debias=5)
    samples = every_sample(monkeypatch, 5, 12)
    runs = [sums(*arrays, method=method, attn_mask=mask) for _ in samples]
    exact = sums(*arrays, method="exact", attn_mask=mask)
    for got, expected in zip(zip(*runs, strict=True), exact, strict=True):
        np.testing.assert_allclose(np.mean(got, axis=0), expected, rtol=1e-11, atol=1e-13)


def test_every_key_is_expected_alike(rng):
    """As often as s/n: over places on a grid that the edges of keys and stretches are points of."""
    for n_sampled, n_keys in [(1, 7), (3, 7), (7, 7), (10, 4), (64, 65)]:
        times = np.zeros(n_keys)
        for part in range(n_keys):
            columns = stratified(np.full(n_sampled, (part + 0.5) / n_keys), n_keys)
            assert (np.diff(columns) >= 0).all()
            times += np.bincount(columns, minlength=n_keys)
        np.testing.assert_array_equal(times, n_sampled)
    columns = Draws(3).columns(50, 1000)
    assert (columns // 20 == np.arange(50)).all()
    np.testing.assert_array_equal(columns, Draws(3).columns(50, 1000))
    assert (columns != Draws(4).columns(50, 1000)).any()
    assert stratified(np.full(3, np.nextafter(1.0, 0.0)), 10).max() == 9


SHAPES = {"no mask": None, "keys": (2, 1, 60), "rows": (50, 1), "dense": (2, 50, 60)}


@pytest.mark.parametrize("masked", [*SHAPES, "causal"])
def test_tiles_and_blocks_are_the_definition(library, dtype, rng, masked, parts):
    """Weights may be negative: a row may lose as much as its normaliser is less than their sum."""
    q, k, v = draw_problem(rng, 50, 60, dtype=dtype)
    mask = None if SHAPES.get(masked) is None else rng.random(SHAPES[masked]) < 0.8
    masks = {} if mask is None else {"attn_mask": library.asarray(mask)}
    method, is_causal = sb.Scatterbrain(*parts, debias=25), masked == "causal"
    est = sb.estimate(*library.arrays(q, k, v), method=method, is_causal=is_causal, **masks)
    logs = log_weights(*(x.astype(float) for x in (q, k)), method, mask=mask, is_causal=is_causal)
    weights = np.exp(logs).real
    total = weights.sum(-1)
    is_sound = np.abs(total) > 0.01 * np.abs(weights).sum(-1)
    assert is_sound.mean() > 0.7
    bound = (4 * tolerance(dtype, q, k) * np.abs(weights).sum(-1))[is_sound] / np.abs(total[is_sound])
    expected = (weights @ v)[is_sound] / total[is_sound][:, None]
    error = np.abs(library.to_numpy(est.output)[is_sound] - expected).max(-1)
    assert (error <= bound * np.abs(v).max()).all()
    lse = library.to_numpy(est.lse)[is_sound]
    expected = np.log(np.where(total > 0, total, np.nan))[is_sound]
    np.testing.assert_array_equal(np.isnan(lse), np.isnan(expected))
    assert (np.abs(lse - expected) <= bound)[~np.isnan(expected)].all()


def test_what_is_sampled_off_the_support_costs(library, rng, is_causal):
    """Every sampled key that a query sees, as often as it comes, but those it sees exactly anyway."""
    q, k, v = draw_problem(rng, 40, 30)
    method = sb.Scatterbrain(sb.EluFeatures(), sb.LocalWindow(5), debias=45)
    cost = sb.estimate(*library.arrays(q, k, v), method=method, is_causal=is_causal).cost
    i, j = np.ogrid[:40, :30]
    seen = (j <= i) | (not is_causal)
    near = seen & ((i - 5 < j) if is_causal else (i - 2 <= j) & (j < i + 3))
    times = np.bincount(Draws(0).columns(45, 30), minlength=30)
    assert cost.pairs == pytest.approx(near.sum(-1).mean() + (times * (seen & ~near)).sum(-1).mean())
    assert cost.rank == 5


def test_the_budget_pays_for_the_sample(rng):
    q, k, v = draw_problem(rng, 100, 100)
    for sparse in (None, sb.LocalWindow(), sb.RandomHyperplanes()):
        method = sb.Scatterbrain(sb.PositiveFeatures(), sparse, debias=10)
        est = sb.estimate(q, k, v, method=method, budget=0.3)
        assert 0.2 < est.cost.fraction <= 0.3
        assert est.parts.debias == 10
        if sparse is not None:
            assert sb.estimate(q, k, v, method=method, budget=1.0).parts == sb.Scatterbrain(
                sparse=sb.AllPairs()
            )


def test_all_keys_sampled_once_is_exact_attention(library, dtype, rng, is_causal, parts):
    """s = n: each stretch is one key."""
    q, k, v = (x / 2 for x in draw_problem(rng, 40, 33, dtype=dtype))
    method = sb.Scatterbrain(*parts, debias=33)
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=method, is_causal=is_causal))
    plain = (x.astype(float) for x in (q, k, v))
    exact = sb.attention(*plain, method="exact", is_causal=is_causal)
    weights = [
        np.exp(log_weights(q.astype(float), k.astype(float), part, is_causal=is_causal)).real
        for part in (sb.Scatterbrain(*parts), sb.Scatterbrain(sparse=sb.AllPairs()))
    ]
    # What is added and subtracted again may be larger than what is left.
    lost = (np.abs(weights[0]).sum(-1) / weights[1].sum(-1)).max()
    assert np.abs(got - exact).max() <= 64 * eps(dtype) * (1 + lost) * np.abs(v).max()
