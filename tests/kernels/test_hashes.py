"""Codes and the joint sort by the kernels, on the CPU: they are the generic code's; planted bugs are seen."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from problems import draw_problem

import scatterbrain_core as sb
from kernels.host import COMPILER, ORDERS, HostKernels, HostRunner
from scatterbrain_backends.cupy_ import hashes
from scatterbrain_backends.cupy_.launches import MOST_DIRECTIONS, Runner
from scatterbrain_backends.numpy_ import NumpyBackend
from scatterbrain_core import tiles

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

INSTANCES = {
    "sort_numbers": ["sort_numbers<float>", "sort_numbers<Index>"],
    "bucket_intervals": ["bucket_intervals"],
    "hyperplane_codes": ["hyperplane_codes<float>", "hyperplane_codes<double>"],
}
BUGS = {
    "sort_numbers": {
        1: "NaN that is not the last",
        2: "-0 before 0",
        3: "negative ranks the wrong way round",
        4: "buckets that overlap the ranks",
    },
    "bucket_intervals": {
        1: "the first slot that is not smaller for the first that is larger",
        2: "the query's place for the end of its bucket",
        3: "places counted from the first key of all",
    },
    "hyperplane_codes": {
        1: "no barrier before columns are overwritten",
        2: "no barrier before columns are used",
        3: "a product of 0 counted as below",
        4: "bits the wrong way round",
        5: "no barrier before bits are joined",
        6: "the product with a normal for the projection",
    },
}
SHAPES = {
    "one": (1, 1, 1, 0),
    "no hyperplane": (40, 7, 0, 1),
    "one warp": (33, 5, 3, 1),
    "odd": (70, 45, 6, 1),
    "no projection": (64, 32, 8, 0),
    "full": (65, 64, 24, 1),
    "most": (31, 33, 30, 1),
}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hashes")
    return {name: HostKernels(name, kernels, folder) for name, kernels in INSTANCES.items()}


def draw_rows(rng, n_keys=150, n_queries=90, n_buckets=7, ranks="float32"):
    """Buckets, some of them empty, and ranks of keys and queries, many of them equal."""
    lengths = (n_keys, n_queries)
    buckets = [3 * rng.integers(0, n_buckets, n) for n in lengths]
    if ranks == "int64":
        return buckets, [rng.integers(0, max(lengths), n) for n in lengths]
    found = [rng.choice([-np.inf, -2.5, -0.0, 0.0, 1e-40, -1e-40, 1.5, 2.5e30, np.inf], n) for n in lengths]
    return buckets, [x.astype(ranks) for x in found]


def is_generic(runner, buckets, ranks):
    """Whether every array is that of the generic code."""
    own = hashes.sort_jointly(xp, buckets, ranks, runner)
    generic = tiles.sort_jointly(xp, *buckets, *ranks)
    return all(np.array_equal(getattr(own, name), x) for name, x in vars(generic).items())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ranks", ["float32", "int64"])
@pytest.mark.parametrize("sizes", [{}, {"n_keys": 1}, {"n_queries": 1}, {"n_buckets": 1}, {"n_keys": 600}])
def test_the_sort_is_the_generic_one(kernels, rng, sizes, ranks, order):
    assert is_generic(HostRunner(kernels, order=order), *draw_rows(rng, **sizes, ranks=ranks))


def test_ranks_that_are_no_numbers_come_last(kernels, rng):
    buckets, ranks = draw_rows(rng)
    for x in ranks:
        x[::5] = rng.choice([np.nan, -np.nan], x[::5].shape)
    assert is_generic(HostRunner(kernels), buckets, ranks)
    assert not is_generic(HostRunner(kernels, {"sort_numbers": 1}), buckets, ranks)


def test_the_largest_buckets_that_fit(kernels, rng):
    buckets, ranks = draw_rows(rng)
    buckets[0][3] = buckets[1][4] = hashes.MOST_BUCKETS - 1
    assert is_generic(HostRunner(kernels), buckets, ranks)


def test_what_no_number_holds_is_left_to_the_generic_code(rng):
    buckets, ranks = draw_rows(rng)

    def never(_):
        pytest.fail("a kernel was launched")

    runner = Runner(never, np.ascontiguousarray, np.empty)
    assert hashes.sort_jointly(xp, buckets, [x.astype(np.float64) for x in ranks], runner) is None
    assert hashes.sort_jointly(xp, (buckets[0][:0], buckets[1]), (ranks[0][:0], ranks[1]), runner) is None
    buckets[1][0] = hashes.MOST_BUCKETS
    assert hashes.sort_jointly(xp, buckets, ranks, runner) is None


def seen_in_sort(kernels, name, bug, order):
    rng = np.random.default_rng(2)
    buckets, ranks = draw_rows(rng)
    ranks[0][0] = -np.nan
    return not is_generic(HostRunner(kernels, {name: bug}, order=order), buckets, ranks)


@pytest.mark.parametrize(
    ("name", "bug"), [(name, bug) for name in ("sort_numbers", "bucket_intervals") for bug in BUGS[name]]
)
def test_planted_bugs_of_the_sort_are_seen(kernels, name, bug):
    assert any(seen_in_sort(kernels, name, bug, order) for order in ORDERS)


def draw_hashed(rng, dtype, n, dim, n_bits, n_cuts):
    """Rows, the second half of them equal to the first, and one of zeros; normals and the cuts' direction."""
    x = rng.standard_normal((n, dim)).astype(dtype)
    x[n // 3] = 0
    x[n - n // 2 :] = x[: n // 2]
    normals, cuts = (rng.standard_normal((k, dim)).astype(dtype) for k in (n_bits, n_cuts))
    return x, normals, cuts[0] if n_cuts else None


def codes_by_definition(x, normals):
    products = x.astype(np.float64) @ normals.T.astype(np.float64)
    return (products >= 0) @ 2 ** np.arange(len(normals))[::-1]


def is_defined(runner, x, normals, direction):
    code, projection = hashes.hyperplane_codes(xp, x, normals, direction, runner)
    half = len(x) // 2
    good = np.array_equal(code, codes_by_definition(x, normals))
    if direction is None:
        return good and projection is None
    error = np.abs(projection - x.astype(np.float64) @ direction).max()
    is_tied = np.array_equal(projection[len(x) - half :], projection[:half])
    return good and is_tied and error <= 100 * np.finfo(x.dtype).eps * np.sqrt(x.shape[1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_codes_are_those_of_the_definition(kernels, rng, shape, dtype, order):
    assert is_defined(HostRunner(kernels, order=order), *draw_hashed(rng, dtype, *shape))


def test_what_the_kernel_of_codes_does_not_take(rng):
    runner = Runner(lambda _: pytest.fail("a kernel was launched"), np.ascontiguousarray, np.empty)
    for dtype, shape in {
        "float16": (5, 4, 3, 1),
        "float32": (5, 4, MOST_DIRECTIONS, 1),
        "float64": (5, 4, 0, 0),
        ">f4": (0, 4, 3, 1),
    }.items():
        n, *others = shape
        x, *directions = draw_hashed(rng, np.dtype(dtype).newbyteorder("="), max(n, 1), *others)
        assert hashes.hyperplane_codes(xp, x[:n], *directions, runner) is None


def seen_in_codes(kernels, bug, order):
    drawn = draw_hashed(np.random.default_rng(8), "float32", 70, 75, 9, 1)
    return not is_defined(HostRunner(kernels, {"hyperplane_codes": bug}, order=order), *drawn)


@pytest.mark.parametrize("bug", BUGS["hyperplane_codes"])
def test_planted_bugs_of_codes_are_seen(kernels, bug):
    assert any(seen_in_codes(kernels, bug, order) for order in ORDERS)


@pytest.mark.parametrize("method", ["lsh", "scatterbrain"])
def test_calls_whose_buckets_are_found_by_the_kernels(kernels, rng, monkeypatch, is_causal, method):
    """Equal to the bit but for signs that rounding could tip, of which this draw has none."""
    arrays = draw_problem(rng, 300, 280, dim=8, dtype="float32")
    arguments = {"method": method, "is_causal": is_causal}
    expected = sb.attention(*arrays, **arguments)
    runner, found = HostRunner(kernels, order="random"), []

    def sort_jointly(_, key_bucket, query_bucket, key_rank, query_rank, generic):
        found.append(hashes.sort_jointly(xp, (key_bucket, query_bucket), (key_rank, query_rank), runner))
        return found[-1]

    def hyperplane_codes(_, x, normals, direction, generic):
        found.append(hashes.hyperplane_codes(xp, x, normals, direction, runner))
        return found[-1]

    monkeypatch.setattr(NumpyBackend, "sort_jointly", sort_jointly, raising=False)
    monkeypatch.setattr(NumpyBackend, "hyperplane_codes", hyperplane_codes, raising=False)
    np.testing.assert_allclose(sb.attention(*arrays, **arguments), expected, rtol=0, atol=1e-5)
    assert len(found) >= 3
    assert None not in found
