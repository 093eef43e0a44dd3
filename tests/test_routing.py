"""Routed clusters (`method="auto"`) against their transcription: choices first, then values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import stress
from hypothesis import given
from hypothesis import strategies as st
from libraries import make_library
from oracle import relative_error, tolerance
from problems import draw_problem, eps
from routed_choices import library_choices
from routed_oracle import layout_of, routed

import scatterbrain_core as sb
from scatterbrain_core.routing import layout as layouts

# Lq, Lk, D, entries: causal blocks of one, two and three sizes, what pads them, and one query.
SHAPES = [(150, 150, 4, 24), (97, 200, 6, 30), (200, 97, 5, 30), (70, 70, 1, 8), (1, 90, 3, 20)]
LARGE = [(300, 300, 8, 60), (530, 90, 2, 12)]
# Several tiles of queries, and more clusters than entries.
MANY_CLUSTERS = [(200, 300, 6, 40), (150, 400, 4, 24), (300, 257, 8, 30)]
PRECISIONS = {"numpy": ("bfloat16", "float32", "float64"), "torch": ("float16", "float32")}


def method(entries):
    return sb.Scatterbrain(sparse=sb.RoutedClusters(entries))


def layout(entries, q, k, is_causal=False):
    return layout_of(q.shape[-2], k.shape[-2], q.shape[-1], sb.RoutedClusters(entries), 1.0, is_causal)


def is_exact(entries, q, k, is_causal):
    return sb.RoutedClusters(entries).is_exact(q.shape[-2], k.shape[-2], is_causal)


def assert_same_choices(found, expected):
    for number, head in enumerate(expected.heads):
        mine = found(number)
        for (level, start), clusters in head.blocks.items():
            for c in clusters:
                assert (mine.labels[level, start][c.keys - start] == c.place[2]).all(), c.place
        for number_of_tile, tile in enumerate(head.tiles):
            assert mine.tiles[number_of_tile] == tile.queries
            assert mine.looked(number_of_tile) == {c.group for c in tile.clusters}
        for i, opened in head.opened.items():
            assert mine.choice(i) == (opened, head.split[i]), f"head {number}, query {i}"


def assert_same_values(library, est, expected, bound):
    assert relative_error(library.to_numpy(est.output), expected.output) <= bound
    lse = library.to_numpy(est.lse)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected.lse))
    seen = ~np.isneginf(lse)
    assert np.abs(lse[seen] - expected.lse[seen]).max(initial=0.0) <= bound
    assert est.cost.pairs == pytest.approx(expected.pairs.mean(), rel=1e-6)
    assert est.cost.rank == pytest.approx(expected.rank.mean(), rel=1e-6)


@pytest.mark.parametrize(("n_queries", "n_keys", "dim", "entries"), SHAPES + LARGE)
def test_choices_are_the_transcriptions(rng, is_causal, n_queries, n_keys, dim, entries):
    q, k, v = draw_problem(rng, n_queries, n_keys, dim=dim)
    plan = layout(entries, q, k, is_causal)
    expected = routed(q, k, v, plan, is_causal=is_causal)
    assert_same_choices(library_choices(np.asarray, (q, k, v), plan, is_causal=is_causal), expected)
    if not is_exact(entries, q, k, is_causal):
        est = sb.estimate(q, k, v, method=method(entries), is_causal=is_causal)
        assert_same_values(make_library("numpy"), est, expected, tolerance("float64", q, k))


def test_the_transcription_opens_splits_and_leaves(rng, is_causal):
    """What is compared above is a choice: clusters are opened, seen apart, and seen in groups."""
    q, k, v = draw_problem(rng, 150, 150, dim=4)
    for head in routed(q, k, v, layout(24, q, k, is_causal), is_causal=is_causal).heads:
        there = {place for opened in head.opened.values() for place in opened}
        apart = {place for i, split in head.split.items() for place in split - head.opened[i]}
        clusters = {c.place for block in head.blocks.values() for c in block}
        assert there
        assert apart
        assert any(clusters - split - head.opened[i] for i, split in head.split.items())


@pytest.mark.parametrize("looked", [1, 5, 12, 30])
@pytest.mark.parametrize(("n_queries", "n_keys", "dim", "entries"), [*MANY_CLUSTERS, SHAPES[3]])
def test_choices_of_tiles_that_look_at_few_clusters(rng, n_queries, n_keys, dim, entries, looked):
    arrays = draw_problem(rng, n_queries, n_keys, dim=dim)
    plan = replace(layout(entries, *arrays[:2]), looked=looked)
    assert_same_choices(library_choices(np.asarray, arrays, plan, is_causal=False), routed(*arrays, plan))


HIDDEN = ["nothing", "keys", "rows", "a tile of rows", "all keys of a head", "nothing, six rows want all"]


@pytest.mark.parametrize("hides", HIDDEN)
def test_every_library_makes_the_transcriptions_choices(library, rng, hides):
    arrays = draw_problem(rng, 200, 300, dim=6)
    if hides == HIDDEN[-1]:  # which would spend more than any may
        arrays[0][0, 6:] = 0
    keys, rows = np.ones((2, 300), bool), np.ones((2, 200), bool)
    if hides == "keys":
        keys = rng.random((2, 300)) < 0.6
    elif hides == "rows":
        rows = rng.random((2, 200)) < 0.6
    elif hides == "a tile of rows":
        rows[1, 30:170] = False
    elif hides == "all keys of a head":
        keys[0] = False
    plan = replace(layout(40, *arrays[:2]), looked=50 if hides == HIDDEN[-1] else 12)
    is_of_rows = hides in ("rows", "a tile of rows")
    mask = (
        None
        if hides.startswith("nothing")
        else library.asarray(rows[..., None] if is_of_rows else keys[:, None])
    )
    masks = {"row_mask": rows} if is_of_rows else {"key_mask": keys}
    found = library_choices(library.to_numpy, library.arrays(*arrays), plan, is_causal=False, attn_mask=mask)
    assert_same_choices(found, routed(*arrays, plan, **masks))


def test_tiles_of_the_transcription_leave_groups_whole(rng):
    """What is compared above are choices: a tile looks at some groups, another at others."""
    q, k, v = draw_problem(rng, 200, 300, dim=6)
    for head in routed(q, k, v, replace(layout(40, q, k), looked=12)).heads:
        assert len(head.tiles) == 4
        assert all(tile.clusters and tile.wholes for tile in head.tiles)
        assert len({frozenset(c.group for c in tile.clusters) for tile in head.tiles}) > 1


@pytest.mark.parametrize("masked", ["no", "keys", "rows"])
@pytest.mark.parametrize(("n_queries", "n_keys", "dim", "entries"), MANY_CLUSTERS[:2])
def test_values_where_tiles_look_at_few_clusters(
    library, dtype, few_looked, rng, n_queries, n_keys, dim, entries, masked
):
    arrays = draw_problem(rng, n_queries, n_keys, dim=dim, dtype=dtype)
    keys, rows = rng.random((2, n_keys)) < 0.7, rng.random((2, n_queries)) < 0.7
    mask = {"no": None, "keys": keys[:, None, :], "rows": rows[:, :, None]}[masked]
    masks = {"no": {}, "keys": {"key_mask": keys}, "rows": {"row_mask": rows}}[masked]
    plan, own = layout(entries, *arrays[:2]), library.arrays(*arrays)
    options = {"is_causal": False, "attn_mask": None if mask is None else library.asarray(mask)}
    like = library_choices(library.to_numpy, own, plan, **options)
    expected = routed(*arrays, plan, like=like, **masks)
    assert any(tile.wholes for head in expected.heads for tile in head.tiles)
    est = sb.estimate(*own, method=method(entries), **options)
    assert_same_values(library, est, expected, tolerance(dtype, *arrays[:2]))
    output = library.to_numpy(sb.attention(*own, method=method(entries), **options))
    assert relative_error(output, expected.output) <= 2 * tolerance(dtype, *arrays[:2])


@pytest.mark.parametrize(("n_queries", "n_keys", "dim", "entries"), [SHAPES[1], SHAPES[3]])
def test_values_are_the_transcriptions(library, dtype, is_causal, rng, n_queries, n_keys, dim, entries):
    arrays = draw_problem(rng, n_queries, n_keys, dim=dim, dtype=dtype)
    q, k, _ = arrays
    plan = layout(entries, q, k, is_causal)
    like = library_choices(library.to_numpy, library.arrays(*arrays), plan, is_causal=is_causal)
    expected = routed(*arrays, plan, is_causal=is_causal, like=like)
    est = sb.estimate(*library.arrays(*arrays), method=method(entries), is_causal=is_causal)
    assert library.is_own(est.output)
    assert str(est.output.dtype).endswith(dtype)
    assert est.stderr is None
    assert_same_values(library, est, expected, tolerance(dtype, *arrays[:2]))
    output = sb.attention(*library.arrays(*arrays), method=method(entries), is_causal=is_causal)
    # Fields that are not kept apart are merged in another order.
    assert relative_error(library.to_numpy(output), library.to_numpy(est.output)) <= 32 * eps(dtype)


@pytest.mark.parametrize("other", ["torch", "array_api_strict"])
def test_every_library_chooses_the_same(rng, is_causal, other):
    """In float64; in float32 gains that are equal to rounding may fall to either side."""
    library = make_library(other)
    q, k, v = draw_problem(rng, 300, 257, dim=32, lead=(2, 2), columns=16)
    expected = sb.attention(q, k, v, is_causal=is_causal)
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), is_causal=is_causal))
    assert relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("scale", [None, 1.0, -0.7, 0.0])
def test_the_matrix_is_the_transcriptions(library, is_causal, rng, scale):
    q, k, v = draw_problem(rng, 70, 80)
    options = {"method": method(20), "is_causal": is_causal, "scale": scale}
    expected = routed(q, k, v, layout(20, q, k, is_causal), is_causal=is_causal, scale=scale)
    weights = np.exp(expected.logs)
    got = library.to_numpy(sb.attention_matrix(*library.arrays(q, k), normalize=False, **options))
    bound = tolerance("float64", q, k, scale)
    np.testing.assert_allclose(got, weights, rtol=bound * 4, atol=0)
    matrix = library.to_numpy(sb.attention_matrix(*library.arrays(q, k), **options))
    np.testing.assert_allclose(matrix.sum(-1), 1.0, rtol=1e-12)
    output = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    assert relative_error(output, matrix @ v) <= bound


def test_the_matrix_where_tiles_look_at_few_clusters(library, few_looked, rng):
    q, k, v = draw_problem(rng, 150, 300)
    options = {"method": method(24)}
    expected = routed(q, k, v, layout(24, q, k))
    assert all(tile.wholes for head in expected.heads for tile in head.tiles)
    got = library.to_numpy(sb.attention_matrix(*library.arrays(q, k), normalize=False, **options))
    bound = tolerance("float64", q, k)
    np.testing.assert_allclose(got, np.exp(expected.logs), rtol=bound * 4, atol=0)
    matrix = library.to_numpy(sb.attention_matrix(*library.arrays(q, k), **options))
    output = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    assert relative_error(output, matrix @ v) <= bound


@pytest.mark.parametrize("hides", ["keys", "rows", "first keys", "all keys of a head"])
def test_masks(library, is_causal, rng, hides):
    q, k, v = draw_problem(rng, 120, 130)
    options = {"method": method(24), "is_causal": is_causal}
    keys, rows = np.ones((2, 130), bool), np.ones((2, 120), bool)
    if hides == "keys":
        keys = rng.random((2, 130)) < 0.6
    elif hides == "rows":
        rows = rng.random((2, 120)) < 0.6
    elif hides == "first keys":
        keys[:, :20] = False
    else:
        keys[0] = False
    mask = rows[:, :, None] if hides == "rows" else keys[:, None, :]
    masks = {"row_mask": rows} if hides == "rows" else {"key_mask": keys}
    expected = routed(q, k, v, layout(24, q, k, is_causal), is_causal=is_causal, **masks)
    est = sb.estimate(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **options)
    output = library.to_numpy(est.output)
    assert relative_error(output, expected.output) <= tolerance("float64", q, k)
    np.testing.assert_array_equal(np.isneginf(library.to_numpy(est.lse)), np.isneginf(expected.lse))
    assert est.cost.pairs == pytest.approx(expected.pairs.mean())
    before = sb.attention(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **options)
    assert relative_error(library.to_numpy(before), output) <= 1e-13
    for x, hidden in ((q, ~rows), (k, ~keys), (v, ~keys)):
        x[hidden] = rng.standard_normal((hidden.sum(), x.shape[-1])) * 100
    changed = sb.attention(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **options)
    np.testing.assert_array_equal(library.to_numpy(changed), library.to_numpy(before))


def test_grouped_heads(library, is_causal, rng):
    assert_grouped_heads(library, rng, 90, 100, 20, is_causal)


def test_grouped_heads_of_tiles_that_look_at_few_clusters(library, few_looked, rng):
    assert_grouped_heads(library, rng, 150, 300, 24, False)


def assert_grouped_heads(library, rng, n_queries, n_keys, entries, is_causal):
    q, _, _ = draw_problem(rng, n_queries, 1, lead=(2, 4))
    _, k, v = draw_problem(rng, 1, n_keys, lead=(2, 2), columns=7)
    repeated = [np.repeat(x, 2, axis=1) for x in (k, v)]
    expected = routed(q, *repeated, layout(entries, q, k, is_causal), is_causal=is_causal)
    options = {"method": method(entries), "enable_gqa": True, "is_causal": is_causal}
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), **options))
    assert relative_error(got, expected.output) <= tolerance("float64", q, repeated[0])


@given(data=st.data())
def test_any_layout_is_the_transcriptions(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "LEAST_LOOKED", data.draw(st.sampled_from([1, layouts.LEAST_LOOKED])))
        assert_any_layout(data)


def assert_any_layout(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_queries, n_keys = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    q, k, v = draw_problem(rng, n_queries, n_keys, dim=data.draw(st.sampled_from([1, 3, 9])), lead=(1,))
    entries, is_causal = data.draw(st.integers(6, 40)), data.draw(st.booleans())
    if is_exact(entries, q, k, is_causal):
        output = sb.attention(q, k, v, method=method(entries), is_causal=is_causal)
        exact = sb.attention(q, k, v, method="exact", is_causal=is_causal)
        np.testing.assert_array_equal(output, exact)
        return
    try:
        est = sb.estimate(q, k, v, method=method(entries), is_causal=is_causal)
    except ValueError as error:
        assert "entries" in str(error)  # noqa: PT017 - the least is tested elsewhere
        return
    expected = routed(q, k, v, layout(entries, q, k, is_causal), is_causal=is_causal)
    assert_same_values(make_library("numpy"), est, expected, tolerance("float64", q, k))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in stress.SCENARIOS
        if name not in ("rows that see one key", "features too large by e^30", "fewer keys than dimensions")
    ],
)
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("torch", "float16"),
        ("numpy", "bfloat16"),
        ("torch", "float32"),
        ("numpy", "float32"),
        ("numpy", "float64"),
    ],
)
def test_extremes_round_as_little_as_any_method(kind, name, precision, is_causal):
    """Scenarios of tests/stress.py, against the transcription with the same clusters and choices."""
    kind, rng = stress.Kind(kind), np.random.default_rng(stress.SCENARIOS.index(name))
    arrays = stress.changed(name, *draw_problem(rng, 70, 80, dim=8))
    arrays = [kind.asarray(x, precision) for x in arrays]
    q, k, v = map(kind.to_numpy, arrays)
    plan = layout(20, q, k, is_causal)
    like = library_choices(kind.library.to_numpy, arrays, plan, is_causal=is_causal)
    expected = routed(q, k, v, plan, is_causal=is_causal, like=like)
    est = sb.estimate(*arrays, method=method(20), is_causal=is_causal)
    assert relative_error(kind.to_numpy(est.output), expected.output) <= 32 * stress.unit_of(precision, q, k)
    error = np.abs(kind.to_numpy(est.lse) - expected.lse).max()
    assert error <= 32 * stress.lse_unit_of(precision, q, k)
