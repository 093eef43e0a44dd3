"""The methods that have names: each is its definition, at any budget that is enough for its least form."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import oracle, relative_error, tolerance
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_core.presets import PRESETS

# Their size is that of the data, whatever the budget; auto is exact where sequences are as short as here.
OF_STATED_SIZE = ("exact", "linear", "auto")


@pytest.mark.parametrize("budget", [0.125, 0.4, 1.0])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_oracle_makes_of_its_parts(library, is_causal, rng, name, budget):
    q, k, v = draw_problem(rng, 70, 64)
    if is_causal and any(part.reason_not_causal for part in PRESETS[name].method.parts.values()):
        with pytest.raises(ValueError, match="where is_causal=True hides"):
            sb.attention(*library.arrays(q, k, v), method=name, budget=budget, is_causal=True)
        return
    est = sb.estimate(*library.arrays(q, k, v), method=name, budget=budget, is_causal=is_causal)
    expected, _ = oracle(q, k, v, est.parts, is_causal=is_causal)
    assert relative_error(library.to_numpy(est.output), expected) <= tolerance("float64", q, k)
    if name not in OF_STATED_SIZE:
        assert budget / 4 < est.cost.fraction <= budget


@pytest.mark.parametrize("name", PRESETS)
def test_a_budget_of_all_keys_is_exact(rng, name):
    """But for what has no sparse part to be all, and the baseline that counts twice."""
    q, k, v = draw_problem(rng, 30, 40)
    parts = sb.estimate(q, k, v, method=name, budget=1.0).parts
    expected = name not in ("performer", "linear", "linformer", "nystrom", "naive_sum")
    assert (parts == sb.Scatterbrain(sparse=sb.AllPairs())) == expected


def test_windows_and_global_tokens_are_longformers(rng):
    """By positions: w keys about the query's own, the first key, and all keys for the first query."""
    q, k, _ = draw_problem(rng, 50, 50, lead=())
    for budget, window in ((0.125, 4), (0.3, 13)):
        weights = sb.attention_matrix(q, k, method="longformer", budget=budget)
        i, j = np.ogrid[:50, :50]
        seen = (np.abs(2 * (i - j) - (window % 2 == 0)) < window) | (j == 0) | (i == 0)
        np.testing.assert_array_equal(weights > 0, seen)


def test_the_naive_sum_counts_the_support_twice(rng):
    q, k, _ = draw_problem(rng, 40, 40)
    options = {"normalize": False, "budget": 0.5}
    naive = sb.attention_matrix(q, k, method="naive_sum", **options)
    once = sb.attention_matrix(q, k, method="scatterbrain", **options)
    exact = sb.attention_matrix(q, k, method="exact", **options)
    is_exact = np.isclose(once, exact, rtol=1e-12)
    assert 0.05 < is_exact.mean() < 0.6
    np.testing.assert_allclose(naive[~is_exact], once[~is_exact], rtol=1e-12)
    assert (naive[is_exact] > exact[is_exact]).all()
