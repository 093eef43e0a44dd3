"""What holds of routed clusters whatever the data: cost, causality, convexity, and how the error falls."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import relative_error
from problems import draw_problem, eps
from test_routing import layout, method

import scatterbrain_core as sb
from scatterbrain_backends.numpy_ import compiled
from scatterbrain_core.routing import tree
from scatterbrain_core.routing.nodes import metric_of

KINDS = (
    "normal",
    "zeros",
    "tiny",
    "large",
    "huge",
    "one key",
    "three keys",
    "sink",
    "long key",
    "clustered",
    "large values",
)
LENGTHS = st.one_of(st.integers(1, 400), st.sampled_from([64, 65, 128, 129, 512, 513, 777, 1024, 1025]))


def data_of(kind, rng, n_queries, n_keys, dim=8, dtype="float32"):
    q, k, v = draw_problem(rng, n_queries, n_keys, dim=dim, lead=(1,), columns=2)
    if kind == "clustered":
        q, k = clustered(rng, n_queries, n_keys, dim)
    elif kind in ("one key", "three keys"):
        k = k[:, np.arange(n_keys) % (1 if kind == "one key" else min(3, n_keys))]
    elif kind == "sink":
        k[:, 0] = 5 * q.mean(1)
    elif kind == "long key":
        k[:, n_keys // 2] *= 1000
    elif kind == "large values":
        v = 1e30 * v
    elif kind != "normal":
        factor = {"zeros": 0.0, "tiny": 1e-20, "large": 100.0, "huge": 1e17}[kind]
        q, k = factor * q, factor * k
    return [x.astype(dtype) for x in (q, k, v)]


def clustered(rng, n_queries, n_keys, dim, n_centres=12):
    centres = 2.5 * rng.standard_normal((n_centres, dim))
    return (
        (centres[rng.integers(0, n_centres, n)] + 0.4 * rng.standard_normal((n, dim)))[None]
        for n in (n_queries, n_keys)
    )


@settings(max_examples=150)
@given(data=st.data())
def test_cost_is_within_the_budget(data):
    """Whatever the shape, the scale and the budget: 5 % at most beyond it, and nothing that is not finite."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_queries, n_keys = data.draw(LENGTHS), data.draw(LENGTHS)
    is_causal, budget = data.draw(st.booleans()), data.draw(st.floats(1e-3, 1.0))
    q, k, v = data_of(data.draw(st.sampled_from(KINDS)), rng, n_queries, n_keys)
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # as without numba
            patch.setattr(compiled, "is_available", lambda: False)
        try:
            est = sb.estimate(q, k, v, budget=budget, is_causal=is_causal)
        except ValueError as error:
            budget = least_budget(error)
            est = sb.estimate(q, k, v, budget=budget, is_causal=is_causal)
    assert np.isfinite(est.output).all()
    assert np.isfinite(est.lse).all()
    assert n_keys <= 64 or est.cost.fraction <= 1.05 * budget
    # Weights are positive and add up to one: each output is a mean of values.
    room = 1e-5 * np.abs(v).max()
    assert (est.output <= v.max(1, keepdims=True) + room).all()
    assert (est.output >= v.min(1, keepdims=True) - room).all()


@pytest.mark.parametrize("seed", range(8))
def test_no_row_is_lost_to_the_estimate_of_what_it_opened(library, is_causal, seed):
    """At the largest logits a cluster's logit exceeds those of its keys by rounding, and by far too much."""
    q, k, v = data_of("huge", np.random.default_rng(seed), 5 if not is_causal else 80, 80)
    est = sb.estimate(*library.arrays(q, k, v), budget=0.125 if not is_causal else 0.25, is_causal=is_causal)
    assert np.isfinite(library.to_numpy(est.lse)).all()


def least_budget(error):
    return float(re.search(r"at least ([\d.e-]+), or entries ([\d.e+]+)", str(error))[1])


@given(data=st.data())
def test_the_least_entries_are_the_least(data):
    n_queries, n_keys = data.draw(st.integers(1, 3000)), data.draw(st.integers(65, 3000))
    q, k = np.zeros((n_queries, 1)), np.zeros((n_keys, 1))
    is_causal = data.draw(st.booleans())
    try:
        layout(data.draw(st.floats(1.0, 30.0)), q, k, is_causal)
    except ValueError as error:
        least = float(re.search(r"or entries ([\d.e+]+)", str(error))[1])
        layout(least, q, k, is_causal)
        with pytest.raises(ValueError, match=f"or entries {least:g}, "):
            layout(least - 2e-4, q, k, is_causal)


def test_queries_behind_the_last_key_ask_for_no_larger_budget(rng):
    q, (k, v) = rng.standard_normal((1, 2000, 8)), rng.standard_normal((2, 1, 100, 8))
    est = sb.estimate(q, k, v, budget=1 / 8, is_causal=True)
    assert est.cost.fraction <= 1.05 / 8
    exact = sb.attention(q, k, v, method="exact", is_causal=True)
    assert relative_error(est.output, exact) <= 0.6


@given(data=st.data())
def test_a_layout_keeps_to_its_entries(data):
    """Query by query: blocks of its coarsest view, its own block, and what it may add."""
    n_queries, n_keys = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))
    entries = data.draw(st.floats(1.0, 600.0))
    try:
        plan = layout(entries, np.zeros((n_queries, 1)), np.zeros((n_keys, 1)), True)
    except ValueError:
        return
    sizes = [level.block for level in plan.levels]
    assert all(b % a == 0 for a, b in zip([plan.own, *sizes], [*sizes, plan.length], strict=True))
    assert [level.parent for level in plan.levels] == [*sizes[1:], plan.length]
    assert max(n_queries, n_keys) <= plan.length
    cost = 0.0
    for i in range(n_queries):
        own, start = i // plan.own * plan.own, 0
        coarse = max(min(i + 1, n_keys) - own, 0) + min(plan.first, own)
        for level in reversed(plan.levels):
            end = own if level is plan.levels[0] else i // plan.chunk * plan.chunk
            while start + level.block <= end:
                coarse += level.n_coarse * (start < n_keys)
                start += level.block
        cost += min(coarse + plan.refined, max(min(i + 1, n_keys), coarse))
    assert cost / n_queries <= 1.01 * entries


@pytest.mark.parametrize("seen", [1, 40, 200, 299])
def test_the_future_changes_no_bit_of_the_past(library, dtype, rng, seen):
    q, k, v = draw_problem(rng, 300, 300, dim=8, dtype=dtype)
    before = sb.attention(*library.arrays(q, k, v), method=method(40), is_causal=True)
    for x in (q, k, v):
        x[:, seen:] = 30 * rng.standard_normal(x[:, seen:].shape)
    after = sb.attention(*library.arrays(q, k, v), method=method(40), is_causal=True)
    before, after = map(library.to_numpy, (before, after))
    np.testing.assert_array_equal(before[:, :seen], after[:, :seen])
    assert (before[:, seen:] != after[:, seen:]).any()


@pytest.mark.parametrize("columns", [3, 64, 256])
@pytest.mark.parametrize("factor", [0, 3])
def test_quiet_or_loud_the_future_changes_no_bit_of_wide_values(rng, columns, factor):
    """How many clusters later queries open, or other heads, is not seen in the order of a sum."""
    q, k, v = draw_problem(rng, 300, 300, dim=8, columns=columns, dtype="float32")
    before = sb.attention(q, k, v, budget=0.2, is_causal=True)
    alone = sb.attention(*(x[:1] for x in (q, k, v)), budget=0.2, is_causal=True)
    np.testing.assert_array_equal(alone, before[:1])
    q[:, 200:] *= factor
    after = sb.attention(q, k, v, budget=0.2, is_causal=True)
    np.testing.assert_array_equal(after[:, :200], before[:, :200])
    assert (after[:, 200:] != before[:, 200:]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spreads_to_its_own_rows_alone(library, is_causal, rng, bad):
    q, k, v = draw_problem(rng, 600, 600, dim=8)
    options = {"method": method(40), "is_causal": is_causal, "check_finite": False}
    before = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    q[:, 300, 0] = bad
    with np.errstate(all="ignore"):
        after = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    assert not np.isfinite(after[:, 300]).all()
    if is_causal:
        np.testing.assert_array_equal(after[:, :300], before[:, :300])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_as_if_hidden_to_others(
    library, dtype, few_looked, monkeypatch, rng, bad
):
    """But for the metric of the clusters, which here knows nothing of any query."""
    unknown = lambda xp, moment: metric_of(xp, xp.full_like(moment, np.nan))  # noqa: E731
    monkeypatch.setattr(tree, "metric_of", unknown)
    q, k, v = draw_problem(rng, 200, 300, dim=8, dtype=dtype)
    there = np.ones((2, 200, 1), bool)
    there[0, [7, 150]] = False
    options = {"method": method(24), "check_finite": False}
    expected = sb.attention(*library.arrays(q, k, v), attn_mask=library.asarray(there), **options)
    q[0, 7, 0], q[0, 150] = bad, bad
    with np.errstate(all="ignore"):
        got = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    expected, finite = library.to_numpy(expected), there[..., 0]
    np.testing.assert_allclose(got[finite], expected[finite], rtol=0, atol=8 * eps(dtype))
    assert not np.isfinite(got[~finite]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["key", "value"])
def test_a_key_that_is_not_finite_is_not_left_out(library, rng, name, bad):
    """Nor is its value: no row of its head passes for one without that key."""
    q, k, v = draw_problem(rng, 200, 300, dim=8)
    (k if name == "key" else v)[0, 150] = bad
    options = {"method": method(24), "check_finite": False}
    with np.errstate(all="ignore"):
        out = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    assert not np.isfinite(out[0]).any()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("seen", [100, 299])
def test_the_future_tells_nothing_of_the_past(rng, seen):
    """Its gradient is zero, whatever it chooses."""
    arrays = draw_problem(rng, 300, 300, dim=8)
    cotangent = np.zeros((2, 300, 3))
    cotangent[:, :seen] = rng.standard_normal((2, seen, 3))
    _, vjp = sb.attention_vjp(*arrays, method=method(40), is_causal=True)
    assert all((x[:, seen:] == 0).all() and (x[:, :seen] != 0).any() for x in vjp(cotangent))


def test_exact_where_the_budget_is_all_or_keys_are_few(library, dtype, is_causal, rng):
    for n_keys, budget in ((64, 0.05), (90, 1.0)):
        arrays = library.arrays(*draw_problem(rng, 80, n_keys, dtype=dtype))
        est = sb.estimate(*arrays, budget=budget, is_causal=is_causal)
        exact = sb.attention(*arrays, method="exact", is_causal=is_causal)
        assert est.parts == sb.Scatterbrain(sparse=sb.AllPairs())
        np.testing.assert_array_equal(library.to_numpy(est.output), library.to_numpy(exact))


def test_a_budget_of_one_is_exact_however_long(is_causal):
    q, k, v = np.ones((3, 1, 5000, 1))
    est = sb.estimate(q[:, :3], k, v, is_causal=is_causal, budget=1.0)
    assert est.parts == sb.Scatterbrain(sparse=sb.AllPairs())


def test_a_dense_mask_is_exact(library, rng):
    q, k, v = draw_problem(rng, 70, 80)
    mask = library.asarray(rng.random((70, 80)) < 0.5)
    arrays = library.arrays(q, k, v)
    exact = sb.attention(*arrays, method="exact", attn_mask=mask)
    np.testing.assert_array_equal(
        library.to_numpy(sb.attention(*arrays, attn_mask=mask)), library.to_numpy(exact)
    )


def test_every_visible_key_counts_once(is_causal, rng):
    """Opened, in a closed cluster or always exact, and never twice: constant values come out constant."""
    q, k, v = draw_problem(rng, 200, 200)
    weights = sb.attention_matrix(q, k, method=method(30), is_causal=is_causal, normalize=False)
    visible = np.tri(200, dtype=bool) if is_causal else np.ones((200, 200), bool)
    np.testing.assert_array_equal(weights > 0, np.broadcast_to(visible, weights.shape))
    est = sb.estimate(q, k, np.full_like(v, 7.0), method=method(30), is_causal=is_causal)
    np.testing.assert_allclose(est.output, 7.0, rtol=1e-13)
    np.testing.assert_allclose(est.lse, np.log(weights.sum(-1)), rtol=1e-12, atol=1e-12)


def test_opened_keys_have_their_own_weights(is_causal, rng):
    """As many as are counted; other weights are exact by chance alone."""
    q, k, v = draw_problem(rng, 200, 200)
    weights = sb.attention_matrix(q, k, method=method(30), is_causal=is_causal, normalize=False)
    exact = np.exp(q @ np.swapaxes(k, 1, 2) / np.sqrt(5))
    same = np.isclose(weights, exact, rtol=1e-12, atol=0)
    est = sb.estimate(q, k, v, method=method(30), is_causal=is_causal)
    assert same.sum(-1).mean() >= est.cost.pairs
    # A cluster of one key has its weight too, unopened.
    assert same.sum(-1).mean() <= est.cost.pairs + est.cost.rank


def test_heads_and_seeds_change_nothing(library, is_causal, rng):
    arrays = draw_problem(rng, 200, 180, lead=(4,))
    options = {"method": method(24), "is_causal": is_causal}
    together = library.to_numpy(sb.attention(*library.arrays(*arrays), **options))
    again = library.to_numpy(sb.attention(*library.arrays(*arrays), seed=17, **options))
    np.testing.assert_array_equal(together, again)
    for head in range(4):
        alone = sb.attention(*library.arrays(*(x[head] for x in arrays)), **options)
        np.testing.assert_allclose(library.to_numpy(alone), together[head], rtol=1e-12, atol=1e-12)


def test_the_error_falls_with_the_budget_far_below_others(is_causal, rng):
    """On clustered queries and keys, as real models have them; the median of some, as one can be hard."""
    problems = []
    for _ in range(5):
        q, k = clustered(rng, 600, 600, 16)
        v = rng.standard_normal((1, 600, 8)) + k[..., :8]
        problems.append(((q, k, v), sb.estimate(q, k, v, method="exact", is_causal=is_causal)))

    def error(method, budget):
        options = {"method": method, "budget": budget, "is_causal": is_causal}
        errors = [relative_error(sb.attention(*x, **options), exact.output) for x, exact in problems]
        return np.median(errors)

    errors = [error("auto", budget) for budget in (1 / 16, 1 / 8, 1 / 4)]
    assert errors == sorted(errors, reverse=True)
    assert 5 * errors[1] < min(error("performer", 1 / 8), error("lsh", 1 / 8))
    arrays, exact = problems[0]
    est = sb.estimate(*arrays, budget=1 / 8, is_causal=is_causal)
    assert np.abs(est.lse - exact.lse).mean() < 0.05


@pytest.mark.parametrize("scale", [6.0, 40.0])
def test_float32_spends_its_budget_at_large_logits_too(library, rng, is_causal, scale):
    """Where a cluster's estimated share is lost to underflow it is still opened when others have been."""
    q, k, v = draw_problem(rng, 600, 600, dim=8, lead=(1,))
    q, k = scale * q, scale * k
    exact = sb.attention(q, k, v, method="exact", is_causal=is_causal)
    own = library.arrays(*(x.astype("float32") for x in (q, k, v)))
    errors = []
    for budget in (0.1, 0.25, 0.4):
        estimate = sb.estimate(*own, budget=budget, is_causal=is_causal)
        expected = sb.estimate(q, k, v, budget=budget, is_causal=is_causal)
        assert estimate.cost.fraction >= 0.95 * expected.cost.fraction
        errors.append(relative_error(library.to_numpy(estimate.output), exact))
        assert errors[-1] <= 1.2 * relative_error(expected.output, exact) + 0.02
    assert errors[0] > errors[1] > errors[2]


def test_no_warning_at_huge_gains(rng):
    q, k, v = draw_problem(rng, 200, 200, dim=16)
    for factor, scale in ((1e100, None), (1.0, 1e300)):
        assert np.isfinite(sb.attention(factor * q, factor * k, v, budget=0.3, scale=scale)).all()
