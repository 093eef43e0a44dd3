"""The standard errors are a jackknife: the estimator computed anew without each group of features."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
from oracle import log_weights
from problems import draw_problem

import scatterbrain_core as sb


def without(parts, group, q, k, v, is_causal):
    """Output and lse of every row with one group of features left out and the others weighted up."""
    m = parts.low_rank.n_features
    (W,) = parts.low_rank.draw(sb.random.Draws(0).feature_generator(), q.shape[-1])
    kept = np.delete(W, group, axis=0)
    features = [np.exp(x @ kept.T - (x**2).sum(-1, keepdims=True) / 2) for x in (q, k)]
    far = features[0] @ np.swapaxes(features[1], -1, -2) / len(kept)
    if parts.debias:
        times = np.bincount(sb.random.Draws(0).columns(parts.debias, k.shape[-2]), minlength=k.shape[-2])
        residual = np.exp(q @ np.swapaxes(k, -1, -2)) - far
        far = far + k.shape[-2] / parts.debias * times * residual
    # The exact weights on the support, by the oracle: there leaving out features changes nothing.
    whole = np.exp(log_weights(q, k, parts, scale=1.0, is_causal=is_causal)).real
    alone = sb.Scatterbrain(None, parts.sparse) if parts.sparse else None
    near = np.exp(log_weights(q, k, alone, scale=1.0, is_causal=is_causal)) if alone else 0 * whole
    weights = np.where((near > 0) | (whole == 0), whole, far)
    assert m == len(W)
    return weights @ v / weights.sum(-1, keepdims=True), np.log(weights.sum(-1))


PARTS = {
    "features": sb.Scatterbrain(sb.PositiveFeatures(9)),
    "unequal groups": sb.Scatterbrain(sb.PositiveFeatures(11)),
    "with a table": sb.Scatterbrain(sb.PositiveFeatures(8), sb.RandomHyperplanes(2)),
    "with a union": sb.Scatterbrain(sb.PositiveFeatures(9), (sb.LocalWindow(5), sb.GlobalTokens(2))),
    "with a sample": sb.Scatterbrain(sb.PositiveFeatures(40), sb.LocalWindow(4), debias=15),
    "with tables": sb.Scatterbrain(sb.PositiveFeatures(10), sb.RandomHyperplanes(3, 3)),
}
GROUPS = 4


@pytest.mark.parametrize("name", PARTS)
def test_standard_errors_are_a_jackknife(library, is_causal, rng, monkeypatch, name):
    """Var = (G - 1)/G Σ_g (O - O_(-g))², and of lse so; groups differ by one feature at most."""
    monkeypatch.setattr(sys.modules["scatterbrain_core.attention"], "ERROR_GROUPS", GROUPS)
    q, k, v = draw_problem(rng, 30, 30)
    parts = PARTS[name]
    size = 0.15 if parts.debias else 0.5  # residuals that are small beside the weights: all stay positive
    q, k = size * q, size * k
    est = sb.estimate(*library.arrays(q, k, v), method=parts, scale=1.0, is_causal=is_causal)
    m = parts.low_rank.n_features
    edges = [m * g // GROUPS for g in range(GROUPS + 1)]
    left_out = [without(parts, range(first, last), q, k, v, is_causal) for first, last in pairwise(edges)]
    for got, whole, others in zip(
        (est.stderr, est.lse_stderr), (est.output, est.lse), zip(*left_out, strict=True), strict=True
    ):
        moves = np.stack(others) - library.to_numpy(whole)
        expected = np.sqrt((GROUPS - 1) / GROUPS * (moves**2).sum(axis=0))
        np.testing.assert_allclose(library.to_numpy(got), expected, rtol=1e-9, atol=1e-12)
