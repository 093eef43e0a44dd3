"""The ledger adds up, is complete, and its comparisons reject what they should."""

from __future__ import annotations

import math
import re
from pathlib import Path

import alarms
import moments
import numpy as np
import pytest
from scipy import stats

HERE = Path(__file__).parent


def test_the_suite_has_a_false_alarm_with_probability_of_at_most_one_in_a_million():
    assert alarms.total_level() <= alarms.ALARM


def test_what_is_declared_is_what_the_tests_compare():
    named = set()
    for path in HERE.glob("test_*.py"):
        named |= set(re.findall(r'alarms\.compare_\w+\(\s*"([^"]+)"', path.read_text(encoding="utf-8")))
    assert named - {"trial", "undeclared"} == set(alarms.LEDGER)


@pytest.fixture
def trial(monkeypatch):
    """An entry of its own, not recorded."""
    monkeypatch.setitem(alarms.LEDGER, "trial", alarms.Entry(2, 1e-3))
    monkeypatch.setattr(alarms, "RECORD", None)
    yield
    alarms._done.pop("trial", None)


def test_no_more_comparisons_than_declared(trial):
    for case in "ab":
        alarms.compare_count("trial", case, 50, 100, 0.5)
    with pytest.raises(AssertionError, match="more than the 2"):
        alarms.compare_count("trial", "c", 50, 100, 0.5)
    with pytest.raises(AssertionError, match="twice"):
        alarms.compare_count("trial", "a", 50, 100, 0.5)
    with pytest.raises(KeyError):
        alarms.compare_count("undeclared", "a", 50, 100, 0.5)


def test_critical_values_have_the_level(trial):
    normal = alarms.Sum(4.0, 0.0, 100)
    assert normal.critical(1e-6) == pytest.approx(stats.norm.isf(5e-7))
    skewed = alarms.Sum(4.0, 0.5, 100)
    assert skewed.critical(1e-6) > normal.critical(1e-6)
    accepted = alarms.compare_sum("trial", "within", 0.0, alarms.Sum(4.0, 0.0, 100))
    with pytest.raises(AssertionError, match="standard deviations"):
        alarms.compare_sum("trial", "beyond", 1.01 * accepted, alarms.Sum(4.0, 0.0, 100))
    with pytest.raises(AssertionError, match="larger sample"):
        alarms.Sum(4.0, 1.0, 100).critical(1e-6)


def test_counts_are_rejected_by_exact_tails(trial):
    lower, upper = alarms.compare_count("trial", "within", 50, 100, 0.5)
    assert stats.binom.cdf(lower - 1, 100, 0.5) <= 5e-4 < stats.binom.cdf(lower, 100, 0.5)
    assert stats.binom.sf(upper, 100, 0.5) <= 5e-4 < stats.binom.sf(upper - 1, 100, 0.5)
    with pytest.raises(AssertionError, match="expected"):
        alarms.compare_count("trial", "beyond", upper + 1, 100, 0.5)


def test_bounded_means_are_rejected_by_hoeffdings_bound(trial):
    values = np.full(1000, 0.95)
    lower, upper = alarms.compare_bounded("trial", "within", values, 0.92, 0.98)
    for accepted, mean in ((lower, 0.92), (upper, 0.98)):
        assert alarms.miss_bounded(mean, accepted, 1000) == pytest.approx(1e-3)
    with pytest.raises(AssertionError, match="expected"):
        alarms.compare_bounded("trial", "beyond", values - 0.96 + lower, 0.92, 0.98)


def test_moments_are_those_of_a_sample():
    """Against quadrature: E (Y - 1)^n of one feature, and of the mean of three by adding three of them."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    square = 0.5
    one = np.exp(math.sqrt(square) * nodes - square / 2)
    three = (one[:, None, None] + one[:, None] + one) / 3
    joint = weights[:, None, None] * weights[:, None] * weights
    pair = np.cosh(math.sqrt(square) * nodes) * math.exp(-square / 2)
    for m, paired, values, chance in (
        (1, False, one, weights),
        (3, False, three, joint),
        (2, True, pair, weights),
    ):
        expected = [(chance * (values - 1) ** n).sum() for n in range(7)]
        np.testing.assert_allclose(
            moments.mean_of_features(square, m, paired), expected, rtol=1e-9, atol=1e-12
        )
    mixed = moments.mixture(moments.mean_of_features(square, 1), 0.3)
    squares, chance = np.append((one - 1) ** 2, 0), np.append(0.3 * weights, 0.7)
    mean = (chance * squares).sum()
    expected = [mean, (chance * (squares - mean) ** 2).sum(), (chance * (squares - mean) ** 3).sum()]
    np.testing.assert_allclose(moments.of_square(mixed), expected, rtol=1e-9)
