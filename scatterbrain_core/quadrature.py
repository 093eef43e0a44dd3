"""Gauss-Legendre quadrature on the host, for the closed forms that the array API has no function for."""

from __future__ import annotations

import math
from functools import cache


@cache
def gauss_legendre(n: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights of the n-point rule on [0, 1], exact for polynomials of degree 2n - 1."""
    rule = []
    for i in range(n):
        # Tricomi's first approximation; Newton's method doubles its digits at every step.
        x = math.cos(math.pi * (i + 0.75) / (n + 0.5))
        for _ in range(6):
            value, slope = _legendre(n, x)
            x -= value / slope
        _, slope = _legendre(n, x)
        rule.append(((1 - x) / 2, 1 / ((1 - x * x) * slope**2)))
    return tuple(rule)


def _legendre(n: int, x: float) -> tuple[float, float]:
    """Legendre polynomial of degree n and its derivative, -1 < x < 1."""
    before, value = 1.0, x
    for degree in range(2, n + 1):
        before, value = value, ((2 * degree - 1) * x * value - (degree - 1) * before) / degree
    return value, n * (x * value - before) / (x * x - 1)
