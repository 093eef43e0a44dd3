"""Parts that choose pairs by content: presets against their papers' algorithms, sizes, refusals, ties."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given
from oracle import oracle, relative_error, tolerance
from problems import draw_problem
from scipy.special import softmax

import scatterbrain_core as sb
from scatterbrain_core.random import Draws

PRESETS = ("routing", "skeinformer", "informer", "top_k")
LENGTHS = [(60, 60), (40, 90), (90, 40)]


def skeinformer(q, k, v, s, seed):
    """arXiv 2112.05359, Algorithm 1, of one head; pilots without replacement."""
    n_queries, n = len(q), len(k)
    gumbel, place = sb.SampledColumns(s).draw(Draws(seed).support_generator(), q.shape[-1], n_queries, n)
    J = np.argsort(place)[: max(1, min(s, s * n_queries // n))]
    B = softmax(q[J] @ k.T, axis=-1)
    p = np.sqrt((B**2).sum(0)) * np.linalg.norm(v, axis=-1)
    sampled = np.argsort(-(np.log(p) + gumbel))[:s]
    A = np.exp(q @ k[sampled].T)
    g = np.prod(A, axis=1) ** (1 / s)
    rest = v.sum(0) - v[sampled].sum(0)
    R = (A @ v[sampled] + np.outer(g, rest)) / (A.sum(1) + (n - s) * g)[:, None]
    R[J] = B @ v
    return R


def informer(q, k, v, u, n_sampled, seed):
    """arXiv 2012.07436, Algorithm 1, of one head."""
    (place,) = sb.SelectedQueries(u).draw(Draws(seed).support_generator(), q.shape[-1], len(q), len(k))
    S = q @ k[np.argsort(place)[:n_sampled]].T
    M = S.max(1) - S.mean(1)
    top = np.argsort(-M)[: max(1, u * len(q) // len(k))]
    out = np.repeat(v.mean(0, keepdims=True), len(q), axis=0)
    out[top] = softmax(q[top] @ k.T, axis=-1) @ v
    return out


def by_definition(name, q, k, v, parts, seed):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    root = q.shape[-1] ** -0.25
    heads = [(root * a, root * b, c) for a, b, c in zip(q, k, v, strict=True)]
    if isinstance(parts.sparse, sb.AllPairs):
        return oracle(q, k, v, parts)[0]
    if name == "skeinformer":
        return np.stack([skeinformer(*head, parts.sparse.n_columns, seed) for head in heads])
    if name == "informer":
        sizes = parts.sparse.n_selected, parts.sparse.n_sampled
        return np.stack([informer(*head, *sizes, seed) for head in heads])
    return oracle(q, k, v, parts, seed=seed)[0]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("n_queries", "n_keys"), LENGTHS)
def test_presets_are_their_papers_algorithms(library, dtype, rng, name, n_queries, n_keys):
    q, k, v = draw_problem(rng, n_queries, n_keys, dim=8, dtype=dtype)
    est = sb.estimate(*library.arrays(q, k, v), method=name, budget=0.3, seed=4)
    expected = by_definition(name, q, k, v, est.parts, 4)
    assert relative_error(library.to_numpy(est.output), expected) <= tolerance(dtype, q, k)
    assert 0.03 < est.cost.fraction <= 0.3


def test_the_clusters_of_a_block_of_queries_are_one_choice(rng):
    q, k, _ = draw_problem(rng, 50, 64, dim=6)
    parts = sb.Scatterbrain(None, sb.KeyClusters(8, 2, 9, query_block=7))
    exact = sb.attention_matrix(q, k, method=parts) > 0
    for first in range(0, 50, 7):
        np.testing.assert_array_equal(
            exact[:, first : first + 7], exact[:, first : first + 1].repeat(min(7, 50 - first), axis=1)
        )
    assert (exact[:, 0] != exact[:, 7]).any()


@given(data=st.data())
def test_any_budget_is_kept_or_the_least_is_said(data):
    lengths = st.sampled_from([1, 2, 3, 7, 16, 40, 65])
    n_queries, n_keys = data.draw(lengths), data.draw(lengths)
    q, k, v = draw_problem(np.random.default_rng(data.draw(st.integers(0, 99))), n_queries, n_keys, lead=(2,))
    name, budget = data.draw(st.sampled_from(PRESETS)), data.draw(st.floats(0.01, 1.0))
    try:
        est = sb.estimate(q, k, v, method=name, budget=budget)
    except ValueError as error:
        least = float(str(error).split("at least ")[1].split(",")[0])
        assert budget < least
        assume(least <= 1)
        est = sb.estimate(q, k, v, method=name, budget=least)
        budget = least
    assert est.cost.fraction <= max(budget, 1 / n_keys) + 1e-12
    expected = by_definition(name, q, k, v, est.parts, 0)
    assert relative_error(est.output, expected) <= tolerance("float64", q, k)


@pytest.mark.parametrize("name", ["informer", "skeinformer"])
@pytest.mark.parametrize("budget", [0.06, 0.08, 0.15, 0.4])
def test_few_queries_keep_a_budget(rng, name, budget):
    """What is kept once a call weighs more on each of fewer queries: a part is planned smaller for it."""
    q, k, v = draw_problem(rng, 20, 400, lead=())
    assert sb.estimate(q, k, v, method=name, budget=budget).cost.fraction <= budget


def test_of_equal_weights_the_first_keys_count(library, dtype):
    q = k = np.ones((1, 6, 4), dtype=dtype)
    matrix = sb.attention_matrix(
        *library.arrays(q, k), method=sb.Scatterbrain(None, sb.TopKeys(2)), scale=0.0
    )
    np.testing.assert_array_equal(library.to_numpy(matrix)[0], np.repeat([[0.5, 0.5, 0, 0, 0, 0]], 6, axis=0))


@pytest.mark.parametrize("n", [5, 31, 77, 129])
def test_equal_rows_tie_alike_everywhere(library, dtype, rng, n):
    """Their logits differ by rounding, if they are taken from products of any shape."""
    q, k, v = draw_problem(rng, n, n, dim=19, dtype=dtype)
    q[:], k[:, : n // 2], k[:, n // 2 :] = q[:, :1], k[:, :1], k[:, -1:]
    for parts in (
        sb.Scatterbrain(None, sb.TopKeys(3)),
        sb.Scatterbrain(sb.UniformWeights(), sb.SelectedQueries(2, 9)),
    ):
        got = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=parts))
        assert relative_error(got, oracle(q, k, v, parts)[0]) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("sparse", [sb.KeyClusters(4, 2, 6), sb.TopKeys(7)], ids=["clusters", "top"])
def test_hidden_keys_are_as_good_as_absent(library, dtype, rng, sparse):
    q, k, v = draw_problem(rng, 40, 60, dtype=dtype)
    kept = np.sort(rng.permutation(60)[:37])
    mask = np.zeros(60, dtype=bool)
    mask[kept] = True
    parts = sb.Scatterbrain(None, sparse)
    hidden = sb.attention(*library.arrays(q, k, v), method=parts, attn_mask=library.asarray(mask))
    absent = sb.attention(*library.arrays(q, k[:, kept], v[:, kept]), method=parts)
    assert relative_error(library.to_numpy(hidden), library.to_numpy(absent)) <= tolerance(dtype, q, k)


FEW = {
    "clusters": sb.Scatterbrain(None, sb.KeyClusters(8, 3, 4)),
    "columns": sb.Scatterbrain(sb.GeometricMean(), sb.SampledColumns(9, "weights")),
    "queries": sb.Scatterbrain(sb.UniformWeights(), sb.SelectedQueries(4, 9)),
    "top": sb.Scatterbrain(sb.EluFeatures(), sb.TopKeys(5)),
}


@pytest.mark.parametrize("name", FEW)
def test_fewer_visible_keys_than_are_chosen(library, dtype, rng, name):
    """In one head three keys, in another one, in the last none; and as few queries."""
    q, k, v = draw_problem(rng, 24, 40, lead=(3,), dtype=dtype)
    for length, shape in ((40, (3, 1, 40)), (24, (3, 24, 1))):
        mask = np.zeros((3, length), dtype=bool)
        mask[0, [2, 11, 20]] = mask[1, 7] = True
        mask = mask.reshape(shape)
        got = sb.attention(*library.arrays(q, k, v), method=FEW[name], attn_mask=library.asarray(mask))
        expected = oracle(q, k, v, FEW[name], mask=mask)[0]
        assert relative_error(library.to_numpy(got), expected) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("size", [1e-30, 1e15])
def test_choices_by_direction_do_not_depend_on_norms(library, rng, size):
    """Norms of which no square is a number of float32; so too of the values, by which keys are sampled."""
    q, k, v = draw_problem(rng, 40, 50, dtype="float32")
    for sparse in (sb.KeyClusters(8, 2, 6), sb.SampledColumns(9)):
        parts, chosen = sb.Scatterbrain(None, sparse), []
        for factor in (1.0, size):
            arrays = library.arrays(q, k * np.float32(factor), v * np.float32(factor))
            est = sb.estimate(*arrays, method=parts, scale=1e-3 / factor)
            out = library.to_numpy(est.output) / np.float32(factor)
            chosen.append(out)
        assert relative_error(*chosen) < 1e-5


def test_large_values_are_sampled_first(rng):
    """Without values in hand all count as alike. Values along axes say which keys a query sees."""
    q, k, _ = draw_problem(rng, 50, 50, lead=(1,))
    v = np.eye(50)[None] * np.where(np.isin(np.arange(50), [3, 17, 31]), 1e9, 1.0)
    by_values, by_weights = (sb.Scatterbrain(None, sb.SampledColumns(3, by)) for by in ("values", "weights"))
    seen = [sb.attention(q, k, v, method=parts)[0] > 0 for parts in (by_values, by_weights)]
    assert (seen[0].sum(1) == 3).sum() == 47  # three pilots see all
    assert set(np.flatnonzero(seen[0].all(0))) == {3, 17, 31}
    assert set(np.flatnonzero(seen[1].all(0))) != {3, 17, 31}
    matrices = [sb.attention_matrix(q, k, method=parts) for parts in (by_values, by_weights)]
    np.testing.assert_array_equal(*matrices)


REFUSED = {
    "key clusters": (sb.KeyClusters(2, 1), "sparse must not cluster all keys where"),
    "columns": (
        sb.SampledColumns(3),
        "sparse must not sample keys by their weights for queries from anywhere",
    ),
    "queries": (sb.SelectedQueries(3), "sparse must not compare all queries by keys sampled from all where"),
}


@pytest.mark.parametrize(("sparse", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_looks_at_all_keys_is_neither_causal_nor_masked(rng, sparse, message):
    q, k, v = draw_problem(rng, 6, 7)
    parts = sb.Scatterbrain(sb.UniformWeights(), sparse)
    with pytest.raises(ValueError, match=f"^{message}.*is_causal=True hides"):
        sb.attention(q, k, v, method=parts, is_causal=True)
    with pytest.raises(ValueError, match=f"^{message}.*attn_mask hides"):
        sb.attention(q, k, v, method=parts, attn_mask=np.tri(6, 7, dtype=bool))


def test_the_geometric_mean_of_sampled_keys_is_not_causal(rng):
    parts = sb.Scatterbrain(sb.GeometricMean(), sb.SampledColumns(2, "uniform"))
    with pytest.raises(ValueError, match=r"^low_rank must not take the mean of keys sampled from all where"):
        sb.attention(*draw_problem(rng, 6, 7), method=parts, is_causal=True)


MISTAKES = {
    "more clusters than keys": (
        lambda: sb.attention(*PROBLEM, method=sb.Scatterbrain(None, sb.KeyClusters(8, 1))),
        ValueError,
        "n_clusters must be at most the number of keys, 7, got 8",
    ),
    "no columns for the mean": (
        lambda: sb.Scatterbrain(sb.GeometricMean(), sb.LocalWindow(2)),
        ValueError,
        "low_rank must not stand beside 0 SampledColumns, as it takes the keys of one, got Scatterbrain",
    ),
    "two samples for the mean": (
        lambda: sb.Scatterbrain(sb.GeometricMean(), (sb.SampledColumns(2), sb.SampledColumns(3))),
        ValueError,
        "low_rank must not stand beside 2 SampledColumns",
    ),
    "by what": (
        lambda: sb.SampledColumns(by="norm"),
        ValueError,
        r"by must be one of \('uniform', 'weights', 'values'\), got 'norm'",
    ),
    "by no string": (lambda: sb.SampledColumns(by=3), TypeError, "by must be one of .*, got int"),
    "no keys": (lambda: sb.TopKeys(0), ValueError, "n_keys must be an int of at least 1 .*, got 0"),
    "no block": (
        lambda: sb.KeyClusters(query_block=None),
        TypeError,
        "query_block must be an int of at least 1, got None",
    ),
    "no routes": (lambda: sb.KeyClusters(n_routes=0), ValueError, "n_routes must be an int of at least 1"),
    "half a query": (
        lambda: sb.SelectedQueries(n_selected=0.5),
        TypeError,
        "n_selected must be an int of at least 1 .* or None, got float",
    ),
    "a budget of less than one query": (
        lambda: sb.attention(*LONG, method="informer", budget=0.5),
        ValueError,
        r"budget must be at least 0.51, 51 of 100 keys, for the least form of .*, got 0.5: 50 of 100 keys",
    ),
    "a budget of no column and pilot": (
        lambda: sb.attention(*PROBLEM, method="skeinformer", budget=0.2),
        ValueError,
        r"budget must be at least 0.4286, 3 of 7 keys, for the least form of .*, got 0.2: 1 of 7 keys",
    ),
    "a budget below the routes": (
        lambda: sb.attention(*PROBLEM, method=sb.Scatterbrain(None, sb.KeyClusters(n_routes=3)), budget=0.3),
        ValueError,
        r"budget must be at least 0.4286, 3 of 7 keys, for the least form of .*, got 0.3: 2 of 7 keys",
    ),
}
PROBLEM = draw_problem(np.random.default_rng(0), 7, 7)
LONG = draw_problem(np.random.default_rng(0), 2, 100)


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_said(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize("name", PRESETS)
def test_grouped_heads(library, rng, name):
    q, k, v = draw_problem(rng, 30, 40, lead=(2, 4))
    arguments = {"method": name, "budget": 0.4}
    grouped = sb.attention(*library.arrays(q, k[:, ::2], v[:, ::2]), enable_gqa=True, **arguments)
    repeated = (x[:, ::2].repeat(2, axis=1) for x in (k, v))
    plain = sb.attention(*library.arrays(q, *repeated), **arguments)
    assert relative_error(library.to_numpy(grouped), library.to_numpy(plain)) <= tolerance("float64", q, k)
