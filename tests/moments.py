"""Central moments in closed form: of the features' mean, of Theorem 2's mixture, and of its square.

Y = exp(w·z - ‖z‖²/2), with w standard normal, is log-normal with E Yⁿ = exp((n² - n) ‖z‖² / 2). A low-rank
weight is A times the mean of m such numbers, z = q + k.
"""

from __future__ import annotations

from math import comb

import numpy as np


def mean_of_features(square: float, m: int, paired: bool = False) -> list[float]:
    """Central moments 0 to 6 of the mean of m features' products, in units of A; square = ‖q + k‖².

    If paired, of m / 2 products exp(-‖z‖²/2) cosh(w·z).
    """
    raw = [np.exp((n * n - n) / 2 * square) for n in range(7)]
    if paired:
        m //= 2
        raw = [_of_cosh(n, square) for n in range(7)]
    c = [sum(comb(n, j) * raw[j] * (-1) ** (n - j) for j in range(n + 1)) for n in range(7)]
    cumulants = [
        c[2],
        c[3],
        c[4] - 3 * c[2] ** 2,
        c[5] - 10 * c[3] * c[2],
        c[6] - 15 * c[4] * c[2] - 10 * c[3] ** 2 + 30 * c[2] ** 3,
    ]
    # The cumulants of a mean of m are those of one divided by m^(order - 1).
    k2, k3, k4, k5, k6 = (k / m ** (i + 1) for i, k in enumerate(cumulants))
    return [
        1.0,
        0.0,
        k2,
        k3,
        k4 + 3 * k2**2,
        k5 + 10 * k3 * k2,
        k6 + 15 * k4 * k2 + 10 * k3**2 + 15 * k2**3,
    ]


def _of_cosh(n: int, square: float) -> float:
    """E (exp(-‖z‖²/2) cosh(w·z))ⁿ, the power of the cosh multiplied out."""
    terms = (comb(n, j) * np.exp((n - 2 * j) ** 2 * square / 2) for j in range(n + 1))
    return sum(terms) / 2**n * np.exp(-n * square / 2)


def mixture(moments: list[float], off: float) -> list[float]:
    """Central moments where the weight is random with probability `off`, and its mean otherwise."""
    return [1.0, *(off * moment for moment in moments[1:])]


def of_square(moments: list[float]) -> tuple[float, float, float]:
    """Mean, variance and third central moment of the squared deviation."""
    mean = moments[2]
    variance = moments[4] - mean**2
    return mean, variance, moments[6] - 3 * mean * moments[4] + 2 * mean**3
