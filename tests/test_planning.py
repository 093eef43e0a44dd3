"""Budgets: what is chosen, and that cost is what was really used."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import METHODS
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_core import presets


@pytest.mark.parametrize("name", METHODS)
def test_cost_counts_the_pairs_of_the_support(library, dtype, is_causal, rng, name):
    """An entry of the sparse part alone is not zero exactly where the pair is on the support."""
    q, k, v = draw_problem(rng, 60, 50, dtype=dtype)
    parts = METHODS[name]
    cost = sb.estimate(*library.arrays(q, k, v), method=parts, is_causal=is_causal).cost
    rank = 0 if parts.low_rank is None else parts.low_rank.planned(1, 50, q.shape[-1]).rank
    pairs = 0.0
    if parts.sparse is not None:
        alone = sb.Scatterbrain(None, parts.sparse, parts.debias)
        matrix = sb.attention_matrix(
            *library.arrays(q, k), method=alone, is_causal=is_causal, normalize=False
        )
        pairs = np.count_nonzero(library.to_numpy(matrix)) / (2 * 60)
    assert cost.pairs == pytest.approx(pairs, rel=1e-5)
    assert cost.rank == rank
    assert cost.fraction == pytest.approx((pairs + rank) / 50, rel=1e-5)


def test_the_budget_holds_where_all_keys_are_alike(is_causal):
    """Constant keys fall into one bucket, whatever the hash: it is cut."""
    q, k, v = (np.ones((1, 500, 8)) for _ in range(3))
    for method in ("lsh", "scatterbrain"):
        est = sb.estimate(q, k, v, method=method, budget=0.1, is_causal=is_causal)
        assert 0.02 < est.cost.fraction <= 0.1


def test_a_larger_budget_costs_more_and_errs_less(rng):
    q, k, v = 0.5 * rng.standard_normal((3, 4, 400, 16))
    exact = sb.attention(q, k, v, method="exact")
    for method in ("performer", "scatterbrain"):
        errors, costs = [], []
        for budget in (0.02, 0.1, 0.5):
            runs = [sb.estimate(q, k, v, method=method, budget=budget, seed=seed) for seed in range(3)]
            errors.append(np.mean([np.linalg.norm(run.output - exact) for run in runs]))
            costs.append(runs[0].cost.fraction)
        assert errors == sorted(errors, reverse=True)
        assert costs == sorted(costs)


def test_budget_one_is_everything(rng):
    q, k, v = draw_problem(rng, 30, 40)
    assert sb.estimate(q, k, v, budget=1.0).parts == sb.Scatterbrain(sparse=sb.AllPairs())
    assert sb.estimate(q, k, v, method="performer", budget=1).cost.rank == 40


def test_what_a_part_says_itself_stands(rng):
    q, k, v = draw_problem(rng, 30, 64)
    parts = sb.Scatterbrain(sb.PositiveFeatures(3), sb.RandomHyperplanes(n_tables=2))
    est = sb.estimate(q, k, v, method=parts, budget=0.5)
    assert est.parts.low_rank == sb.PositiveFeatures(3)
    assert est.parts.sparse.n_tables == 2
    assert est.parts.sparse.max_bucket == (32 - 3) // 2
    fixed = sb.Scatterbrain(sb.PositiveFeatures(5), sb.RandomHyperplanes(3, 1))
    assert sb.estimate(q, k, v, method=fixed, budget=0.01).parts == fixed


def test_names_and_reprs(rng):
    q, k, v = draw_problem(rng, 64, 64)
    assert set(sb.methods()) == {"auto", *presets.PRESETS}
    assert all("arXiv" in line or "STOC" in line for name, line in sb.methods().items() if name != "auto")
    for name in sb.methods():
        est = sb.estimate(q, k, v, method=name)
        assert est.method == name
        assert eval(repr(est.parts), vars(sb)) == est.parts
    parts = sb.Scatterbrain(sb.PositiveFeatures(2))
    est = sb.estimate(q, k, v, method=parts)
    assert est.method == repr(parts)
    assert str(est.cost) == "0.0 pairs + rank 2 a query = 3.1% of the keys"


def test_a_generator_moves_on_and_a_seed_stays(rng):
    q, k, v = draw_problem(rng, 30, 30)

    def run(seed):
        return sb.estimate(q, k, v, method="scatterbrain", seed=seed)

    first, second = (run(7).output for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (run(8).output != first).any()
    generator = np.random.default_rng(7)
    moved = [run(generator) for _ in range(2)]
    assert (moved[0].output != moved[1].output).any()
    for est in moved:  # what a generator gave is an int that gives it again
        assert isinstance(est.seed, int)
        np.testing.assert_array_equal(run(est.seed).output, est.output)
    assert run(7).seed == 7
    np.testing.assert_array_equal(run(np.int64(7)).output, first)


def test_no_two_streams_are_one():
    draws = sb.random.Draws(5)
    streams = [draws.feature_generator(), draws.columns_generator()]
    streams += [draws.support_generator(number) for number in range(3)]
    assert len({float(stream.random()) for stream in streams}) == 5
    first, again = (draws.support_generator(2).random(4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_global_generator_is_left_alone(rng):
    q, k, v = draw_problem(rng, 10, 20)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sb.attention(q, k, v, method="scatterbrain")
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
