"""Loops compiled for NumPy: each against the array-API code, and `auto` with and without them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from types import FunctionType

import numpy as np
import pytest
from array_api_compat import numpy as xp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays
from kernels.cases import Case, error, make_visits
from problems import draw_problem, eps

import scatterbrain_core as sb
from scatterbrain_backends.numpy_ import NumpyBackend, compiled, visiting
from scatterbrain_backends.numpy_ import query_tiles as numpy_tiles
from scatterbrain_core import kmeans
from scatterbrain_core.backend import Backend
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.normalization import Partial, normalize
from scatterbrain_core.routing import layout as layouts
from scatterbrain_core.routing import query_tiles
from scatterbrain_core.routing import view as views
from scatterbrain_core.routing.selection import PART_OF_ENTRY, SAMPLED_ROWS, curve_of
from scatterbrain_core.routing.spending import Allowance
from scatterbrain_core.routing.visits import Keys, Opened
from scatterbrain_core.rows import Pairs
from scatterbrain_core.sparse_correction import interval_partial

pytest.importorskip("numba")
import numba
from numba.core.caching import FunctionCache

from scatterbrain_backends.numpy_.compiled import loop as loop_module
from scatterbrain_backends.numpy_.compiled import selection
from scatterbrain_backends.numpy_.compiled.exponential import exponential
from scatterbrain_backends.numpy_.compiled.loop import loop

SOME = (-np.inf, -2.0, 0.0, 1.0, 1.5)
GENERIC, NUMPY = Backend(xp), NumpyBackend(xp)
HOOKS = (
    "kmeans",
    "two_largest",
    "cluster_statistics",
    "cluster_logits",
    "true_places",
    "choose",
    "far_partial",
    "with_opened",
    "solve_tiles",
)


@pytest.fixture(params=[True, False], ids=["compiled", "array API"])
def is_compiled(request, monkeypatch):
    """With numba and without."""
    monkeypatch.setattr(compiled, "is_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_those_of_numpy(dtype):
    from numba import njit

    each = njit(lambda x: [exponential(y) for y in x])
    x = np.concatenate([np.linspace(-87.3, 88, 5001), [-np.inf, np.inf, np.nan, -1e4, 1e4, 0.0, -0.0]])
    x = x.astype(dtype)
    with np.errstate(over="ignore"):
        expected = np.exp(x.astype(np.longdouble))
    got = np.array(each(x), dtype)
    np.testing.assert_allclose(got[:5001], expected[:5001], rtol=2 * eps(dtype))
    np.testing.assert_array_equal(got[5001:], [0, np.inf, np.nan, 0, np.inf, 1, 1])


def draw_view(rng, n_rows, n_clusters, n_groups, dtype, spread=2.0):
    """A view of clusters, of which some are not there, in groups."""
    count = rng.integers(0, 9, (2, n_clusters)).astype(dtype)
    logit = rng.normal(0, spread, (2, n_rows, n_clusters)) + np.log(np.maximum(count, 1))[:, None]
    hidden = (count == 0)[:, None] | (rng.random(logit.shape) < 0.1)
    return views.View(
        np.where(hidden, -np.inf, logit).astype(dtype),
        rng.uniform(0, 3, logit.shape).astype(dtype),
        count,
        rng.standard_normal((2, n_clusters, 3)).astype(dtype),
        rng.standard_normal((2, n_clusters, 4)).astype(dtype),
        rng.uniform(0, 2, (2, n_clusters)).astype(dtype),
        np.eye(n_groups, dtype=dtype)[rng.integers(0, n_groups, (2, n_clusters))],
        np.zeros((2, n_clusters), np.intp),
    )


@given(
    n_rows=st.sampled_from([1, 7, 128, 300]),
    n_clusters=st.integers(1, 40),
    n_groups=st.integers(1, 6),
    mean=st.floats(0, 60),
    given_bars=st.booleans(),
    hides=st.booleans(),
    spread=st.sampled_from([0.1, 2.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_choices_are_those_of_the_array_api_code(
    n_rows, n_clusters, n_groups, mean, given_bars, hides, spread, seed
):
    rng = np.random.default_rng(seed)
    view = draw_view(rng, n_rows, n_clusters, n_groups, np.float64, spread)
    near = Partial(rng.normal(0, spread, (2, n_rows)), rng.uniform(0.5, 2, (2, n_rows, 4)))
    near.ref[:, ::3] = -np.inf
    near.acc[:, ::3] = 0
    is_row = rng.random((2, n_rows)) < 0.7 if hides else None
    mean, bar = (np.full((2, 1, 1), x) for x in (mean, 10.0 ** rng.uniform(-9, -1)))
    allowance = Allowance(mean, rng.uniform(1, 8) * mean, (bar, bar / 3) if given_bars else None)
    seen = (near, is_row, allowance)
    expected, bars = views.choose(GENERIC, view, *seen)
    far = views.far_partial(GENERIC, view, expected)
    got, own_bars = NUMPY.choose(view, *seen, None)
    np.testing.assert_array_equal(got.opened, expected.opened)
    seen_apart = got.split | (view.count == 0)[:, None]  # whether an empty cluster is, is of no account
    np.testing.assert_array_equal(seen_apart, expected.split | (view.count == 0)[:, None])
    for own, other in zip(own_bars, bars, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-9)
    own_far = NUMPY.far_partial(view, got, None)
    own_ref, ref = (np.where(np.isfinite(x.ref), x.ref, 0.0) for x in (own_far, far))
    step = np.exp(np.where(np.isfinite(own_far.ref), own_ref - ref, 0.0))
    np.testing.assert_allclose(own_far.acc * step[..., None], far.acc, rtol=1e-9, atol=1e-12)


def by_array_api(*arrays, **arguments):
    """The estimate without a hook of `auto`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in HOOKS:
            patch.setattr(NumpyBackend, name, getattr(Backend, name))
        return sb.estimate(*arrays, **arguments)


def agree(got, expected):
    """But for rows where rounding tipped a choice of equal gains."""
    off = np.abs(got.output - expected.output).max(axis=-1) > 1e-9
    assert off.mean() <= 0.005
    assert np.abs(got.output - expected.output).max() <= 0.02
    np.testing.assert_allclose(got.cost.pairs, expected.cost.pairs, rtol=1e-3)
    np.testing.assert_allclose(got.cost.rank, expected.cost.rank, rtol=1e-3)


@pytest.mark.parametrize("masked", ["no", "keys", "queries"])
@pytest.mark.parametrize("entries", [12.0, 40.0, 150.0])
def test_auto_is_that_of_the_array_api_code(rng, is_compiled, is_causal, masked, entries):
    q, k, v = draw_problem(rng, 700, 700, dim=16)
    q[0] *= 3  # a head whose weights are uneven: rows that would spend more than their most
    shape = {"keys": (2, 1, 700), "queries": (2, 700, 1)}.get(masked)
    mask = None if shape is None else rng.random(shape) < 0.7
    entries = 30.0 if is_causal and entries < 40 else entries
    method = sb.Scatterbrain(sparse=sb.RoutedClusters(entries))
    arguments = {"method": method, "is_causal": is_causal, "attn_mask": mask}
    agree(sb.estimate(q, k, v, **arguments), by_array_api(q, k, v, **arguments))


def test_chunks_of_more_rows_than_are_sampled(rng, is_causal):
    """And causal ones, which take the bars of the chunk before."""
    q, k, v = draw_problem(rng, 2100, 2100, dim=16, lead=(1,))
    arguments = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(128.0)), "is_causal": is_causal}
    agree(sb.estimate(1.5 * q, k, v, **arguments), by_array_api(1.5 * q, k, v, **arguments))


def test_nothing_is_chosen_where_nothing_gains_and_nothing_may_be_spent(is_compiled):
    q, k, v = np.random.default_rng(5).standard_normal((3, 100, 1))
    arguments = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(10.0)), "is_causal": True}
    agree(sb.estimate(q, k, v, **arguments), by_array_api(q, k, v, **arguments))


def test_a_query_that_is_not_finite_refines_nothing_and_spreads_to_its_own_row(rng):
    q, k, v = draw_problem(rng, 300, 300)
    arguments = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(40.0)), "check_finite": False}
    whole = sb.attention(q, k, v, **arguments)
    q[0, 7] = np.nan
    got = sb.attention(q, k, v, **arguments)
    assert np.isnan(got[0, 7]).all()
    assert np.isfinite(np.delete(got[0], 7, axis=0)).all()
    np.testing.assert_array_equal(got[1], whole[1])


CASES = {
    "plain": Case(),
    "counted": Case(is_unit=True, dim=1, columns=1, n_excluded=1),
    "wide": Case(300, 200, 100, 101, longest=90),
    "nothing": Case(longest=-1),
    "small blocks": Case(size=8, n_visits=3),
    "left out": Case(300, 200, 64, 65, n_excluded=2, longest=90),
}


def never():
    raise AssertionError("the array-API code was run")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile_keys", [16, 64])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tiles_are_those_of_the_definition(rng, case, tile_keys, dtype):
    visits = replace(make_visits(rng, replace(case, dtype=dtype)), tile_keys=tile_keys)
    assert error(visits, *NUMPY.tile_partial(visits, never)) <= {"float32": 1e-4, "float64": 1e-12}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spread", [1.0, 100.0, 3000.0])
def test_pairs_of_features_are_those_of_the_array_api_code(rng, spread, dtype):
    """Whose products underflow where the largest features of two rows do not meet; some keys have none."""
    visits = make_visits(rng, Case(60, 50, 12, 5, longest=40, n_excluded=1, dtype=dtype))
    query, key = (spread * x for x in (visits.pairs.query, visits.pairs.key))
    key[::7] = -np.inf
    visits.weighted_value[:, -1] = 1
    pairs = Pairs(query, key, PositiveKernel().pairs)
    visits = replace(visits, pairs=pairs)
    own = Partial(*NUMPY.tile_partial(visits, never))
    arguments = (visits.blocks, visits.intervals, pairs, visits.weighted_value, visits.tile_keys)
    expected = interval_partial(GENERIC, *arguments, visits.excluded)
    (output, lse), (other, other_lse) = (normalize(GENERIC, x) for x in (own, expected))
    unit = 50 * eps(dtype) * max(1, spread)
    np.testing.assert_allclose(output, other, atol=unit)
    np.testing.assert_allclose(lse, other_lse, rtol=unit, atol=unit)


GAINS = [0.0, 1e-310, 1e-44, 1e-38, 1e-30, 0.5, 0.5 * (1 + 1e-6), 0.5001, 1.0, 3.0, 1e30, 3e38, np.inf]
HINTS = [0.0, 1e-300, 1e-45, 1e-38, 0.5, 1.0, 1e30, 3e38, 1e300]


def draw_items(data, n_rows, dtype):
    """Groups and clusters, with gains that are equal or far apart, and with costs that some splits lessen."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_groups, n_clusters = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 9))
    gains = np.array(data.draw(st.lists(st.sampled_from(GAINS), min_size=1, max_size=5)))
    groups, clusters = (rng.choice(gains, (n, n_rows)).astype(dtype) for n in (n_groups, n_clusters))
    if data.draw(st.booleans()):
        clusters *= rng.uniform(0.3, 1, clusters.shape).astype(dtype)
    count, group_cost = (rng.integers(1, 9, n).astype(dtype) for n in (n_clusters, n_groups))
    is_split = (rng.random((max(1, n_groups), n_rows)) < 0.5).astype(dtype)
    group = rng.integers(0, len(is_split), n_clusters)
    return groups, clusters, group, group_cost, count, is_split


def sorted_bar(items, limit, step=1):
    """The bar of `routing.selection` for rows of these items, which may each spend the limit on average."""
    groups, clusters, group, group_cost, count, is_split = items
    cost = np.concatenate(
        [np.broadcast_to(group_cost[:, None], groups.shape), count[:, None] - is_split[group]]
    )
    gain, cost = (np.ascontiguousarray(x.T[None, ::step]) for x in (np.concatenate([groups, clusters]), cost))
    curve = curve_of(xp, gain, cost.astype(gain.dtype))
    return curve.bar(xp, np.full((1, 1, 1), limit))[0, 0, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data(), hint=st.sampled_from(HINTS) | st.floats(0, 1e300))
def test_bars_are_those_of_sorted_gains(dtype, data, hint):
    """Whatever is fitted in: all, nothing, or a part of equal gains; and wherever the search starts."""
    n_rows = data.draw(st.sampled_from([1, 3, 64]))
    items = draw_items(data, n_rows, dtype)
    limit = data.draw(st.sampled_from([-9.0, 0.0, 1e9]) | st.floats(0, 60))
    expected = sorted_bar(items, limit)
    assert selection.bar_at_mean(items, limit, False, hint) == expected
    if limit >= 0:
        assert selection.bar_at(items, n_rows * limit + PART_OF_ENTRY, hint) == expected


@given(data=st.data(), n_rows=st.sampled_from([127, 128, 255, 256, 400]))
def test_bars_of_a_part_are_those_of_every_so_many_rows(data, n_rows):
    items, limit = draw_items(data, n_rows, "float32"), data.draw(st.floats(0, 60))
    step = max(1, n_rows // SAMPLED_ROWS)
    assert selection.bar_at_mean(items, limit, True, 1.0) == sorted_bar(items, limit, step)


@given(
    x=drawn_arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 20)), elements=st.sampled_from(SOME)
    ),
)
def test_the_two_largest_are_those_of_the_array_api_code(x):
    """Of equal ones the first, and 0 where there is no second."""
    np.testing.assert_array_equal(NUMPY.two_largest(x, None), query_tiles.two_largest(xp, x))


def by_array_api_tiles(*arrays, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NumpyBackend, "solve_tiles", Backend.solve_tiles)
        return sb.attention(*arrays, **options)


def draw_tiles(monkeypatch, rng, dtype, masked="no", n_queries=700, n_keys=600):
    """A problem of many tiles of queries, which look at about as few clusters as they have entries."""
    monkeypatch.setattr(layouts, "LEAST_LOOKED", 1)
    q, k, v = draw_problem(rng, n_queries, n_keys, dim=16, dtype=dtype)
    q[0] *= 3  # a head whose weights are uneven: rows that would spend more than their most
    shape = {"keys": (2, 1, n_keys), "queries": (2, n_queries, 1)}.get(masked)
    mask = None if shape is None else rng.random(shape) < 0.7
    return (q, k, v), {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(24.0)), "attn_mask": mask}


@pytest.mark.parametrize("masked", ["no", "keys", "queries"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_of_queries_are_those_of_the_array_api_code(rng, monkeypatch, dtype, masked):
    arrays, options = draw_tiles(monkeypatch, rng, dtype, masked)
    got, expected = sb.attention(*arrays, **options), by_array_api_tiles(*arrays, **options)
    assert got.dtype == expected.dtype
    # But for rows where rounding tipped a choice of equal gains.
    off = np.abs(got - expected).max(axis=-1) > 100 * eps(dtype)
    assert off.mean() <= 0.002
    assert np.abs(got - expected).max() <= 0.02


@pytest.mark.parametrize(
    "kind", ["one query", "one tile", "one group", "hidden tiles", "no keys", "no width"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_odd_tiles_of_queries_are_those_of_the_array_api_code(rng, monkeypatch, dtype, kind):
    n_queries = {"one query": 1, "one tile": 64}.get(kind, 200)
    (q, k, v), options = draw_tiles(monkeypatch, rng, dtype, n_queries=n_queries, n_keys=200)
    if kind == "one group":
        options["method"] = sb.Scatterbrain(sparse=sb.RoutedClusters(7.0))
    elif kind == "hidden tiles":
        options["attn_mask"] = np.arange(n_queries)[None, :, None] < np.array([30, 150])[:, None, None]
    elif kind == "no keys":
        options["attn_mask"] = np.broadcast_to(np.array([False, True])[:, None, None], (2, 1, 200))
    elif kind == "no width":
        k[:] = k[:, :1]
    got, expected = sb.attention(q, k, v, **options), by_array_api_tiles(q, k, v, **options)
    np.testing.assert_allclose(got, expected, rtol=0, atol=100 * eps(dtype))


@pytest.mark.parametrize("factor", [0.0, 1e-18, 10.0, 1e3, 1e17])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_of_queries_of_any_scale_are_those_of_the_array_api_code(rng, monkeypatch, dtype, factor):
    """Where weights of clusters and of groups are lost to underflow too."""
    (q, k, v), options = draw_tiles(monkeypatch, rng, dtype)
    q = (factor * q).astype(dtype)
    got, expected = sb.attention(q, k, v, **options), by_array_api_tiles(q, k, v, **options)
    # Logits are rounded in units of their size.
    unit = 1000 * eps(dtype) * max(1.0, min(factor, 1e3))
    off = np.abs(got - expected).max(axis=-1) > unit
    assert (np.abs(got) <= np.abs(v).max() * (1 + unit)).all()
    if factor * eps(dtype) < 0.1:  # else rounding decides which of the clusters has all weight
        assert off.mean() <= 0.01


@pytest.mark.parametrize("entries", [24.0, 40.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_weight_of_a_group_that_is_lost_to_a_tile_is_not_to_its_queries(rng, monkeypatch, dtype, entries):
    """One query of a tile looks where the others have no weight that they could tell the clusters by."""
    monkeypatch.setattr(layouts, "LEAST_LOOKED", 1)
    q, k, v = draw_problem(rng, 64, 600, dim=4, lead=(1,), dtype=dtype)
    q[..., 1:] *= 6
    q[..., 0] += 30
    q[0, 5, 0] = -30
    k[:, :540, 0] = 0.05 * k[:, :540, 0] + 4
    k[:, 540:, 0] -= 4
    options = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(entries)), "scale": 1.0}
    got, expected = sb.attention(q, k, v, **options), by_array_api_tiles(q, k, v, **options)
    np.testing.assert_allclose(got, expected, rtol=0, atol=3000 * eps(dtype))


def test_a_query_whose_errors_are_subnormal_does_not_tell_its_tile_where_to_look(rng, monkeypatch):
    monkeypatch.setattr(layouts, "LEAST_LOOKED", 1)
    centres, n_keys = 1.5 * rng.standard_normal((30, 8)), 1200
    q = centres[rng.integers(0, 30, 1000)] + 0.5 * rng.standard_normal((1000, 8))
    k = centres[np.repeat(rng.integers(0, 30, 75), 16)] + 0.5 * rng.standard_normal((n_keys, 8))
    q[::5] = 0
    q, k, v = (x[None].astype("float32") for x in (1e16 * q, k / 1e16, rng.standard_normal((n_keys, 3))))
    options = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(60.0)), "scale": 1.0}
    got, expected = sb.attention(q, k, v, **options), by_array_api_tiles(q, k, v, **options)
    assert (np.abs(got - expected).max(axis=-1) > 1e-4).mean() <= 0.01


@pytest.mark.parametrize("masked", ["no", "queries"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pieces_and_threads_change_no_bit_of_tiles(rng, monkeypatch, dtype, masked):
    arrays, options = draw_tiles(monkeypatch, rng, dtype, masked)
    expected = sb.attention(*arrays, **options)
    for pieces, threads in ((22, 1), (22, 2), (6, 2), (4, 1), (1, 2)):
        monkeypatch.setattr(numpy_tiles, "spare_threads", lambda n=pieces: n)
        with threads_of_numpy(threads):
            np.testing.assert_array_equal(sb.attention(*arrays, **options), expected)


@contextmanager
def threads_of_numpy(n):
    sb.set_num_threads(n)
    yield
    sb.set_num_threads(None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_hidden_changes_no_bit_of_other_queries(rng, monkeypatch, is_compiled, dtype):
    (q, k, v), options = draw_tiles(monkeypatch, rng, dtype)
    mask = np.broadcast_to((np.arange(700) % 5 > 0)[None, :, None], (2, 700, 1))
    options["attn_mask"] = mask
    before = sb.attention(q, k, v, **options)
    q[:, ::5] = 1e10
    np.testing.assert_array_equal(sb.attention(q, k, v, **options), before)
    assert not before[:, ::5].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_points_are_in_the_clusters_of_the_array_api_code(rng, dtype):
    x = rng.standard_normal((1, 200, 5)).astype(dtype)
    x[:, 50:76] *= np.finfo(dtype).tiny / 64
    weight, metric = np.ones((1, 200), dtype), np.eye(5, dtype=dtype)[None]
    labels = kmeans.kmeans(NUMPY, x, weight, metric, 16)
    np.testing.assert_array_equal(labels, kmeans.kmeans(GENERIC, x, weight, metric, 16))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clusters_are_those_of_the_array_api_code(rng, dtype):
    x = rng.standard_normal((2, 3, 1, 90, 5)).astype(dtype)
    x[:, :, :, 40:60] = x[:, :, :, :1]  # equal keys
    value = rng.standard_normal((2, 3, 1, 90, 4)).astype(dtype)
    weight = (rng.random(x.shape[:-1]) < 0.8).astype(dtype)
    root = rng.standard_normal((2, 3, 1, 5, 5)).astype(dtype)
    metric = root @ root.swapaxes(-1, -2)
    labels = kmeans.kmeans(NUMPY, x, weight, metric, 8)
    np.testing.assert_array_equal(labels, kmeans.kmeans(GENERIC, x, weight, metric, 8))
    from scatterbrain_core.routing import nodes

    found = [nodes._cluster(b, x, value, weight, metric[:, :, 0], 8) for b in (NUMPY, GENERIC)]
    for name in ("count", "mean", "variance", "value"):
        own, other = (getattr(clusters, name) for clusters in found)
        np.testing.assert_allclose(own, other, rtol=100 * eps(dtype), atol=100 * eps(dtype))
    clusters = found[0]
    query = rng.standard_normal((2, 30, 5)).astype(dtype)
    columns = [x.reshape(2, 24, *x.shape[4:]) for x in (clusters.mean, clusters.variance, clusters.count)]
    seen = [views.cluster_logits(b, query, clusters.axes[:, 0], *columns) for b in (NUMPY, GENERIC)]
    for own, other in zip(*seen, strict=True):
        np.testing.assert_allclose(own, other, rtol=100 * eps(dtype), atol=100 * eps(dtype))


def test_a_visit_is_rounded_alike_whoever_else_visits(rng, is_compiled):
    """Queries that come later may not change a bit of those before them."""
    query, key = (rng.standard_normal((n, 16), dtype=np.float32) for n in (200, 50))
    keys = Keys(np.arange(50), key, np.ones((50, 9), np.float32) * key[:, :9], None)

    def of_rows(n):
        visits = Opened(np.arange(n), np.full(n, 10), np.full(n, 43))
        near = Partial(np.full(n, -np.inf, np.float32), np.zeros((n, 9), np.float32))
        return visiting.with_opened(near, query[:n], visits, keys)

    every = of_rows(200)
    logits = query.astype(float) @ key[10:43].T.astype(float)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True)) @ keys.weighted_value[10:43]
    np.testing.assert_allclose(every.acc, expected, rtol=1e-5, atol=1e-4)
    for n in (1, 5, 31, 32, 33, 100):
        some = of_rows(n)
        np.testing.assert_array_equal(some.acc, every.acc[:n])
        np.testing.assert_array_equal(some.ref, every.ref[:n])


def test_without_numba_the_loops_are_left_out(monkeypatch):
    """NUMBA_DISABLE_JIT would have them interpreted, which takes minutes."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    compiled.is_available.cache_clear()
    assert not compiled.is_available()
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    compiled.is_available.cache_clear()
    assert compiled.is_available()


def test_a_numba_that_cannot_be_imported_is_told_and_left_out(rng, monkeypatch):
    def fail(name):
        raise ImportError(f"{name} needs another NumPy")

    q, k, v = draw_problem(rng, 100, 100)
    arguments = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(30.0))}
    expected = sb.attention(q, k, v, **arguments)
    monkeypatch.setattr(compiled, "import_module", fail)
    compiled.is_available.cache_clear()
    with pytest.warns(UserWarning, match="numba is installed but cannot be used.*needs another NumPy"):
        got = sb.attention(q, k, v, **arguments)
    compiled.is_available.cache_clear()
    np.testing.assert_allclose(got, expected, atol=0.02)


FIRST_CALL = """
import numpy as np
import scatterbrain_core as sb
q, k, v = np.random.default_rng(0).standard_normal((3, 4, 2000, 64)).astype(np.float32)
method = sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(3))
first, second = (sb.attention(q, k, v, method=method, seed=0) for _ in range(2))
print((first != second).sum())
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_in_another_layout_give_the_same_bits(rng, dtype):
    """And no warning of numba, which would be an error."""
    arrays = [x.astype(dtype) for x in draw_problem(rng, 300, 300)]
    other = [np.ascontiguousarray(x.swapaxes(-3, -2)).swapaxes(-3, -2) for x in arrays]
    assert not other[0].flags.c_contiguous
    got, expected = (sb.attention(*xs, method="auto", budget=0.3) for xs in (other, arrays))
    np.testing.assert_array_equal(got, expected)


def doubled(x):
    return 2 * x


@pytest.mark.parametrize("damage", ["*.nbc", "*.nbi", "*.nb?"])
def test_damaged_files_of_compiled_loops_are_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def fresh():
        # A copy each time: the fingerprint is added to the name.
        return loop(FunctionType(doubled.__code__, globals(), "doubled"))

    assert fresh()(3.0) == 6.0
    damaged = [*tmp_path.rglob(damage)]
    assert damaged
    for file in damaged:
        file.write_bytes(file.read_bytes()[:20])
    again, last = fresh(), fresh()
    assert again(3.0) == last(3.0) == 6.0
    assert sum(again.stats.cache_misses.values()) == 1
    assert sum(last.stats.cache_hits.values()) == 1


FLIPPED = """
import sys
from pathlib import Path
from types import FunctionType

from scatterbrain_backends.numpy_.compiled.loop import loop


def trebled(x):
    return 3 * x


def fresh():
    return loop(FunctionType(trebled.__code__, globals(), "trebled"))


def is_made_anew(place):
    bits = bytearray(file.read_bytes())
    bits[int(place * len(bits))] ^= 4
    file.write_bytes(bits)
    again, last = fresh(), fresh()
    is_right = again(3.0) == last(3.0) == 9.0
    counts = sum(again.stats.cache_misses.values()), sum(last.stats.cache_hits.values())
    return is_right and counts == (1, 1) and file.read_bytes() != bits


fresh()(3.0)
(file,) = Path(sys.argv[1]).rglob(sys.argv[2])
print([is_made_anew(place) for place in (0.0, 0.2, 0.4, 0.6, 0.8, 0.999)])
"""


@pytest.mark.parametrize("name", ["*.nbc", "*.nbi"])
def test_one_flipped_bit_in_a_file_of_a_compiled_loop_has_it_made_again(tmp_path, monkeypatch, name):
    """In a process of its own, which it could end."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    script = tmp_path / "flipped.py"
    script.write_text(FLIPPED)
    command = [sys.executable, str(script), str(tmp_path / "kept"), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([True] * 6)


@pytest.mark.parametrize(("place", "error"), [("__init__", RuntimeError), ("save_overload", OSError)])
def test_loops_that_cannot_be_kept_are_compiled_and_this_is_told_once(monkeypatch, place, error):
    names = count()

    def fail(self, *arguments):
        raise error(f"no space is left for {next(names)}")

    monkeypatch.setattr(FunctionCache, place, fail)
    monkeypatch.setattr(loop_module, "_told", [])

    def doubled_again():
        return loop(FunctionType(doubled.__code__, globals(), "doubled"))(3.0)

    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert doubled_again() == 6.0
    assert doubled_again() == 6.0  # a warning would be an error


def test_the_first_call_of_a_process_gives_the_bits_of_the_next(monkeypatch):
    """The BLAS of the loops is held to one thread before they load it."""
    pytest.importorskip("threadpoolctl")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCATTERBRAIN_NUM_THREADS", "2")
    command = [sys.executable, "-c", FIRST_CALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_features_with_no_key_behind_them_set_no_reference(rng, is_compiled):
    """One run of all keys, queries along the vectors of features; some see the run and some no key."""
    dim, length = 256, 400
    method = sb.Scatterbrain(sb.PositiveFeatures(16), sb.RandomHyperplanes(1))
    q, v = (rng.standard_normal((1, length, columns), dtype=np.float32) for columns in (dim, 8))
    k = np.repeat(0.1 * rng.standard_normal((1, 1, dim), dtype=np.float32), length, axis=1)
    projections = []
    log_features = sb.PositiveFeatures._log_features

    def spy(self, xp, drawn, *arguments):
        projections.append(drawn)
        return log_features(self, xp, drawn, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sb.PositiveFeatures, "_log_features", spy)
        sb.attention(q, k, v, method=method, seed=0, scale=1.0)
    q[0, :16] = projections[0]
    assert np.isfinite(sb.attention(q, k, v, method=method, seed=0, scale=1.0)).all()


def test_what_one_head_is_left_to_does_not_depend_on_another(rng):
    """A head without keys has no runs."""
    q, k, v = draw_problem(rng, 200, 200, dim=16, lead=(2,), dtype="float32")
    method = sb.Scatterbrain(sb.PositiveFeatures(8), sb.RandomHyperplanes(2))
    mask = np.ones((2, 1, 200), bool)
    whole = sb.attention(q, k, v, method=method, attn_mask=mask)
    mask[1] = False
    got = sb.attention(q, k, v, method=method, attn_mask=mask)
    np.testing.assert_array_equal(got[0], whole[0])
    assert not got[1].any()
