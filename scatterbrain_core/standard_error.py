"""Standard errors of an estimate, by a jackknife over groups of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.estimator import Result, total
from scatterbrain_core.normalization import normalize, scaled
from scatterbrain_core.problem import Problem


def standard_errors(problem: Problem, result: Result, groups: Sequence[slice]) -> tuple[Array, Array]:
    """Standard errors of the output (H, Lq, Dv) and of its lse (H, Lq), by a jackknife over the groups.

    Without group g, and the others weighted up to all m features, the denominator is `left_g` times what it
    was and the output moves by (r_g - ω_g R) / ((1 - ω_g) left_g), where r_g = x_g - output * y_g over the
    denominator, R is the sum of all r_g and ω_g the group's share of the features.
    """
    xp, backend = problem.xp, problem.backend
    output, lse = normalize(backend, total(problem, result))
    if len(groups) == 1:
        return output * float("nan"), lse * float("nan")
    near = scaled(backend, result.near, lse)[..., -1]
    parts = [scaled(backend, far, lse) for far in result.far]
    shares = [(group.stop - group.start) / groups[-1].stop for group in groups]
    moves = [acc[..., :-1] - output * acc[..., -1:] for acc in parts]
    drift = sum(moves[1:], start=moves[0])
    others = _sums_of_others([acc[..., -1] for acc in parts])
    seen = lse != -math.inf
    steps, log_steps = [], []
    for move, share, other in zip(moves, shares, others, strict=True):
        left = xp.where(seen, near + other / (1 - share), 1.0)
        held = left != 0
        left = xp.where(held, left, 1.0)
        step = (move - share * drift) / ((1 - share) * left[..., None])
        steps.append(xp.where(held[..., None], step, math.inf))
        # Signed features may leave a negative weight, which has no log.
        log_left = xp.where(left > 0, xp.log(xp.where(left > 0, left, 1.0)), math.nan)
        log_steps.append(xp.where(held, log_left, math.inf))
    factor = math.sqrt((len(groups) - 1) / len(groups))
    return _norm(backend, steps) * factor, _norm(backend, log_steps) * factor


def _norm(backend: Backend, terms: list[Array]) -> Array:
    """Root of the sum of squares, in units of the largest, which may be beyond the root of the range."""
    xp = backend.xp
    top = reduce(xp.maximum, [xp.abs(backend.stop_gradient(term)) for term in terms])
    is_plain = (top > 0) & xp.isfinite(top)
    unit = xp.where(is_plain, top, 1.0)
    # Where all is 0 or not finite the root has no derivative.
    squares = [xp.where(is_plain, term / unit, 1.0) ** 2 for term in terms]
    return xp.where(is_plain, unit * xp.sqrt(sum(squares[1:], start=squares[0])), top)


def _sums_of_others(terms: list[Array]) -> list[Array]:
    """For each term the sum of all others, without subtracting it."""
    before = list(accumulate(terms[:-1], initial=terms[0] * 0))
    after = list(accumulate(terms[:0:-1], initial=terms[0] * 0))[::-1]
    return [first + last for first, last in zip(before, after, strict=True)]
