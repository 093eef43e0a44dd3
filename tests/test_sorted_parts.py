"""Sorted clusters, sorted chunks and blocks: SMYRF, Reformer and BigBird against their definitions."""

from __future__ import annotations

from collections import Counter
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from libraries import make_library
from oracle import METHODS, is_call, oracle, relative_error, tolerance
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_core.random import Draws
from scatterbrain_core.sparse.blocks import different_numbers

PRESETS = ["smyrf", "scatterbrain_smyrf", "reformer", "bigbird"]


def assert_is_the_oracles(library, est, q, k, v, **arguments):
    output, lse = oracle(q, k, v, est.parts, **arguments)
    limit = tolerance(q.dtype, q, k, arguments.get("scale"))
    assert relative_error(library.to_numpy(est.output), output) <= limit
    got = library.to_numpy(est.lse)
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(lse))
    seen = ~np.isneginf(lse)
    assert np.abs(got[seen] - lse[seen]).max(initial=0.0) <= limit


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(150, 150), (70, 200)])
def test_a_preset_is_its_definition(library, dtype, is_causal, rng, name, n_queries, n_keys):
    q, k, v = draw_problem(rng, n_queries, n_keys, dtype=dtype)
    est = sb.estimate(*library.arrays(q, k, v), method=name, budget=0.2, is_causal=is_causal, seed=3)
    assert_is_the_oracles(library, est, q, k, v, is_causal=is_causal, seed=3)
    assert est.method == name
    assert (0.04 if is_causal else 0.08) < est.cost.fraction <= 0.2


lengths = st.sampled_from([1, 2, 3, 5, 8, 17, 31, 64, 65, 100])
counts = st.integers(1, 4)
sizes = st.sampled_from([1, 2, 3, 8, 30, 1000])
clusters = st.builds(sb.SortedClusters, sizes, counts)
chunks = st.builds(sb.SortedChunks, sizes, st.sampled_from([2, 6, 10]), counts)
blocks = st.builds(sb.Blocks, sizes, st.sampled_from([1, 2, 3, 7]), st.integers(0, 4))


@given(data=st.data())
def test_any_sizes_and_masks_are_the_oracles(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_queries, n_keys = data.draw(lengths), data.draw(lengths)
    lead = data.draw(st.sampled_from([(), (3,), (1, 2, 2)]))
    q, k, v = draw_problem(rng, n_queries, n_keys, lead=lead)
    low_rank = data.draw(st.sampled_from([None, sb.PositiveFeatures(3)]))
    parts = sb.Scatterbrain(low_rank, data.draw(st.one_of(clusters, chunks, blocks)))
    arguments = {"seed": data.draw(st.integers(0, 2**31)), "scale": data.draw(st.sampled_from([None, -0.7]))}
    shape = data.draw(st.sampled_from([None, (n_queries, 1), (1, n_keys), (*lead, 1, n_keys)]))
    mask = None if shape is None else rng.random(shape) < data.draw(st.sampled_from([0.1, 0.6, 1.0]))
    is_causal = mask is None and is_call(parts, is_causal=True) and data.draw(st.booleans())
    est = sb.estimate(q, k, v, method=parts, attn_mask=mask, is_causal=is_causal, **arguments)
    expected, _ = oracle(q, k, v, parts, mask=mask, is_causal=is_causal, **arguments)
    assert relative_error(est.output, expected) <= tolerance("float64", q, k, arguments["scale"])


@pytest.mark.parametrize("name", ["sorted clusters", "sorted clusters, features"])
def test_hidden_queries_and_keys_are_as_good_as_absent(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 40, 60, dtype=dtype)
    keys, rows = rng.random(60) < 0.6, rng.random(40) < 0.6
    arguments = {"method": METHODS[name]}
    for mask, there in ((keys[None, :], (q, k[:, keys], v[:, keys])), (rows[:, None], (q[:, rows], k, v))):
        hidden = sb.attention(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **arguments)
        hidden = library.to_numpy(hidden) if len(mask) == 1 else library.to_numpy(hidden)[:, rows]
        absent = library.to_numpy(sb.attention(*library.arrays(*there), **arguments))
        assert relative_error(hidden, absent) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("other", ["torch", "array_api_strict"])
@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("sorted")])
def test_equal_rows_tie_alike_everywhere(rng, dtype, is_causal, other, name):
    """Where clusters are cut among equal rows, each must fall to the same side in every library."""
    library = make_library(other)
    q, k, v = draw_problem(rng, 90, 77, dim=19, dtype=dtype)
    q, k = q[:, np.arange(90) % 11], k[:, np.arange(77) % 11]
    arguments = {"method": METHODS[name], "is_causal": is_causal}
    expected = sb.attention(q, k, v, **arguments)
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    assert relative_error(got, expected) <= {"float32": 1e-5, "float64": 1e-12}[dtype]


REFUSED = {
    "clusters, causal": (
        sb.SortedClusters(4),
        {"is_causal": True},
        "sparse must not sort all queries and keys",
    ),
    "clusters, masked": (
        sb.SortedClusters(4),
        {"attn_mask": np.tri(20, dtype=bool)},
        "sparse must not sort all queries and keys where attn_mask hides some",
    ),
    "chunks, masked": (
        sb.SortedChunks(4),
        {"attn_mask": np.tri(20, dtype=bool)},
        "sparse must not sort all keys into chunks where attn_mask hides some",
    ),
    "too few for the rounds": (
        sb.SortedClusters(n_rounds=3),
        {"budget": 0.1},
        r"budget must be at least 0.15, 3 of 20 keys, for the least form of .*SortedClusters",
    ),
    "too few for the chunks": (
        sb.SortedChunks(n_rounds=2),
        {"budget": 0.1},
        r"budget must be at least 0.2, 4 of 20 keys, for the least form of .*SortedChunks",
    ),
    "too few for the blocks": (
        sb.Blocks(),
        {"budget": 0.2},
        r"budget must be at least 0.3, 6 of 20 keys, for the least form of .*Blocks",
    ),
}


@pytest.mark.parametrize(("part", "arguments", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_calls_that_are_refused(rng, part, arguments, expected):
    q, k, v = draw_problem(rng, 20, 20)
    with pytest.raises(ValueError, match=expected):
        sb.attention(q, k, v, method=sb.Scatterbrain(None, part), **arguments)


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (lambda: sb.SortedClusters(0), ValueError, "cluster_size must be an int of at least 1"),
        (lambda: sb.SortedClusters(4, n_rounds=1.5), TypeError, "n_rounds must be an int"),
        (lambda: sb.SortedChunks(n_codes=5), ValueError, "n_codes must be even, two for each axis, got 5"),
        (lambda: sb.SortedChunks(n_codes=0), ValueError, "n_codes must be an int of at least 2"),
        (lambda: sb.Blocks(n_window=None), TypeError, "n_window must be an int of at least 1, got None"),
        (lambda: sb.Blocks(n_window=0), ValueError, "n_window must be an int of at least 1"),
        (lambda: sb.Blocks(n_random=-1), ValueError, "n_random must be an int of at least 0"),
    ],
)
def test_sizes_that_are_refused(make, error, expected):
    with pytest.raises(error, match=expected):
        make()


def support(q, k, part, **arguments):
    logits = sb.attention_matrix(q, k, method=sb.Scatterbrain(None, part), normalize=False, **arguments)
    return logits != 0


def test_clusters_of_one_round_are_disjoint_and_of_nearly_equal_size(rng):
    q, k, _ = draw_problem(rng, 50, 53)
    for of_head in support(q, k, sb.SortedClusters(6)):
        rows = {tuple(row) for row in of_head}
        assert len(rows) == 9  # ceil(53 / 6)
        assert sum(map(np.array, rows)).max() == 1
        assert sorted({sum(row) for row in rows}) == [5, 6]


def test_a_query_that_is_a_key_finds_it(rng, is_causal):
    """As in Reformer, where queries and keys are one, each is in its own chunk."""
    x = rng.standard_normal((2, 80, 6))
    for own in support(x, x, sb.SortedChunks(3, 4), is_causal=is_causal):
        assert own.diagonal().all()
        assert own.sum(-1).max() == 6


@pytest.mark.parametrize(("count", "n"), [(1, 1), (4, 2), (5, 3), (3, 3), (2, 3), (0, 2)])
def test_all_sets_of_blocks_are_alike_likely(count, n):
    """Every remainder of the numbers drawn, once."""
    tops = [max(count - n + i + 1, 1) for i in range(n)]
    drawn = np.array(list(product(*map(range, tops))))
    sets = Counter(frozenset(row) - {-1} for row in different_numbers(np, drawn, np.full(len(drawn), count)))
    assert all(len(members) == min(count, n) for members in sets)
    assert len(set(sets.values())) == 1
    assert set().union(*sets) == set(range(count))


def test_random_blocks_are_drawn_from_their_seed(rng):
    q, k, _ = draw_problem(rng, 64, 64, lead=(1,))
    part = sb.Blocks(4, 1, 2)
    first, same, other = (support(q, k, part, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert part.draw(Draws(0).support_generator(), 5, 64, 64)[0].shape == (16, 2)
