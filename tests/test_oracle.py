"""Every library and dtype against the dense float64 oracle, and against each other."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from libraries import make_library
from oracle import CAUSAL, METHODS, least_keys, log_weights, oracle, relative_error, tolerance
from problems import draw_problem

import scatterbrain_core as sb


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(37, 37), (23, 83)])
def test_output_and_lse_are_the_oracles(library, dtype, is_causal, rng, name, n_queries, n_keys):
    q, k, v = draw_problem(rng, n_queries, n_keys, dtype=dtype)
    est = sb.estimate(*library.arrays(q, k, v), method=METHODS[name], is_causal=is_causal)
    output, lse = oracle(q, k, v, METHODS[name], is_causal=is_causal)
    assert library.is_own(est.output)
    assert str(est.output.dtype).endswith(dtype)
    assert relative_error(library.to_numpy(est.output), output) <= tolerance(dtype, q, k)
    got_lse = library.to_numpy(est.lse)
    np.testing.assert_array_equal(np.isneginf(got_lse), np.isneginf(lse))
    seen = ~np.isneginf(lse)
    assert np.abs(got_lse[seen] - lse[seen]).max() <= tolerance(dtype, q, k)


@pytest.mark.parametrize("name", METHODS)
def test_attention_is_the_output_of_estimate(library, dtype, is_causal, rng, name):
    q, k, v = draw_problem(rng, 40, 31, dtype=dtype)
    arguments = {"method": METHODS[name], "is_causal": is_causal, "seed": 3}
    out = sb.attention(*library.arrays(q, k, v), **arguments)
    est = sb.estimate(*library.arrays(q, k, v), **arguments)
    assert relative_error(library.to_numpy(out), library.to_numpy(est.output)) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("name", METHODS)
def test_the_matrix_is_the_oracles(library, dtype, is_causal, rng, name):
    q, k, _ = draw_problem(rng, 19, 33, dtype=dtype)
    expected = np.exp(log_weights(q.astype(float), k.astype(float), METHODS[name], is_causal=is_causal))
    arguments = {"method": METHODS[name], "is_causal": is_causal}
    got = sb.attention_matrix(*library.arrays(q, k), normalize=False, **arguments)
    np.testing.assert_allclose(library.to_numpy(got), expected, rtol=tolerance(dtype, q, k) * 4, atol=0)
    sums = expected.sum(-1, keepdims=True)
    normalized = sb.attention_matrix(*library.arrays(q, k), **arguments)
    expected = np.divide(expected, sums, out=np.zeros_like(expected), where=sums > 0)
    np.testing.assert_allclose(
        library.to_numpy(normalized), expected, rtol=tolerance(dtype, q, k) * 4, atol=0
    )


@pytest.mark.parametrize("method", ["exact", "performer", "lsh", "scatterbrain"])
@pytest.mark.parametrize("other", ["torch", "array_api_strict"])
def test_one_seed_gives_one_answer(rng, dtype, is_causal, method, other):
    """The contract's figures: seed 0 agrees within 1e-5 (float32) and 1e-12 (float64), relative."""
    library = make_library(other)
    q, k, v = draw_problem(rng, 300, 257, dim=32, lead=(2, 2), columns=16, dtype=dtype)
    arguments = {"method": method, "is_causal": is_causal, "seed": 0}
    expected = sb.attention(q, k, v, **arguments)
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    assert relative_error(got, expected) <= {"float32": 1e-5, "float64": 1e-12}[dtype]


@pytest.mark.parametrize("other", ["torch", "array_api_strict"])
@pytest.mark.parametrize("rows", ["duplicate", "constant"])
@pytest.mark.parametrize(
    "sparse", [sb.RandomHyperplanes(0, 1, 3), sb.RandomHyperplanes(1, 3, 4)], ids=["one bucket", "3 tables"]
)
def test_equal_rows_tie_alike_everywhere(rng, dtype, is_causal, other, rows, sparse):
    """Where a bucket of equal keys is cut, each must fall to the same side in every library."""
    library = make_library(other)
    q, k, v = draw_problem(rng, 90, 77, dim=19, dtype=dtype)
    # Positions of equal rows, and how many stand behind them, differ from any vector unit's.
    kinds = 1 if rows == "constant" else 11
    q, k = q[:, np.arange(90) % kinds], k[:, np.arange(77) % kinds]
    q[:, ::2] = k[:, :45]
    parts = sb.Scatterbrain(sb.PositiveFeatures(4), sparse)
    arguments = {"method": parts, "is_causal": is_causal}
    expected = sb.attention(q, k, v, **arguments)
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    assert relative_error(got, expected) <= {"float32": 1e-5, "float64": 1e-12}[dtype]


lengths = st.sampled_from([1, 2, 3, 7, 8, 16, 17, 31, 63, 64, 65, 67, 129])


@given(data=st.data())
def test_any_shape_is_the_oracles(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lead = data.draw(st.sampled_from([(), (1,), (3,), (2, 1), (1, 2, 2)]))
    name = data.draw(st.sampled_from(list(METHODS)))
    parts = METHODS[name]
    q, k, v = draw_problem(
        rng,
        data.draw(lengths),
        data.draw(lengths.filter(lambda n: n >= least_keys(parts))),
        dim=data.draw(st.sampled_from([1, 2, 5, 16])),
        lead=lead,
        columns=data.draw(st.sampled_from([0, 1, 4])),
    )
    arguments = {
        "is_causal": name in CAUSAL and data.draw(st.booleans()),
        "scale": data.draw(st.sampled_from([None, 1.0, -0.7, 0.0, 3.0])),
        "seed": data.draw(st.integers(0, 2**31)),
    }
    got = sb.attention(q, k, v, method=parts, **arguments)
    expected, _ = oracle(q, k, v, parts, **arguments)
    assert got.shape == (*lead, q.shape[-2], v.shape[-1])
    assert relative_error(got, expected) <= tolerance("float64", q, k, arguments["scale"])


@given(data=st.data())
def test_any_budget_is_planned_and_kept(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    q, k, v = draw_problem(rng, data.draw(lengths), data.draw(lengths), lead=(2,))
    budget = data.draw(st.floats(1e-3, 1.0))
    method = data.draw(st.sampled_from(["performer", "lsh", "scatterbrain"]))
    is_causal = data.draw(st.booleans())
    est = sb.estimate(q, k, v, method=method, budget=budget, is_causal=is_causal)
    n_keys = k.shape[-2]
    assert est.cost.fraction <= max(budget, 1 / n_keys) + 1e-12
    assert est.cost.fraction == pytest.approx((est.cost.pairs + est.cost.rank) / n_keys)
    assert tuple(est.cost.of_heads.shape) == tuple(est.lse.shape[:-1])
    assert est.cost.of_heads.mean() == pytest.approx(est.cost.fraction, rel=1e-12)
    expected, _ = oracle(q, k, v, est.parts, is_causal=is_causal)
    assert relative_error(est.output, expected) <= tolerance("float64", q, k)
