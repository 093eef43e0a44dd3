"""The ledger of the suite's random comparisons, and the tests they go through.

A comparison has a false alarm with probability at most its level; `LEDGER` declares how many comparisons of
which level one run of the suite makes, so that the sum of the levels, which bounds the probability of any
false alarm (Bonferroni, for dependent comparisons too), is known before the run. A test that compares more
often than it declared, or under another name, fails.

Nothing on the side of the null hypothesis is estimated: means are compared in units of a standard deviation
in closed form, counts by exact binomial tails, and what has no closed form (coverage) by a bound that needs
none (Hoeffding's, for independent numbers in [0, 1]).

A mean of n numbers of skewness γ is not normal far out. Its tail is, as z grows slower than n^(1/6)
(Cramér's moderate deviations; Petrov, *Sums of Independent Random Variables*, 1975, chapter VIII),

    P(|mean - μ| > z sd) = 2 Φ(-z) exp(|γ| z³ / (6 √n)) at most,

to which log-normal numbers add the chance that a single one is that large (Nagaev, *Large deviations of sums
of independent random variables*, Annals of Probability 7, 1979). The critical z is where this sum is the
level, and the sample must be so large that the factor is below 10 there.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats

ALARM = 1e-6  # of the whole suite
LEVEL = 5e-9  # of one comparison
MISS = 1e-6  # of a named discrepancy
LARGEST_FACTOR = 10.0


@dataclass(frozen=True)
class Entry:
    """Comparisons that one run of the suite makes under one name."""

    count: int
    level: float = LEVEL

    @property
    def total(self) -> float:
        return self.count * self.level


LEDGER = {
    "mean of a weight": Entry(15),  # 3 random pairs of features alone, 2 of a method with hashes
    "variance of a weight": Entry(15),
    "mean off the support": Entry(4),
    "variance off the support": Entry(4),
    "hashes and features": Entry(1),
    "collisions": Entry(6),
    "normaliser": Entry(2),
    "coverage at 1.96": Entry(5),
    "coverage at 1": Entry(1),
    "cells": Entry(12),
    "cross-polytopes": Entry(48),
    "figure of theorem 2": Entry(5),
    "draws are normal": Entry(2),
    "draws are independent": Entry(1),
}

# Another number draws everything afresh: `make statistics` runs through twenty.
FRESH = int(os.environ.get("SCATTERBRAIN_TEST_SEED", "0"))
RECORD = os.environ.get("SCATTERBRAIN_TEST_RECORD")


def total_level() -> float:
    """Upper bound of the probability that a run of the suite has a false alarm."""
    return math.fsum(entry.total for entry in LEDGER.values())


def seeds(n: int) -> range:
    """Seeds of `n` calls."""
    return range(FRESH * 1_000_000, FRESH * 1_000_000 + n)


@dataclass(frozen=True)
class Sum:
    """A sum of independent summands with known moments, less its mean.

    Attributes
    ----------
    variance, third : float
        Variance and third central moment of the sum.
    n : int
        Number of summands.
    single : callable, optional
        Upper bound of the chance that one of the summands deviates by more than its argument.
    """

    variance: float
    third: float
    n: int
    single: Callable[[float], float] | None = None

    @property
    def skewness(self) -> float:
        """Of a summand, where all are alike."""
        return self.third / self.variance**1.5 * math.sqrt(self.n)

    def log_factor(self, z: float) -> float:
        return abs(self.third) / self.variance**1.5 * z**3 / 6

    def tail(self, z: float) -> float:
        normal = 2 * stats.norm.sf(z) * math.exp(self.log_factor(z))
        return normal + (self.single(z * math.sqrt(self.variance)) if self.single else 0.0)

    def critical(self, level: float) -> float:
        """z at which the tail is `level`."""
        largest = next((z for z in np.arange(0.125, 12, 0.125) if self.tail(z) < level), None)
        assert largest is not None, f"no critical value below 12 sd: skewness {self.skewness:.3g}, n {self.n}"
        z = optimize.brentq(lambda z: math.log(self.tail(z) / level), largest - 0.125, largest)
        factor = math.exp(self.log_factor(z))
        assert factor < LARGEST_FACTOR, f"factor {factor:.3g}: a larger sample or smaller norms are needed"
        return z


def compare_sum(name: str, case: str, deviation: float, law: Sum) -> float:
    """Compare a sum, less its mean, with its law; returns the critical deviation."""
    level = _enter(name, case)
    z, critical = abs(deviation) / math.sqrt(law.variance), law.critical(level)
    _record(name, case, level, law.tail(min(z, critical)), z=z, n=law.n, skewness=law.skewness)
    assert z < critical, f"{name}, {case}: {z:.2f} standard deviations from the mean, critical {critical:.2f}"
    return critical * math.sqrt(law.variance)


def compare_count(name: str, case: str, hits: int, n: int, p: float, slack: float = 0.0) -> tuple[int, int]:
    """Compare a binomial count with its law, both tails exact; returns the accepted counts.

    With a slack the chance of a hit may be anywhere within p ± slack.
    """
    level = _enter(name, case)
    least, most = stats.binom(n, max(p - slack, 0.0)), stats.binom(n, min(p + slack, 1.0))
    lower, upper = int(least.ppf(level / 2)), int(most.isf(level / 2))  # beyond: at most level / 2 each
    chance = min(1.0, 2 * least.cdf(hits), 2 * most.sf(hits - 1))
    _record(name, case, level, chance, hits=hits, p=p, n=n, skewness=(1 - 2 * p) / math.sqrt(p * (1 - p)))
    assert lower <= hits <= upper, f"{name}, {case}: {hits} of {n}, expected {lower} to {upper}"
    return lower, upper


def compare_bounded(
    name: str, case: str, values: np.ndarray, least: float, most: float
) -> tuple[float, float]:
    """Whether independent numbers in [0, 1] may have means within [least, most]; returns the accepted means.

    By P(mean <= x) <= exp(-n KL(x, least)) for x < least (Hoeffding 1963, theorem 1), and so above; only one
    side can be false at a time.
    """
    level = _enter(name, case)
    n, mean = len(values), float(np.mean(values))
    lower = optimize.brentq(lambda x: n * _divergence(x, least) + math.log(level), 1e-12, least)
    upper = 1.0
    if n * _divergence(1.0, most) > -math.log(level):
        upper = optimize.brentq(lambda x: n * _divergence(x, most) + math.log(level), most, 1 - 1e-15)
    bound = least if mean < least else most if mean > most else mean
    _record(name, case, level, math.exp(-n * _divergence(mean, bound)), mean=mean, n=n, skewness=None)
    assert lower < mean <= upper, f"{name}, {case}: mean {mean:.4f}, expected {lower:.4f} to {upper:.4f}"
    return lower, upper


def compare_uniform(name: str, case: str, values: np.ndarray) -> None:
    """Kolmogorov-Smirnov test that independent numbers are uniform on [0, 1], by its law for finite n."""
    level = _enter(name, case)
    chance = stats.kstest(values, "uniform", method="exact").pvalue
    _record(name, case, level, chance, n=len(values), skewness=None)
    assert chance > level, f"{name}, {case}: Kolmogorov-Smirnov p-value {chance:.3g}"


def miss(shift: float, accepted: float, sd: float) -> float:
    """Chance that a sum of mean `shift` and standard deviation `sd` stays within `accepted`."""
    return float(stats.norm.cdf((accepted - abs(shift)) / sd))


def miss_count(lower: int, upper: int, n: int, p: float) -> float:
    """Chance that a binomial count falls within the accepted ones."""
    law = stats.binom(n, p)
    return float(law.cdf(upper) - law.cdf(lower - 1))


def miss_bounded(mean: float, accepted: float, n: int) -> float:
    """Upper bound of the chance that the mean of n numbers in [0, 1] falls on the side of `accepted`."""
    return math.exp(-n * _divergence(accepted, mean))


def _divergence(x: float, p: float) -> float:
    """Kullback-Leibler divergence of Bernoulli laws."""
    terms = ((x, p), (1 - x, 1 - p))
    return sum(a * math.log(a / b) for a, b in terms if a > 0)


_done: defaultdict[str, set[str]] = defaultdict(set)


def _enter(name: str, case: str) -> float:
    entry = LEDGER[name]
    assert case not in _done[name], f"{name} compares {case!r} twice"
    _done[name].add(case)
    assert len(_done[name]) <= entry.count, f"{name} makes more than the {entry.count} comparisons declared"
    return entry.level


def _record(name: str, case: str, level: float, chance: float, **seen: float | None) -> None:
    if RECORD:
        line = {"name": name, "case": case, "level": level, "chance": chance, **seen}
        with Path(RECORD).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
