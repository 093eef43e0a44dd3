"""Theorem 2, collisions and the standard error over many draws, through the ledger of `alarms`.

Draws are cheap in a block of coordinates of one's own: vectors that are zero elsewhere see their own columns
of W and of the hyperplanes alone, so that blocks of one call are independent, as calls of other seeds are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import alarms
import moments
import numpy as np
import pytest
from alarms import MISS, Sum
from problems import own_coordinates
from scipy import optimize, stats

import scatterbrain_core as sb

pytestmark = pytest.mark.statistics

# In each block one query and four keys of this norm at these angles to it; the last, opposite to the query,
# has q + k = 0: its weight is exact by either part, and turns normalised weights into absolute ones.
NORM, ANGLES = 0.3, np.deg2rad([0, 60, 100, 180])
SQUARES = 2 * NORM**2 * (1 + np.cos(ANGLES))  # ‖q + k‖²
WEIGHTS = np.exp(NORM**2 * np.cos(ANGLES))
HEADS, BLOCKS, CALLS = 4, 16, 192
N = HEADS * BLOCKS * CALLS

M = 32
FEATURES = sb.PositiveFeatures(M)
ONE, TWO = sb.RandomHyperplanes(2, 1), sb.RandomHyperplanes(2, 2)
METHODS = {
    "performer": sb.Scatterbrain(FEATURES),
    "one table": sb.Scatterbrain(FEATURES, ONE),
    "two tables": sb.Scatterbrain(FEATURES, TWO),
    "paired": sb.Scatterbrain(sb.PositiveFeatures(M, paired=True)),
}
# Other paths give the same numbers from the same draws, which test_oracle and test_exactness compare.
RUNS = [
    ("performer", "dense", False),
    ("performer", "tiles", True),
    ("one table", "dense", False),
    ("one table", "tiles", True),
    ("two tables", "tiles", False),
    ("paired", "dense", False),
]
LIMITED = sb.RandomHyperplanes(1, 1, 20)


def blocks():
    """Query and key, shape (HEADS, 4 BLOCKS, D): the four keys of a block, and its query at their places."""
    key = NORM * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
    query = np.broadcast_to([NORM, 0.0], key.shape)
    turns = np.random.default_rng(7).uniform(0, 2 * np.pi, (HEADS, BLOCKS, 1, 1))
    turn = np.block([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]])
    return own_coordinates(query @ turn), own_coordinates(key @ turn)


def weights_of(parts, path, is_causal=False, calls=CALLS):
    """Estimates of exp(q·k) within the blocks over all draws, shape (N, 4) at the usual number of calls.

    The query is the one at its block's last place, so that it sees the block's keys if causal too. Tiles give
    normalised weights, which the last key's exact weight makes absolute.
    """
    query, key = blocks()
    value = np.broadcast_to(np.eye(4 * BLOCKS), (HEADS, 4 * BLOCKS, 4 * BLOCKS)).copy()
    found = []
    for seed in alarms.seeds(calls):
        arguments = {"method": parts, "scale": 1.0, "seed": seed, "is_causal": is_causal}
        if path == "dense":
            matrix = sb.attention_matrix(query, key, normalize=False, **arguments)
        else:
            matrix = sb.attention(query, key, value, **arguments)
        within = matrix.reshape(HEADS, BLOCKS, 4, BLOCKS, 4)[:, range(BLOCKS), 3, range(BLOCKS)]
        found.append(within.reshape(-1, 4))
    found = np.concatenate(found)
    return found if path == "dense" else found * (WEIGHTS[3] / found[:, 3:])


def off_support(parts):
    """1 - p of each pair."""
    if parts.sparse is None:
        return np.ones(4)
    one = (1 - ANGLES / np.pi) ** parts.sparse.n_bits
    return (1 - one) ** parts.sparse.n_tables


@dataclass(frozen=True)
class Pair:
    """What Theorem 2 says of one pair's weight, in units of exp(q·k), and of sums over n draws of it."""

    square: float
    off: float
    n: int
    paired: bool = False

    @property
    def moments(self):
        return moments.mixture(self.pure, self.off)

    @property
    def n_rows(self):
        return M // 2 if self.paired else M

    def single_feature(self, excess):
        """Chance that one product of all features is above 1 + excess."""
        root = math.sqrt(self.square)
        quantile = math.log1p(excess) / root + root / 2
        if self.paired:  # half as many products, each with two tails
            quantile = math.acosh((1 + excess) * math.exp(self.square / 2)) / root
        return self.n * M * self.off * stats.norm.sf(quantile)

    @property
    def sums(self):
        """Law of the sum of the deviations."""
        return Sum(
            self.n * self.moments[2],
            self.n * self.moments[3],
            self.n,
            single=lambda x: self.single_feature(self.n_rows * x),
        )

    @property
    def squares(self):
        """Law of the sum of their squares, less its mean."""
        _, variance, third = moments.of_square(self.moments)
        return Sum(
            self.n * variance,
            self.n * third,
            self.n,
            single=lambda x: self.single_feature(self.n_rows * math.sqrt(x)),
        )

    def sd_of_squares(self, off):
        """Standard deviation of the sum of squares if the weight were random with probability `off`."""
        return math.sqrt(self.n * moments.of_square(moments.mixture(self.pure, off))[1])

    @property
    def pure(self):
        return moments.mean_of_features(self.square, M, self.paired)


@pytest.mark.parametrize(("name", "path", "is_causal"), RUNS)
def test_mean_and_variance_are_theorem_2s(name, path, is_causal):
    """E[estimate] = exp(q·k) and Var = (1 - p) · Var L, with Var L = A² (exp(‖q+k‖²) - 1) / m."""
    parts = METHODS[name]
    # The squares of pairs are more skewed.
    deviation = weights_of(parts, path, is_causal, 2 * CALLS if name == "paired" else CALLS) / WEIGHTS - 1
    n = len(deviation)
    for j, off in enumerate(off_support(parts)):
        if off * SQUARES[j] < 1e-12:  # q = k is always on the support
            np.testing.assert_allclose(deviation[:, j], 0, atol=1e-12)
            continue
        pair = Pair(SQUARES[j], off, n, parts.low_rank.paired)
        case = f"{name}, {path}, {np.rad2deg(ANGLES[j]):.0f} degrees"
        accepted = alarms.compare_sum("mean of a weight", case, deviation[:, j].sum(), pair.sums)
        of_squares = (deviation[:, j] ** 2).sum() - n * pair.moments[2]
        accepted_squares = alarms.compare_sum("variance of a weight", case, of_squares, pair.squares)

        sd = math.sqrt(pair.sums.variance)
        assert alarms.miss(n * off * (M - 1), accepted, M * sd) <= MISS  # 1/m dropped
        if parts.sparse is TWO and j == 1:
            both = (1 - ANGLES[j] / np.pi) ** 4  # in both tables
            spread = math.sqrt(sd**2 + n * both * (1 - both))
            assert alarms.miss(n * both, accepted, spread) <= MISS  # an overlap counted twice
            # L taken off twice on an overlap leaves the mean, but is random there too.
            shift = n * both * pair.pure[2]
            assert alarms.miss(shift, accepted_squares, pair.sd_of_squares(off + both)) <= MISS


def test_off_a_cut_support_the_weights_are_the_features(is_causal):
    """Where p has no closed form: given the support, the rest has mean exp(q·k) and variance Var L."""
    is_off = weights_of(sb.Scatterbrain(None, LIMITED), "dense", is_causal) == 0
    deviation = weights_of(sb.Scatterbrain(FEATURES, LIMITED), "tiles", is_causal) / WEIGHTS - 1
    np.testing.assert_allclose(deviation[~is_off], 0, atol=1e-12)
    for j in (1, 2):
        chosen = deviation[is_off[:, j], j]
        assert 0.1 * N < len(chosen) < 0.95 * N
        pair = Pair(SQUARES[j], 1.0, len(chosen))
        case = f"{'causal' if is_causal else 'all'}, {np.rad2deg(ANGLES[j]):.0f} degrees"
        accepted = alarms.compare_sum("mean off the support", case, chosen.sum(), pair.sums)
        of_squares = (chosen**2).sum() - pair.n * pair.moments[2]
        alarms.compare_sum("variance off the support", case, of_squares, pair.squares)
        sd = math.sqrt(pair.sums.variance)
        assert alarms.miss(pair.n * (M - 1), accepted, M * sd) <= MISS  # 1/m dropped


def test_hashes_do_not_share_the_features_projections():
    """A hash that is the sign of a feature's own projection biases that feature off the support.

    Of two features here the first would be shared. Under its weight exp(w·z - ‖z‖²/2), z = q + k, its w has
    mean z, and the two signs differ with a bivariate normal probability other than θ/π.
    """
    norm, m, angle = 0.5, 2, math.pi / 2
    parts = sb.Scatterbrain(sb.PositiveFeatures(m), sb.RandomHyperplanes(1, 1))
    heads = 256
    query = own_coordinates(np.broadcast_to([norm, 0.0], (heads, 1, 1, 2)))
    key = own_coordinates(np.broadcast_to([0.0, norm], (heads, 1, 1, 2)))
    found = np.concatenate(
        [
            sb.attention_matrix(query, key, method=parts, scale=1.0, seed=seed, normalize=False).ravel()
            for seed in alarms.seeds(96)
        ]
    )
    n, off, square = len(found), angle / math.pi, 2 * norm**2
    law = moments.mixture(moments.mean_of_features(square, m), off)
    root = math.sqrt(square)
    sums = Sum(
        n * law[2],
        n * law[3],
        n,
        single=lambda x: n * m * off * stats.norm.sf(math.log1p(m * x) / root + root / 2),
    )
    accepted = alarms.compare_sum("hashes and features", "one of two shared", (found - 1).sum(), sums)

    # Weighted by the product to the power t, w has mean t z; at a right angle its two signs are independent.
    _, once, twice = (2 * stats.norm.cdf(t * norm) * stats.norm.cdf(-t * norm) for t in range(3))
    shift = (once - off) / m
    shared = twice * math.exp(square) - 2 * once + off
    variance = (shared + off * math.expm1(square)) / m**2 - shift**2
    assert alarms.miss(n * shift, accepted, math.sqrt(n * variance)) <= MISS


@pytest.mark.parametrize(("n_bits", "n_tables"), [(1, 1), (2, 3), (4, 5)])
def test_collisions_are_as_frequent_as_their_closed_form(n_bits, n_tables):
    parts = sb.Scatterbrain(None, sb.RandomHyperplanes(n_bits, n_tables))
    hits = (weights_of(parts, "dense") > 0).sum(axis=0)
    p = 1 - off_support(parts)
    np.testing.assert_allclose(parts.sparse.collision_probability(np, *pair_in_the_plane())[0], p, atol=1e-7)
    assert (hits[0], hits[3]) == (N, 0)
    accepted = {}
    for j in (1, 2):
        case = f"{n_bits} bits, {n_tables} tables, {np.rad2deg(ANGLES[j]):.0f} degrees"
        accepted[j] = alarms.compare_count("collisions", case, int(hits[j]), N, p[j])
    for bits, tables in ((n_bits + 1, n_tables), (n_bits, n_tables + 1)):  # one more of either
        other = 1 - off_support(sb.Scatterbrain(None, sb.RandomHyperplanes(bits, tables)))
        assert min(alarms.miss_count(*accepted[j], N, other[j]) for j in (1, 2)) <= MISS


def pair_in_the_plane():
    return np.array([[NORM, 0.0]]), NORM * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)


def test_the_closed_forms_are_those_of_the_paper():
    query, key = pair_in_the_plane()
    expected = WEIGHTS**2 * np.expm1(SQUARES) / M
    got = [weight**2 * moments.mean_of_features(s, M)[2] for weight, s in zip(WEIGHTS, SQUARES, strict=True)]
    np.testing.assert_allclose(got, expected, atol=1e-15)
    np.testing.assert_allclose(FEATURES.variance(np, query, key)[0], expected, atol=1e-15)
    paired = [
        weight**2 * Pair(s, 1.0, N, True).moments[2] for weight, s in zip(WEIGHTS, SQUARES, strict=True)
    ]
    np.testing.assert_allclose(METHODS["paired"].low_rank.variance(np, query, key)[0], paired, atol=1e-15)


def test_the_draws_of_the_two_parts_are_independent_and_standard_normal():
    runs = [sb.random.Draws(seed) for seed in alarms.seeds(40)]
    features = np.concatenate([run.feature_generator().standard_normal(1000) for run in runs])
    hashes = np.concatenate([run.support_generator().standard_normal(1000) for run in runs])
    alarms.compare_uniform("draws are normal", "features", stats.norm.cdf(features))
    alarms.compare_uniform("draws are normal", "hashes", stats.norm.cdf(hashes))
    n = features.size
    # Products of independent normal numbers have skewness 0.
    accepted = alarms.compare_sum("draws are independent", "products", features @ hashes, Sum(n, 0.0, n))
    assert alarms.miss(n / 10, accepted, math.sqrt(n)) <= MISS  # a tenth of the draws shared


@dataclass(frozen=True)
class Calibration:
    """Estimates of one kind for many heads, each with draws of its own."""

    n_keys: int
    m: int
    sparse: sb.RandomHyperplanes | None
    is_causal: bool
    heads: int
    calls: int

    @property
    def n(self):
        return self.heads * self.calls

    @property
    def method(self):
        return sb.Scatterbrain(sb.PositiveFeatures(self.m), self.sparse)


CALIBRATIONS = {
    "features": Calibration(200, 64, None, False, 32, 14),
    "features, m = 256": Calibration(100, 256, None, False, 32, 14),
    "with a table": Calibration(100, 64, sb.RandomHyperplanes(2, 1), False, 32, 14),
    "causal": Calibration(40, 64, None, True, 32, 14),
    "causal with a table": Calibration(40, 64, sb.RandomHyperplanes(1, 1), True, 32, 14),
}
DIM = 4
TARGET = 0.25  # mean of ‖q + k‖²


def problem(kind):
    rng = np.random.default_rng(11)
    root = math.sqrt(TARGET / (2 * DIM))
    query, key = (root * rng.standard_normal((kind.heads, 1, kind.n_keys, DIM)) for _ in "qk")
    return own_coordinates(query), own_coordinates(key), rng.standard_normal((kind.heads, kind.n_keys, 3))


@cache
def calibrate(name):
    """Error and standard error of the output, shape (n, rows, 3), and lse of the last row, shape (n,)."""
    kind = CALIBRATIONS[name]
    query, key, value = problem(kind)
    rows = slice(None) if kind.is_causal else slice(-4, None)
    seen = slice(11, None, 7) if kind.is_causal else slice(None)  # the first rows of a sequence see few keys
    arguments = {"scale": 1.0, "is_causal": kind.is_causal}
    exact = sb.attention(query, key, value, method="exact", **arguments)
    found = []
    for seed in alarms.seeds(kind.calls):
        est = sb.estimate(query[:, rows], key, value, method=kind.method, seed=seed, **arguments)
        found.append(((est.output - exact[:, rows])[:, seen], est.stderr[:, seen], est.lse[:, -1]))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def test_intervals_of_the_standard_error_cover_the_exact_output():
    """output ± 1.96 stderr holds the exact output in 92 to 98 of 100 cases, ± 1 stderr in 60 to 75.

    Rows and columns of a head share its draws: the unit is the head, its number the share that it covers.
    """
    ratios = {}
    for name in CALIBRATIONS:
        error, stderr, _ = calibrate(name)
        ratios[name] = np.abs(error) / stderr
    for name, ratio in ratios.items():
        covered = (ratio <= 1.96).mean(axis=(1, 2))
        lower, _ = alarms.compare_bounded("coverage at 1.96", name, covered, 0.92, 0.98)
        half = 2 * stats.norm.cdf(1.96 / 2) - 1
        assert alarms.miss_bounded(half, lower, len(covered)) <= MISS  # standard errors half as large
    if alarms.FRESH == 0:
        # At the suite's own seeds nothing is random: there the measured share itself must lie within.
        for name, ratio in ratios.items():
            assert 0.92 <= (ratio <= 1.96).mean() <= 0.98, name
    within = np.concatenate([(ratio <= 1).mean(axis=(1, 2)) for ratio in ratios.values()])
    lower, upper = alarms.compare_bounded("coverage at 1", "all", within, 0.60, 0.75)
    for factor, accepted in ((0.5, lower), (1.6, upper)):  # standard errors half or 1.6 times as large
        share = 2 * stats.norm.cdf(factor) - 1
        assert alarms.miss_bounded(share, accepted, len(within)) <= MISS


def normaliser_law(kind):
    """Exact normaliser of every head's last row, shape (heads, 1), and the law of the sum over all draws.

    The sum is of exp(lse) in units of the exact normaliser. Given the support, a row's far field is the mean
    of m independent features' sums over the keys off it, Σ s_j Y_j with E Y_j Y_l = exp(z_j·z_l) and so on.
    """
    query, key, _ = problem(kind)
    z = query[:, -1:] + key
    weight = np.exp(query[:, -1:] @ key.swapaxes(-1, -2))[:, 0]
    share = weight / weight.sum(axis=-1, keepdims=True)
    raw = np.exp(z @ z.swapaxes(-1, -2))
    off = np.ones((kind.calls, kind.heads, kind.n_keys))
    if kind.sparse is not None:
        method = sb.Scatterbrain(None, kind.sparse)
        for call, seed in enumerate(alarms.seeds(kind.calls)):
            off[call] = sb.attention_matrix(query[:, -1:], key, method=method, seed=seed)[:, 0] == 0
    lost = off * share
    pairs = np.einsum("chj,hjl,chl->ch", lost, raw, lost)
    triples = sum(((raw * (raw * one[:, None, :] @ raw)) @ one[..., None])[..., 0] * one for one in lost)
    total = lost.sum(axis=-1)
    variance = (pairs - total**2).sum() / kind.m
    third = (triples.sum() - 3 * (pairs * total).sum() + 2 * (total**3).sum()) / kind.m**2
    length = np.linalg.norm(z, axis=-1)

    def single(x):
        # Σ s_j Y_j = t needs some Y_j beyond exp(a ‖z_j‖ - ‖z_j‖²/2), its quantile at a, if those sum to t.
        def beyond(a):
            return (share * np.exp(a * length - length**2 / 2)).sum(axis=-1).max() - 1 - kind.m * x

        return kind.n * kind.m * kind.n_keys * stats.norm.sf(optimize.brentq(beyond, 0, 100))

    return weight.sum(axis=-1), Sum(variance, third, kind.n, single)


@pytest.mark.parametrize("name", ["features", "with a table"])
def test_the_normaliser_is_unbiased(name):
    kind = CALIBRATIONS[name]
    exact, law = normaliser_law(kind)
    ratio = np.exp(calibrate(name)[2]) / np.tile(exact, kind.calls)
    accepted = alarms.compare_sum("normaliser", name, (ratio - 1).sum(), law)
    sd = math.sqrt(law.variance)
    assert alarms.miss(0.1 * law.n, accepted, 1.1 * sd) <= MISS  # one key in ten counted twice
