r"""Rows of W that are coupled to lower the variance, and the moment that their coupling costs or saves.

For two rows :math:`w_1, w_2` whose directions are at cosine γ, uniformly turned, and whose norms are
independent, :math:`w_1 + w_2` has a uniform direction and squared norm :math:`r_1^2 + r_2^2 + 2γr_1r_2`.
With :math:`r_1^2 + r_2^2 = u` of law :math:`\chi^2_{2D}` and :math:`2r_1r_2 = u\sin ψ`, ψ of density
:math:`\propto\sin^{D-1}ψ`,

.. math:: E[e^{(w_1+w_2)\cdot z}] = E_ψ\,{}_1F_1\left(D; D/2; \tfrac12(1 + γ\sin ψ)\|z\|^2\right).
"""

from __future__ import annotations

import math

from scatterbrain_core._typing import Array, Namespace

COUPLINGS = ("independent", "orthogonal", "simplex")
# Nodes of the midpoint rule in t, ψ = πt - sin(2πt)/2, by which the integrand is flat at both ends.
NODES = 256


def block_cosine(coupling: str, dim: int) -> float:
    """Cosine of two coupled rows."""
    return -1 / (dim - 1) if coupling == "simplex" and dim > 1 else 0.0


def coupled_rows(coupling: str, n_rows: int, dim: int) -> float:
    """Mean number of other rows that a row is coupled to, in blocks of `dim`."""
    if coupling == "independent":
        return 0.0
    whole, rest = divmod(n_rows, dim)
    return (whole * dim * (dim - 1) + rest * (rest - 1)) / n_rows


def cross_moment(xp: Namespace, square: Array, dim: int, cosine: float) -> Array:
    r""":math:`e^{-\|z\|^2}E[e^{(w_1+w_2)\cdot z}]` for two coupled rows, elementwise in ‖z‖² >= 0."""
    # Beyond, about (‖z‖²/2)^(D/2) e^(-‖z‖²/2), it is nothing beside the 1 that is taken from it.
    beyond = square > 200.0 + 4 * dim
    square = xp.where(beyond, 0.0, square)
    top = float(xp.max(square)) if math.prod(square.shape) else 0.0
    log_half = xp.log(xp.where(square > 0, square, 1.0) / 2)
    total = xp.exp(-square)
    # The terms of 1F1 rise up to about k = ‖z‖² and then fall faster than geometrically.
    for k, coefficient in enumerate(_log_coefficients(dim, cosine, 60 + int(4 * top)), start=1):
        term = xp.exp(k * log_half + coefficient - square)
        total = total + xp.where(square > 0, term, 0.0)
    return xp.where(beyond, 0.0, total)


def _log_coefficients(dim: int, cosine: float, count: int) -> list[float]:
    """Logs of the coefficients of (‖z‖²/2)^k in the series, k = 1, ..., count."""
    turns = [2 * math.pi * (i + 0.5) / NODES for i in range(NODES)]
    sines = [math.sin((turn - math.sin(turn)) / 2) for turn in turns]
    weights = [(1 - math.cos(turn)) * sine ** (dim - 1) for turn, sine in zip(turns, sines, strict=True)]
    powers = [weight / math.fsum(weights) for weight in weights]
    logs, log_ratio = [], 0.0
    for k in range(1, count + 1):
        log_ratio += math.log((dim + k - 1) / (dim / 2 + k - 1) / k)
        powers = [power * (1 + cosine * sine) for power, sine in zip(powers, sines, strict=True)]
        mean = math.fsum(powers)
        logs.append(log_ratio + math.log(mean) if mean > 0 else -math.inf)
    return logs
