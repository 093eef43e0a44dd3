"""The closed-form variances, and unbiasedness, by integrating over the law of W: nothing is sampled.

The maps broadcast over W, so that the nodes of a quadrature stand in for its draws.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from array_api_compat import array_namespace
from problems import eps

import scatterbrain_core as sb
from scatterbrain_core.backend import backend_of

# In eighths, which float32 holds: ‖q + k‖ from 0.4 to 1.4.
QUERY = np.array([[0.25, 0.5], [-0.5, 0.125], [0.75, -0.5]])
KEY = np.array([[0.625, 0.5], [0.125, -0.5]])


def positive(n_rows, **options):
    return sb.PositiveFeatures(2 * n_rows if options.get("paired") else n_rows, **options)


ONE_ROW = {
    "plain": positive(1),
    "paired": positive(1, paired=True),
    "rho 0.9": positive(1, rho=0.9),
    "rho 0.5": positive(1, rho=0.5),
    "rho 0.5, paired": positive(1, rho=0.5, paired=True),
    "centred": positive(1, centred=True),
    "whitened": positive(1, whitened=True),
    "optimal": positive(1, rho="optimal"),
    "fitted, paired": positive(1, rho="optimal", centred=True, whitened=True, paired=True),
    "trigonometric": sb.TrigonometricFeatures(2),
}
COUPLED = {
    f"{rows}, {name}": positive(2, rows=rows, **options)
    for rows in ("orthogonal", "simplex")
    for name, options in {
        "plain": {},
        "paired": {"paired": True},
        "rho 0.5": {"rho": 0.5},
        "rho 0.9, paired": {"rho": 0.9, "paired": True},
        "fitted, paired": {"rho": "optimal", "centred": True, "whitened": True, "paired": True},
    }.items()
}


def one_row(dim):
    """Nodes (n, 1, dim) and weights of a standard normal row, by Gauss and Hermite."""
    x, weight = np.polynomial.hermite_e.hermegauss({1: 200, 2: 80, 3: 48}[dim])
    weight = weight / weight.sum()
    nodes = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), axis=-1).reshape(-1, 1, dim)
    weights = np.prod(np.stack(np.meshgrid(*[weight] * dim, indexing="ij")), axis=0)
    return nodes, weights.reshape(-1)


def coupled_pair(rows):
    """Nodes (n, 2, 2) and weights of two rows in the plane: χ₂ norms, and one uniform angle.

    The second direction is at 90° to the first, or opposite to it: a simplex in the plane has two corners.
    """
    x, weight = np.polynomial.legendre.leggauss(48)
    norm = 6 * (x + 1)
    weight = 6 * weight * norm * np.exp(-(norm**2) / 2)
    angle = 2 * np.pi * np.arange(64) / 64
    r1, r2, turn = (x.reshape(-1) for x in np.meshgrid(norm, norm, angle, indexing="ij"))
    other = turn + (np.pi / 2 if rows == "orthogonal" else np.pi)
    first = r1 * np.stack([np.cos(turn), np.sin(turn)])
    second = r2 * np.stack([np.cos(other), np.sin(other)])
    weights = np.multiply.outer(np.multiply.outer(weight, weight), np.full(64, 1 / 64))
    return np.moveaxis(np.stack([first, second]), -1, 0), weights.reshape(-1)


def integrated(features, nodes, weights, query, key):
    """Mean and second central moment of the estimate of exp(q·k), for every pair."""
    if getattr(features, "paired", False):
        nodes = np.stack([nodes, -nodes], axis=2).reshape(len(nodes), -1, nodes.shape[-1])
    fitted = features.fit(np, query[None], key[None], None, None)
    query, key = (np.broadcast_to(x, (len(nodes), *x.shape)) for x in (query, key))
    rows = features.query_rows(np, (nodes,), fitted, query), features.key_rows(np, (nodes,), fitted, key)
    visible = np.ones((len(nodes), query.shape[1], key.shape[1]), dtype=bool)
    logits, factor = features.kernel.pairs(backend_of(query=query), *rows, visible)
    estimates = np.exp(logits) * (1.0 if factor is None else factor)
    mean = np.tensordot(weights, estimates, 1)
    return mean, np.tensordot(weights, (estimates - mean) ** 2, 1)


@cache
def moments(name):
    """Those of a map named above, at QUERY and KEY."""
    if name in ONE_ROW:
        return integrated(ONE_ROW[name], *one_row(2), QUERY, KEY)
    return integrated(COUPLED[name], *coupled_pair(COUPLED[name].rows), QUERY, KEY)


@pytest.mark.parametrize("name", ONE_ROW | COUPLED)
def test_every_map_is_unbiased_with_the_variance_it_states(library, dtype, name):
    features = (ONE_ROW | COUPLED)[name]
    mean, variance = moments(name)
    weight = np.exp(QUERY @ KEY.T)
    np.testing.assert_allclose(mean, weight, rtol=1e-9)
    arrays = library.arrays(QUERY.astype(dtype), KEY.astype(dtype))
    got = library.to_numpy(features.variance(array_namespace(*arrays), *arrays))
    # Coupled rows: the difference of two terms of about 1, in units of A².
    np.testing.assert_allclose(
        got / weight**2, variance / weight**2, rtol=max(1e-8, 16 * eps(dtype)), atol=4 * eps(dtype)
    )


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("name", ["plain", "rho 0.5", "rho 0.5, paired", "centred", "trigonometric"])
def test_and_in_other_dimensions(dim, name):
    query = np.linspace(-0.5, 0.625, 2 * dim).reshape(2, dim)
    key = np.linspace(0.75, -0.25, 2 * dim).reshape(2, dim)
    mean, variance = integrated(ONE_ROW[name], *one_row(dim), query, key)
    np.testing.assert_allclose(mean, np.exp(query @ key.T), rtol=1e-9)
    np.testing.assert_allclose(ONE_ROW[name].variance(np, query, key), variance, rtol=1e-8)


@pytest.mark.parametrize("rows", ["independent", "orthogonal", "simplex"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("n_rows", [2, 3, 4, 7])
def test_blocks_of_rows_are_independent(rows, paired, n_rows):
    """The mean of n_rows rows in blocks of b rows, each of variance V_b, has variance Σ b² V_b / n_rows²."""
    blocks = [min(2, n_rows - first) for first in range(0, n_rows, 2)]
    of_block = {
        b: positive(b, rows=rows, paired=paired, rho=0.5).variance(np, QUERY, KEY) for b in set(blocks)
    }
    expected = sum(b**2 * of_block[b] for b in blocks) / n_rows**2
    got = positive(n_rows, rows=rows, paired=paired, rho=0.5).variance(np, QUERY, KEY)
    np.testing.assert_allclose(got, expected, rtol=1e-13)
