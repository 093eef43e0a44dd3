"""Extremes: norms and scales at which subtracting, clamping or one common reference would lose all digits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import stress
from libraries import EVERYWHERE
from oracle import CAUSAL, METHODS, log_weights, oracle, relative_error, tolerance
from problems import draw_problem, eps

import scatterbrain_core as sb

RANDOM = ["performer", "scatterbrain", "limited", "tables", "limited tables"]


@pytest.fixture(params=[name for name in EVERYWHERE if name != "numpy-readonly"])
def kind(request):
    return stress.Kind(request.param)


def stressed(kind, dtype):
    """Methods to run, for time's sake; `make stress` runs all of them everywhere.

    Half precision changes the first and the last step alone, and array_api_strict takes NumPy's steps.
    """
    if dtype in ("float16", "bfloat16") or kind.library.name == "array_api_strict":
        return "exact", "tables", "elu, cross-polytope", "all, hyperplanes"
    return tuple(stress.METHODS)


@pytest.mark.parametrize("dtype", stress.EPS)
@pytest.mark.parametrize("name", stress.SCENARIOS)
def test_extremes_keep_to_rounding_of_the_logits(kind, dtype, name):
    """Within 32 units of rounding of the oracle, output and lse: causal or not."""
    if dtype not in stress.dtypes_of(kind.library.name):
        pytest.skip(f"{kind.library.name} has no {dtype}")
    found = stress.worst(name, kind, dtype, seeds=(0,), methods=stressed(kind, dtype))
    for what, (units, method) in zip(("output", "lse"), found, strict=True):
        assert units <= stress.LIMIT, f"{what} of {method}: {units:.3g} units"


def test_the_extremes_are_what_they_are_called(rng):
    parts = METHODS["tables"]
    for name, top in [("logits of 1e-6", 1e-6), ("logits of 100", 100), ("logits of 10 000", 1e4)]:
        q, k, _, _ = stress.scenario(name, rng, parts, 0)
        assert stress.unit_of("float64", q, k) / 2**-52 == pytest.approx(1 + top)
    for method in ("performer", "scatterbrain", "tables"):
        q, k, _, _ = stress.scenario("features too large by e^30", rng, METHODS[method], 0)
        far = log_weights(q, k, sb.Scatterbrain(METHODS[method].low_rank))
        exact = log_weights(q, k, METHODS["exact"])
        support = log_weights(q, k, METHODS[method]) == exact
        assert (far - exact).max() > 30
        if method != "performer":
            assert (far - exact)[support].max() > 30


def overestimated(rng, n_tables):
    """Queries and keys whose features overestimate exp(q·k) by e^20 and more, on the support.

    Along a row w of W, log L - q·k is w·z - ‖z‖²/2 (less log m) for z = q + k: most for z = w, ‖w‖²/2.
    """
    parts = sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(2, n_tables))
    q, k, v = draw_problem(rng, 64, 64, dim=60, lead=(1,))
    (W,) = parts.low_rank.draw(sb.random.Draws(0).feature_generator(), 60)
    q, k = 0.1 * q, 0.1 * k
    q[0, :32], k[0, :32] = 0.1 * q[0, :32] + W[0] / 2, 0.1 * k[0, :32] + W[0] / 2
    return parts, q, k, v


@pytest.mark.parametrize("n_tables", [1, 2, 4])
def test_features_that_overestimate_the_support_cost_no_digits(library, dtype, is_causal, rng, n_tables):
    parts, q, k, v = overestimated(rng, n_tables)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    features = sb.Scatterbrain(parts.low_rank)
    excess = log_weights(q, k, features, scale=1.0) - log_weights(q, k, METHODS["exact"], scale=1.0)
    assert excess[0, :32, :32].min() > 20
    got = sb.attention(*library.arrays(q, k, v), method=parts, scale=1.0, is_causal=is_causal)
    expected, _ = oracle(q, k, v, parts, scale=1.0, is_causal=is_causal)
    logs = np.abs(log_weights(q, k, features, scale=1.0)).max()
    bound = tolerance(dtype, q, k, 1.0) + 32 * eps(dtype) * logs
    # Row by row: a row that loses its digits must not hide behind larger ones.
    error = np.linalg.norm(library.to_numpy(got) - expected, axis=-1)
    assert (error <= bound * np.linalg.norm(v, axis=-1).max()).all()


def test_rows_that_would_cancel_are_summed_directly(rng, monkeypatch):
    """With the guard taken out, subtracting the later tables loses what the guard keeps."""
    worst = {}
    for guard in (4.0, np.inf):
        monkeypatch.setattr("scatterbrain_core.far_field.MAX_CANCELLATION", guard)
        errors = []
        for trial in range(8):
            parts, q, k, v = cancelling(np.random.default_rng(trial))
            got = sb.attention(q, k, v, method=parts, scale=1.0)
            expected, _ = oracle(q, k, v, parts, scale=1.0)
            errors.append(np.abs(got - expected).max() / np.abs(v).max() / tolerance("float32", q, k, 1.0))
        worst[guard] = max(errors)
    assert worst[4.0] <= 1
    assert worst[np.inf] > 10


def cancelling(rng):
    """Pairs in some later table, but not in the first, whose features exceed everything else by e^15."""
    parts = sb.Scatterbrain(sb.PositiveFeatures(2), sb.RandomHyperplanes(1, 6))
    W = sb.random.Draws(0).feature_generator().standard_normal((2, 60))
    hot = W[0] / 2
    q, k, v = draw_problem(rng, 64, 64, dim=60, lead=(1,))
    return parts, *(x.astype(np.float32) for x in (hot + 0.3 * q, hot + 0.3 * k, v))


def test_feature_products_that_underflow_are_summed_by_terms(library, dtype, is_causal, monkeypatch):
    """Queries large along one feature, keys along another: each product of features underflows."""
    # A group of a single feature cannot underflow so.
    monkeypatch.setattr(sys.modules["scatterbrain_core.attention"], "ERROR_GROUPS", 1)
    W = sb.random.Draws(0).feature_generator().standard_normal((4, 8))
    size = {"float32": 40.0, "float64": 400.0}[dtype]
    rng = np.random.default_rng(5)
    q = 0.1 * rng.standard_normal((1, 40, 8)) + size * W[0] / np.linalg.norm(W[0])
    k = 0.1 * rng.standard_normal((1, 40, 8)) - size * W[0] / np.linalg.norm(W[0])
    v = rng.standard_normal((1, 40, 3))
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    log_q, log_k = (x.astype(float) @ W.T for x in (q[0], k[0]))  # the norms drop out of what follows
    log_q, log_k = (x - x.max(axis=-1, keepdims=True) for x in (log_q, log_k))
    largest = (log_q[:, None, :] + log_k[None, :, :]).max()
    assert largest < np.log(np.finfo(dtype).smallest_normal)
    parts = sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(3))
    got = sb.estimate(*library.arrays(q, k, v), method=parts, scale=1.0, is_causal=is_causal)
    expected, lse = oracle(q, k, v, parts, scale=1.0, is_causal=is_causal)
    assert np.isfinite(lse).all()
    np.testing.assert_allclose(library.to_numpy(got.lse), lse, rtol=64 * np.finfo(dtype).eps)
    assert relative_error(library.to_numpy(got.output), expected) <= 4 * tolerance(dtype, q, k, 1.0)


def test_tiny_and_empty_problems(library, dtype):
    for n_queries, n_keys in [(0, 5), (0, 0), (3, 0)]:
        q, k, v = draw_problem(np.random.default_rng(0), n_queries, n_keys, dtype=dtype)
        for method in ("exact", "performer", "lsh", "scatterbrain"):
            est = sb.estimate(*library.arrays(q, k, v), method=method)
            assert est.output.shape == (2, n_queries, 3)
            assert library.is_own(est.output)
            assert not library.to_numpy(est.output).any()
            assert np.isneginf(library.to_numpy(est.lse)).all()
            assert sb.attention(*library.arrays(q, k, v), method=method).shape == (2, n_queries, 3)
            assert sb.attention_matrix(*library.arrays(q, k), method=method).shape == (2, n_queries, n_keys)
    q, k, v = draw_problem(np.random.default_rng(0), 4, 6, lead=(0, 3), dtype=dtype)
    assert sb.attention(*library.arrays(q, k, v)).shape == (0, 3, 4, 3)


def test_arguments_are_left_as_they_were(library, rng):
    q, k, v = draw_problem(rng, 70, 70)
    mask = rng.random((1, 70)) < 0.8
    arrays = library.arrays(q, k, v)
    for name, parts in METHODS.items():
        sb.estimate(*arrays, method=parts, scale=1.0)
        sb.estimate(*arrays, method=parts, scale=1.0, attn_mask=library.asarray(mask))
        sb.attention_matrix(*arrays[:2], method=parts, scale=1.0, is_causal=name in CAUSAL)
    for x, expected in zip(arrays, (q, k, v), strict=True):
        np.testing.assert_array_equal(library.to_numpy(x), expected)
