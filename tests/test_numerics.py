"""Extremes: norms and scales at which subtracting, clamping or one common reference would lose all digits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from oracle import METHODS, log_weights, oracle, relative_error, tolerance
from problems import draw_problem, eps

import scatterbrain_core as sb

FEATURES = sb.PositiveFeatures(8)
RANDOM = ["performer", "scatterbrain", "limited", "tables", "limited tables"]


def scenarios(rng, dtype):
    q, k, v = draw_problem(rng, 48, 56, dim=8, dtype=dtype)
    outlier = k.copy()
    outlier[:, 17] *= 1e3
    yield "tiny", (1e-6 * q, 1e-6 * k, v)
    yield "large", (8 * q, 8 * k, v)
    yield "huge", (60 * q, 60 * k, v)
    yield "one outlier key", (q, outlier, v)
    yield "constant keys", (q, np.broadcast_to(k[:, :1], k.shape).copy(), v)
    yield "duplicate keys", (q, np.repeat(k[:, :28], 2, axis=1), v)
    yield "opposite", (q, -5 * np.abs(k) * np.sign(q.mean(axis=1, keepdims=True)), v)
    yield "large values", (q, k, 1e6 * v)


@pytest.mark.parametrize("name", [*RANDOM, "exact", "lsh"])
def test_extremes_keep_to_rounding_of_the_logits(library, dtype, is_causal, rng, name):
    """Relative error of each head within 32 · eps · (1 + max|logit|), features' logs counted as logits."""
    for scenario, arrays in scenarios(rng, dtype):
        arrays = tuple(x.astype(dtype) for x in arrays)
        got = sb.attention(*library.arrays(*arrays), method=METHODS[name], is_causal=is_causal)
        expected, _ = oracle(*arrays, METHODS[name], is_causal=is_causal)
        norms = max(float(np.square(x.astype(np.float64)).sum(-1).max()) for x in arrays[:2])
        bound = tolerance(dtype, *arrays[:2]) + 32 * np.finfo(dtype).eps * norms / np.sqrt(8)
        error = relative_error(library.to_numpy(got), expected)
        assert error <= bound, f"{scenario}: {error:.2e} > {bound:.2e}"


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
    for parts in METHODS.values():
        sb.estimate(*arrays, method=parts, scale=1.0)
        sb.estimate(*arrays, method=parts, scale=1.0, attn_mask=library.asarray(mask))
        sb.attention_matrix(*arrays[:2], method=parts, scale=1.0, is_causal=True)
    for x, expected in zip(arrays, (q, k, v), strict=True):
        np.testing.assert_array_equal(library.to_numpy(x), expected)
