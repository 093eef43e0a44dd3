"""Unbiasedness and variance against closed forms.

Every comparison is a z-test with a known standard deviation (the log-normal moments of one feature), so
that nothing is estimated on the side of the null hypothesis. False alarms: all comparisons of this file
together at most ALARM = 1e-6, split evenly (Bonferroni) over COMPARISONS; the sums are over so many draws
of bounded skewness (‖q+k‖ <= 1) that the normal tail holds. Sample sizes are asserted to detect the
stated discrepancies with a miss probability of at most 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import scatterbrain_core as sb

ALARM = 1e-6
COMPARISONS = 200
CRITICAL = stats.norm.isf(ALARM / COMPARISONS / 2)
POWER = stats.norm.isf(1e-6)

M, K, T, SEEDS = 8, 2, 2, 5000
FEATURES, HASHES = sb.PositiveFeatures(M), sb.RandomHyperplanes(K, T)
METHODS = {
    "performer": sb.Scatterbrain(FEATURES),
    "scatterbrain": sb.Scatterbrain(FEATURES, HASHES),
    "one table": sb.Scatterbrain(FEATURES, sb.RandomHyperplanes(K, 1)),
}


def pairs():
    """One query and four keys in R^4 with norm 0.4 at angles from 0 to 180 degrees: ‖q+k‖ <= 0.8."""
    angles = np.deg2rad([0, 40, 85, 180])
    base = np.array([[0.4, 0, 0, 0]])
    key = np.stack([0.4 * np.cos(angles), 0.4 * np.sin(angles), 0 * angles, 0 * angles], axis=-1)
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((4, 4)))[0]
    return base @ turn, key @ turn


def sample(parts):
    """Unnormalised estimates of exp(q·k) for SEEDS seeds, shape (SEEDS, pairs)."""
    query, key = pairs()
    arguments = {"method": parts, "scale": 1.0, "normalize": False}
    return np.stack([sb.attention_matrix(query, key, seed=seed, **arguments)[0] for seed in range(SEEDS)])


def moments():
    """Exact weight A, and second and fourth central moments of its estimate by M features."""
    query, key = pairs()
    weight = np.exp(query @ key.T)[0]
    square = (np.linalg.norm(query + key, axis=-1)) ** 2
    raw = [np.exp((n * n - n) / 2 * square) for n in range(5)]  # E[(Y/A)^n] of one feature's product Y
    second = raw[2] - 1
    fourth = raw[4] - 4 * raw[3] + 6 * raw[2] - 3
    return (
        weight,
        weight**2 * second / M,
        weight**4 * (fourth / M**3 + 3 * second**2 * (M - 1) / M**3),
    )


def miss_probability(parts):
    """1 - p for each pair: that it is off the support."""
    if parts.sparse is None:
        return np.ones(4)
    query, key = pairs()
    return 1 - parts.sparse.collision_probability(np, query, key)[0]


def test_the_closed_forms_are_those_of_the_paper():
    query, key = pairs()
    weight, second, _ = moments()
    expected = weight**2 * np.expm1(np.linalg.norm(query + key, axis=-1) ** 2) / M
    np.testing.assert_allclose(second, expected, atol=1e-15)
    np.testing.assert_allclose(FEATURES.variance(np, query, key)[0], expected, atol=1e-15)
    angles = np.array([0, 40, 85, 180]) / 180
    one = (1 - angles) ** K
    np.testing.assert_allclose(miss_probability(METHODS["one table"]), 1 - one, atol=1e-7)
    np.testing.assert_allclose(miss_probability(METHODS["scatterbrain"]), (1 - one) ** T, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_mean_and_variance_are_theorem_2s(name):
    """E[estimate] = exp(q·k) and Var = (1 - p) · Var L, with Var L = A² (exp(‖q+k‖²) - 1) / m.

    Hashes that share W, an overlap subtracted twice, or a 1/m dropped, break one or the other.
    """
    estimates = sample(METHODS[name])
    weight, second, fourth = moments()
    off = miss_probability(METHODS[name])
    variance = off * second
    # Two pairs do not vary: q = k is always on the support, and q = -k has q + k = 0.
    random = variance > 1e-12
    assert random.sum() >= 2
    constant = estimates[:, ~random]
    np.testing.assert_allclose(constant, np.broadcast_to(weight[~random], constant.shape), rtol=1e-12)

    sigma = np.sqrt(variance / SEEDS)[random]
    assert (np.abs(estimates.mean(axis=0) - weight)[random] / sigma).max() < CRITICAL
    # A bias of 12% of the weight would not be missed.
    assert (0.12 * weight[random] / sigma).min() > CRITICAL + POWER

    sigma = np.sqrt((off * fourth - variance**2) / SEEDS)[random]
    squares = (estimates - weight) ** 2
    assert (np.abs(squares.mean(axis=0) - variance)[random] / sigma).max() < CRITICAL
    # Twice the variance (one table counted for two makes more, a dropped 1/m makes m times) neither.
    assert (variance[random] / sigma).min() > CRITICAL + POWER


@pytest.mark.parametrize(("n_bits", "n_tables"), [(1, 1), (2, 1), (2, 3), (4, 5)])
def test_collisions_are_as_frequent_as_their_closed_form(n_bits, n_tables):
    query, key = pairs()
    parts = sb.Scatterbrain(None, sb.RandomHyperplanes(n_bits, n_tables))
    hits = sum(
        sb.attention_matrix(query, key, method=parts, normalize=False, seed=seed)[0] > 0
        for seed in range(1000)
    )
    p = parts.sparse.collision_probability(np, query, key)[0]
    np.testing.assert_array_equal(hits[[0, 3]], [1000, 0])
    for count, chance in zip(hits[1:3], p[1:3], strict=True):
        assert stats.binomtest(int(count), 1000, chance).pvalue > ALARM / COMPARISONS


def test_lse_and_stderr_hold_over_seeds():
    """To first order in the features' errors, stderr² is the mean squared error of the output."""
    rng = np.random.default_rng(3)
    q, k = 0.12 * rng.standard_normal((4, 8)), 0.12 * rng.standard_normal((200, 8))
    v = rng.standard_normal((200, 4))
    parts = sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(3))
    exact = sb.estimate(q, k, v, method="exact", scale=1.0)
    runs = [sb.estimate(q, k, v, method=parts, scale=1.0, seed=seed) for seed in range(500)]
    errors = np.array([((e.output - exact.output) ** 2).mean() for e in runs])
    claimed = np.array([(e.stderr**2).mean() for e in runs])
    spread = (errors - claimed).std() / math.sqrt(len(runs))
    assert abs(errors.mean() - claimed.mean()) < CRITICAL * spread
    assert 0.5 * errors.mean() / spread > CRITICAL + POWER  # half as large again would not be missed
    normalizers = np.array([np.exp(e.lse - exact.lse).mean() for e in runs])
    assert abs(normalizers.mean() - 1) < CRITICAL * normalizers.std() / math.sqrt(len(runs))


def test_the_draws_of_the_two_parts_are_independent_and_standard_normal():
    features = np.concatenate([sb.random.Draws(seed).features(50, 20).ravel() for seed in range(40)])
    hashes = np.concatenate(
        [sb.random.Draws(seed).hash_generator().standard_normal(1000) for seed in range(40)]
    )
    n = features.size
    for x in (features, hashes):
        assert stats.kstest(x, "norm").pvalue > ALARM / COMPARISONS
    assert abs(np.mean(features * hashes)) * math.sqrt(n) < CRITICAL
