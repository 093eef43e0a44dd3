"""The kernels' logic: on the CPU, threads in three orders, against the definition; planted bugs are seen."""

from __future__ import annotations

import math
import mmap
from dataclasses import replace

import numpy as np
import pytest

from kernels.cases import Case, by_definition, error, make_visits, prepare, rounded_rows, sink
from kernels.host import COMPILER, ORDERS, HostKernels
from scatterbrain_backends.cupy_.forms import HalfTile, Tile, all_tiles, choose_tile
from scatterbrain_backends.cupy_.launches import segment_sum
from scatterbrain_core.tables import Intervals

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

TILES = {
    "4 lanes": ("float32", Tile(32, 4, 16, 4)),
    "8 lanes": ("float32", Tile(64, 4, 64, 8)),
    "wide": ("float32", Tile(96, 4, 32, 8)),
    "one row a thread": ("float32", Tile(64, 1, 32, 8)),
    "double": ("float64", Tile(64, 4, 16, 8)),
    "float16": ("float16", HalfTile(32, 4, 16)),
    "bfloat16": ("bfloat16", HalfTile(32, 4, 16)),
    "tensor cores, many slots": ("float16", HalfTile(80, 4, 64)),
    "tensor cores, one warp": ("bfloat16", HalfTile(64, 1, 32)),
}
CASES = {
    "counted": Case(is_unit=True, dim=1, columns=1, n_excluded=1),
    "padded": Case(),
    "full width": Case(dim=32, columns=33),
    "one visit": Case(n_visits=1, longest=70),
    "one key": Case(n_keys=1, n_visits=1, longest=1),
    "no columns": Case(columns=1),
    "small blocks": Case(size=8, n_queries=30),
    "a few visits a block": Case(n_queries=11, n_visits=3, size=64, n_excluded=1),
    "large blocks": Case(size=100, n_queries=120),
    "odd": Case(dim=7, columns=6, n_visits=3),
    "nothing": Case(longest=-1),
    "left out": Case(n_excluded=1),
    "two tables left out": Case(n_excluded=2, n_visits=1, longest=60),
}
BUGS = {
    1: "no barrier before a tile is used",
    2: "no barrier before a tile is overwritten",
    3: "no barrier between a row's weights and their use",
    4: "one key too many",
    5: "keys before the interval",
    6: "maximum over half of the lanes",
    7: "sums not brought to the new maximum",
    8: "places that are not filled",
    9: "slots taken for keys",
    10: "weights of one lane for those of the row",
    11: "visits taken for query rows",
    12: "padding columns left as they were",
    13: "rows behind the last key left as they were",
    14: "pairs counted twice",
    15: "maximum over hidden pairs too",
}
# Of no use to the other kernel: 3, whose weights do not go through shared memory.
BUGS_OF_HALF = {
    **{bug: text for bug, text in BUGS.items() if bug != 3},
    16: "rows of a fragment taken for others",
    17: "the lower term of a weight dropped",
    18: "logits without their scale",
    19: "half of the columns of keys taken twice",
    20: "values not transposed",
    22: "small weights lost in half precision",
}
# In bfloat16 the two terms of a weight have 17 bits together.
NO_RESERVE = 0x4000  # of Linux; a name in mmap from Python 3.13 on
TOLERANCE = {"float32": 2e-5, "float64": 1e-13, "float16": 2e-5, "bfloat16": 5e-5}


@pytest.fixture(scope="session")
def tile_kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")

    def compiled(source):
        names = [tile.kernel(dtype) for dtype, tile in TILES.values() if tile.source == source]
        return HostKernels(source, names, folder)

    return {source: compiled(source) for source in ("tile_partial", "tile_partial_half")}


@pytest.fixture(scope="session")
def sum_kernels(tmp_path_factory):
    return HostKernels(
        "segment_sum", ["segment_sum<float>", "segment_sum<double>"], tmp_path_factory.mktemp("sums")
    )


def run(kernels, rng, case, tile, **how):
    visits = make_visits(rng, case)
    launch, ref, acc = prepare(visits, tile)
    kernels[tile.source].run(launch, **how)
    return error(visits, ref, acc), ref, acc


def test_the_tiles_tested_are_among_those_launched():
    assert {tile for _, tile in TILES.values()} <= {tile for _, tile in all_tiles()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kind", TILES)
def test_sums_are_those_of_the_definition(tile_kernels, rng, case, kind):
    dtype, tile = TILES[kind]
    assert run(tile_kernels, rng, replace(case, dtype=dtype), tile)[0] <= TOLERANCE[dtype]


@pytest.mark.parametrize("dim", [2, 6, 18, 30])
def test_rows_that_are_no_fours_of_entries(tile_kernels, rng, dim):
    """Of float64 they may be whole vectors of 16 bytes."""
    case = Case(dim=dim, columns=dim + 1, dtype="float64")
    assert run(tile_kernels, rng, case, TILES["double"][1])[0] <= TOLERANCE["float64"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "4 lanes"])
def test_many_small_weights_beside_a_large_one_count(tile_kernels, kind):
    """As those beside an attention sink, whose value is zero: together they are the output."""
    assert error_beside_a_sink(tile_kernels, kind) <= 1e-4


def error_beside_a_sink(kernels, kind, bug=0):
    """Largest relative error of sums of values, where a key's logit is 17 more than those of all others."""
    dtype, tile = TILES[kind]
    visits = sink(Case(n_queries=20, n_keys=400, n_visits=1, dim=8, columns=9, dtype=dtype))
    launch, _, acc = prepare(visits, tile)
    kernels[tile.source].run(launch, bug=bug)
    _, expected = by_definition(visits)
    seen = visits.blocks.filled
    return np.abs(acc[seen] / expected[seen] - 1)[:, :-1].max()


@pytest.mark.parametrize("kind", ["4 lanes", "8 lanes", "bfloat16", "tensor cores, many slots"])
def test_no_order_of_the_threads_changes_a_bit(tile_kernels, kind):
    dtype, tile = TILES[kind]
    case = Case(n_excluded=1, dtype=dtype)
    results = [
        run(tile_kernels, np.random.default_rng(5), case, tile, order=order, seed=seed)[1:]
        for order, seed in [*((order, 0) for order in ORDERS), ("random", 1)]
    ]
    for ref, acc in results[1:]:
        np.testing.assert_array_equal(ref, results[0][0])
        np.testing.assert_array_equal(acc, results[0][1])


@pytest.mark.parametrize("kind", ["4 lanes", "float16", "bfloat16"])
def test_large_logits_do_not_overflow(tile_kernels, rng, kind):
    dtype, tile = TILES[kind]
    visits = make_visits(rng, Case(longest=70, n_visits=1, dtype=dtype))
    visits.pairs.query[:] *= 128
    launch, ref, acc = prepare(visits, tile)
    tile_kernels[tile.source].run(launch)
    assert ref[np.isfinite(ref)].max() > 500
    assert np.isfinite(acc).all()
    assert (acc[np.isfinite(ref)][:, -1] <= 71).all()


def seen_by(kernels, case, kind, order, bug):
    dtype, tile = TILES[kind]
    try:
        found, *_ = run(
            kernels, np.random.default_rng(6), replace(case, dtype=dtype), tile, order=order, bug=bug
        )
    except RuntimeError:
        return True
    return not found <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("kind", "bug"),
    [
        *(("4 lanes", bug) for bug in BUGS),
        *(("float16", bug) for bug in BUGS_OF_HALF),
        # Which has all the small numbers of float32.
        *(("bfloat16", bug) for bug in BUGS_OF_HALF if bug != 22),
    ],
)
def test_planted_bugs_are_seen(tile_kernels, kind, bug):
    """In some case, some order of the threads gives a wrong sum, or stops."""
    cases = [Case(n_excluded=1), CASES["odd"], CASES["one key"]]
    if bug == 22:
        assert error_beside_a_sink(tile_kernels, kind, bug) > 1e-2
        return
    assert any(seen_by(tile_kernels, case, kind, order, bug) for case in cases for order in ORDERS)


def sparse(shape, dtype):
    """Zeros of which only what is written takes memory, whatever the system promises."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        buffer = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except OSError as error:
        pytest.skip(f"{n_bytes} bytes of addresses are not to be had: {error}")
    return np.frombuffer(buffer, dtype).reshape(shape)


def behind(visits, n_rows):
    """The same visits with so many more rows of zeros before those of queries and keys."""

    def moved(x):
        more = sparse((n_rows + len(x), *x.shape[1:]), x.dtype)
        more[n_rows:] = x
        return more

    table, blocks, pairs = visits.intervals, visits.blocks, visits.pairs
    half = None if pairs.half is None else replace(pairs.half)
    far = replace(
        visits,
        blocks=replace(blocks, rows=blocks.rows + n_rows * table.n_visits),
        intervals=Intervals(table.key_order + n_rows, moved(table.lo), moved(table.hi)),
        pairs=replace(pairs, query=moved(pairs.query), key=moved(pairs.key), half=half),
        weighted_value=moved(visits.weighted_value),
    )
    if half is not None:
        key, value = map(moved, rounded_rows(visits))
        half.once("key", far.pairs.key, lambda: key)
        half.once("value", far.weighted_value, lambda: value)
    return far


@pytest.mark.parametrize("kind", ["4 lanes", "float16"])
@pytest.mark.parametrize("dim", [31, 32], ids=["one by one", "by four"])
def test_arrays_of_more_than_2_to_the_32_elements(tile_kernels, rng, kind, dim):
    dtype, tile = TILES[kind]
    visits = make_visits(rng, Case(20, 30, dim, 33, size=16, dtype=dtype))
    far = behind(visits, 2**32 // dim + 5)
    assert far.pairs.key.size > 2**32
    launches = {name: prepare(x, tile) for name, x in {"near": visits, "far": far, "cut": far}.items()}
    for name, (launch, *_) in launches.items():
        tile_kernels[tile.source].run(launch, bug=21 if name == "cut" else 0)
    for near, same, cut in zip(*(launch[1:] for launch in launches.values()), strict=True):
        np.testing.assert_array_equal(same, near)
        assert not np.array_equal(cut, near), "numbers of 32 bits would have done"


@pytest.mark.parametrize("kind", ["4 lanes", "float16"])
def test_rows_that_are_not_aligned_are_read_one_by_one(tile_kernels, rng, kind):
    dtype, tile = TILES[kind]
    visits = make_visits(rng, Case(dtype=dtype))

    def shifted(x):
        own = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
        own[:] = x
        assert own.ctypes.data % 16
        return own

    pairs = replace(visits.pairs, query=shifted(visits.pairs.query), key=shifted(visits.pairs.key))
    aligned, *expected = prepare(visits, tile)
    launch, *found = prepare(replace(visits, pairs=pairs), tile)
    position = 20  # of is_aligned among the parameters
    assert (aligned.arguments[position], launch.arguments[position]) == (1, 0)
    for x in (aligned, launch):
        tile_kernels[tile.source].run(x)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def sums(kernels, dtype, width, n_segments=9, n_rows=70, **how):
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((n_rows, width)).astype(dtype)
    index = rng.integers(0, n_segments - 1, n_rows)
    total = rng.standard_normal((n_segments, width)).astype(dtype)
    expected = total.astype(np.float64)
    np.add.at(expected, index, rows)
    order = np.argsort(index, kind="stable")
    first, last = (np.searchsorted(index[order], np.arange(n_segments), side) for side in ("left", "right"))
    kernels.run(segment_sum(rows, order, first, last, total), **how)
    return np.abs(total - expected).max()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [1, 3, 32, 65])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_segment_sums(sum_kernels, dtype, width, order):
    assert sums(sum_kernels, dtype, width, order=order) <= TOLERANCE[dtype]


@pytest.mark.parametrize("bug", [1, 2, 3], ids=["no-barrier", "last-row-lost", "total-overwritten"])
def test_planted_bugs_of_segment_sums_are_seen(sum_kernels, bug):
    assert any(not sums(sum_kernels, "float32", 3, order=order, bug=bug) <= 1e-3 for order in ORDERS)


def test_tiles_fit_where_they_are_chosen():
    for dtype, columns, keys, room in [("float32", 64, 16, 2**16), ("float32", 128, 64, 2**17)]:
        tile = choose_tile(dtype, columns, 64, keys, room)
        assert tile.width >= columns
        assert tile.shared_bytes(dtype) <= room
    assert choose_tile("float32", 64, 64, 64, 227 * 1024).keys == 64
    assert choose_tile("float32", 64, 64, 64, 48 * 1024).keys == 16
    assert choose_tile("float32", 64, 8, 64, 48 * 1024).queries == 16
    assert choose_tile("float64", 128, 64, 16, 2**16) is None
    assert choose_tile("float32", 129, 64, 16, 2**18) is None
    assert choose_tile("bfloat16", 70, 64, 100, 2**18) == HalfTile(80, 4, 64)
    assert choose_tile("float16", 128, 8, 16, 2**18) == HalfTile(128, 1, 32)
    assert choose_tile("float16", 129, 64, 16, 2**18) is None
    assert choose_tile("float8", 64, 64, 16, 2**18) is None
