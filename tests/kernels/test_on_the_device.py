"""The kernels on a GPU: against the definition and the generic code, on CuPy arrays and Torch tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from libraries import make_library
from oracle import METHODS as METHODS_OF_ORACLE
from oracle import oracle, relative_error
from problems import draw_problem

import scatterbrain_core as sb
from kernels import merges
from kernels.cases import HALVES, Case, by_definition, error, make_visits, sink
from scatterbrain_backends.cupy_.forms import all_tiles
from scatterbrain_core import tiles
from scatterbrain_core.backend import Backend, backend_of
from scatterbrain_core.sparse_correction import Visits, interval_partial
from scatterbrain_core.tables import Intervals, Table

pytestmark = pytest.mark.gpu

CASES = {
    "counted": Case(is_unit=True, dim=1, columns=1, n_excluded=1),
    "padded": Case(300, 200, 20, 9),
    "full width": Case(300, 200, 64, 65, longest=90),
    "wide": Case(300, 200, 100, 101, longest=90),
    "widest": Case(200, 100, 128, 129, n_visits=1),
    "odd": Case(200, 130, 7, 6, n_visits=3),
    "nothing": Case(longest=-1),
    "small blocks": Case(size=8, n_visits=3),
    "large blocks": Case(500, 90, size=100, n_visits=1),
    "left out": Case(300, 200, 64, 65, n_excluded=2, longest=90),
    "too wide": Case(100, 100, 140, 5),
    "no fours": Case(300, 200, 6, 9),
    "no fours, wide": Case(300, 200, 62, 9),
}
TOLERANCE = {"float32": 1e-4, "float64": 1e-12, "float16": 1e-4, "bfloat16": 2e-4}
# Half a unit in the last place, relative.
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
METHODS = ("exact", "lsh", "scatterbrain", "auto")


@pytest.fixture(params=["cupy", "torch:cuda"])
def library(request):
    library = make_library(request.param)
    if library.name == "torch:cuda":
        pytest.importorskip("cupy")
    return library


@pytest.fixture
def cupy():
    make_library("cupy")
    return pytest.importorskip("cupy")


def on_device(library, visits):
    """The same visits of arrays of the library."""

    def move(x, kind):
        own = {name: library.asarray(a) if isinstance(a, np.ndarray) else a for name, a in vars(x).items()}
        return kind(**own)

    return Visits(
        move(visits.blocks, type(visits.blocks)),
        move(visits.intervals, Intervals),
        replace(
            visits.pairs, query=library.asarray(visits.pairs.query), key=library.asarray(visits.pairs.key)
        ),
        library.asarray(visits.weighted_value),
        visits.tile_keys,
        tuple(move(table, Table) for table in visits.excluded),
    )


def partial(visits, backend=None):
    backend = backend or backend_of(x=visits.weighted_value)
    arguments = (visits.blocks, visits.intervals, visits.pairs, visits.weighted_value, visits.tile_keys)
    return interval_partial(backend, *arguments, visits.excluded)


def multiplies_halves(library):
    """Whether its tiles of half precision go to tensor cores; skips where they do not."""
    run = pytest.importorskip("scatterbrain_backends.cupy_.run")
    if not run.has_mma():
        pytest.skip(f"half precision is multiplied from compute capability 8.0 on: {library.name}")


def in_half(library, dtype, *arrays):
    """Arrays of the library in half precision."""
    if library.name == "torch:cuda":
        torch = pytest.importorskip("torch")
        return [library.asarray(x).to(getattr(torch, dtype)) for x in arrays]
    try:
        return [library.asarray(x).astype(HALVES[dtype]) for x in arrays]
    except (TypeError, ValueError) as error:
        pytest.skip(f"this CuPy has no {dtype}: {error}")


def in_double(library, x):
    """In float64, on the host."""
    if library.name == "torch:cuda":
        return library.to_numpy(x.double())
    return library.to_numpy(x.astype("float64"))


def expected_sources(case, dtype):
    """Files of the kernels that tiles of a case are launched from."""
    run = pytest.importorskip("scatterbrain_backends.cupy_.run")
    if max(case.dim, case.columns - 1) > 128:
        return set()
    return {"tile_partial_half" if dtype in HALVES and run.has_mma() else "tile_partial"}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("tile_keys", [16, 64])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_kernel_is_the_definition_and_the_generic_code(library, launched, rng, dtype, case, tile_keys):
    visits = replace(make_visits(rng, replace(case, dtype=dtype)), tile_keys=tile_keys)
    there = on_device(library, visits)
    own = partial(there)
    assert set(launched) - {"half_rows"} == expected_sources(case, dtype)
    assert library.is_own(own.acc)
    assert error(visits, *map(library.to_numpy, (own.ref, own.acc))) <= TOLERANCE[dtype]
    generic = partial(there, Backend(backend_of(x=there.weighted_value).xp))
    assert error(visits, *map(library.to_numpy, (generic.ref, generic.acc))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("missing", [3, 4, 2])
def test_every_form_of_a_tile(cupy, launched, rng, monkeypatch, missing):
    """Of widths that leave columns of the tile over; rows of those of 4 are read as vectors."""
    from scatterbrain_backends.cupy_ import run

    forms = [
        (dtype, tile) for dtype, tile in all_tiles() if run.has_mma() or tile.source != "tile_partial_half"
    ]
    for dtype, tile in forms:
        monkeypatch.setattr(run, "tile_of", lambda *_, tile=tile: tile)
        case = Case(400, 300, tile.width - missing, tile.width - 1, longest=150, n_excluded=1, dtype=dtype)
        visits = make_visits(rng, case)
        launched.clear()
        own = partial(on_device(make_library("cupy"), visits))
        assert set(launched) - {"half_rows"} == {tile.source}
        off = error(visits, cupy.asnumpy(own.ref), cupy.asnumpy(own.acc))
        assert off <= TOLERANCE[dtype], (dtype, tile)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "sizes", [{}, {"lengths": (400, 1, 77)}, {"rows": 64, "columns": 65}, {"rows": 1, "columns": 1}]
)
def test_running_merges_are_those_of_the_definition(library, launched, rng, sizes, dtype):
    states = merges.make_states(rng, **sizes, dtype=dtype)
    there = library.arrays(*states)
    backend = backend_of(x=there[1])
    runs = [backend.running_merge(*there, never) for _ in range(2)]
    assert launched == 2 * ["running_merge"]
    (ref, acc), again = ([library.to_numpy(x) for x in found] for found in runs)
    assert merges.error(ref, acc, *merges.by_definition(*states)) <= TOLERANCE[dtype]
    for x, y in zip((ref, acc), again, strict=True):
        np.testing.assert_array_equal(x, y)


def test_running_merges_of_more_than_2_to_the_31_elements(cupy):
    shape = (3, 2**15, 2**15 + 1)
    if cupy.cuda.Device().mem_info[0] < 2.5 * 4 * np.prod(shape):
        pytest.skip("30 GiB of the device are not free")
    ref, acc = cupy.zeros(shape[:2], dtype="float32"), cupy.ones(shape, dtype="float32")
    _, found = backend_of(x=acc).running_merge(ref, acc, cupy.zeros(3, dtype=int), lambda: (None, None))
    assert (found == cupy.arange(1, 4, dtype="float32")[:, None, None]).all()


def never():
    pytest.fail("generic code")


@pytest.mark.parametrize("ranks", ["float32", "float64", "int64"])
def test_the_joint_sort_is_the_generic_one(library, launched, rng, ranks):
    """Two numbers of 64 bits, which hold no rank of float64."""
    n_keys, n_queries = 5000, 3000
    buckets = [rng.integers(0, 40, n) for n in (n_keys, n_queries)]
    values = [rng.integers(0, 3000, n) for n in (n_keys, n_queries)]
    if ranks != "int64":
        values = [((x - 1500) / 7).round().astype(ranks) for x in values]
    there = library.arrays(*buckets, *values)
    backend = backend_of(x=there[0])
    own = tiles.jointly_sorted(backend, *there)
    generic = tiles.sort_jointly(backend.xp, *there)
    assert bool(launched) == (ranks != "float64")
    for name, x in vars(generic).items():
        np.testing.assert_array_equal(library.to_numpy(getattr(own, name)), library.to_numpy(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n_bits", "dim"), [(0, 7), (5, 64), (24, 100)])
def test_codes_are_those_of_numpy_but_near_zero(library, rng, dtype, n_bits, dim):
    x = rng.standard_normal((2, 700, dim)).astype(dtype)
    x[1] = x[0]
    normals, (direction,) = (rng.standard_normal((n, dim)).astype(dtype) for n in (n_bits, 1))
    backend = backend_of(x=library.asarray(x))
    there = library.arrays(x, normals, direction)
    code, projection = map(library.to_numpy, backend.hyperplane_codes(*there, never))
    only, nothing = backend.hyperplane_codes(*there[:2], None, never) if n_bits else (there[0], None)
    assert nothing is None
    for found in (code, projection):
        np.testing.assert_array_equal(found[0], found[1])
    products = x.astype(np.float64) @ normals.T.astype(np.float64)
    is_clear = (np.abs(products) > 1e-4).all(axis=-1)
    expected = (products >= 0) @ 2 ** np.arange(n_bits)[::-1]
    np.testing.assert_array_equal(code[is_clear], expected[is_clear])
    if n_bits:
        np.testing.assert_array_equal(library.to_numpy(only), code)
    assert relative_error(projection, x @ direction) <= 1e-5


def test_codes_of_more_than_2_to_the_31_elements(cupy, rng):
    n, dim = 2**25 + 5, 64
    if cupy.cuda.Device().mem_info[0] < 1.2 * 4 * n * dim:
        pytest.skip("10 GiB of the device are not free")
    normals = cupy.asarray(rng.standard_normal((3, dim)).astype("float32"))
    x = cupy.zeros((n, dim), dtype="float32")
    x[-2:] = normals[:2]
    code, projection = backend_of(x=x).hyperplane_codes(x, normals[:2], normals[2], never)
    expected = (normals[:2] @ normals.T).get()
    np.testing.assert_array_equal(code[-2:].get(), (expected[:, :2] >= 0) @ [2, 1])
    np.testing.assert_allclose(projection[-2:].get(), expected[:, 2], rtol=1e-4)


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels' files, as they are launched."""
    run, names = pytest.importorskip("scatterbrain_backends.cupy_.run"), []
    own = run.run
    monkeypatch.setattr(run, "run", lambda launch: names.append(launch.source) or own(launch))
    return names


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("method", ["window", "lsh", "tables", "scatterbrain"])
def test_half_precision_is_rounded_once(library, launched, rng, is_causal, dtype, method):
    """The tolerance that half precision has on the CPU, with the tiles on tensor cores."""
    multiplies_halves(library)
    arrays = in_half(library, dtype, *draw_problem(rng, 300, 250, dim=64))
    output = sb.attention(*arrays, method=METHODS_OF_ORACLE[method], is_causal=is_causal)
    assert output.dtype == arrays[0].dtype
    assert "tile_partial_half" in launched
    exact = [in_double(library, x) for x in arrays]
    expected, _ = oracle(*exact, METHODS_OF_ORACLE[method], is_causal=is_causal)
    error = np.abs(in_double(library, output) - expected)
    assert (error <= UNITS[dtype] * np.abs(expected) + 1e-5).all()


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_as_good_as_numpys(library, rng, is_causal, dtype, method):
    arrays = in_half(library, dtype, *draw_problem(rng, 700, 700, dim=64, dtype="float32"))
    host = [in_double(library, x).astype(HALVES[dtype]) for x in arrays]
    form = {"is_causal": is_causal}
    exact = sb.attention(*(x.astype(np.float64) for x in host), method="exact", **form)
    expected = relative_error(sb.attention(*host, method=method, **form).astype(np.float64), exact)
    own = relative_error(in_double(library, sb.attention(*arrays, method=method, **form)), exact)
    assert own <= 1.1 * expected + UNITS[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_run_gives_the_same_bits(library, dtype):
    case = Case(3000, 2000, 64, 65, longest=300, dtype=dtype)
    visits = on_device(library, make_visits(np.random.default_rng(3), case))
    rows = library.asarray(np.random.default_rng(4).standard_normal((50000, 65)).astype("float32"))
    index = library.asarray(np.random.default_rng(5).integers(0, 40, 50000))
    backend = backend_of(x=rows)
    results = [(partial(visits), backend.segment_sum(rows, index, 41)) for _ in range(4)]
    first, *others = ([part.ref, part.acc, sums] for part, sums in results)
    for other in others:
        for x, y in zip(first, other, strict=True):
            np.testing.assert_array_equal(library.to_numpy(x), library.to_numpy(y))
    expected = np.zeros((41, 65))
    np.add.at(expected, library.to_numpy(index), library.to_numpy(rows).astype(np.float64))
    assert relative_error(library.to_numpy(first[2]), expected) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_public_calls_are_numpys(library, dtype, is_causal, method, rng):
    """Where rounding tips a choice, rows change by the method's own error, and no more."""
    arrays = draw_problem(rng, 700, 700, dim=64, dtype=dtype)
    form = {"is_causal": is_causal}
    exact = sb.attention(*arrays, method="exact", **form)
    expected = relative_error(sb.attention(*arrays, method=method, **form), exact)
    own = library.to_numpy(sb.attention(*library.arrays(*arrays), method=method, **form))
    assert own.dtype == dtype
    assert relative_error(own, exact) <= 1.1 * expected + 1e-5


def test_another_stream(cupy, rng):
    """What is computed just before, on the stream, must be there when the kernels start."""
    arrays = [cupy.asarray(x) for x in draw_problem(rng, 900, 900, dim=64, dtype="float32")]
    first = sb.attention(*arrays, method="lsh")
    wait = cupy.RawKernel(BUSY, "wait")
    late = [cupy.full_like(x, cupy.nan) for x in arrays]
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        wait((1,), (1,), (np.int64(2 * 10**8),))
        for x, y in zip(late, arrays, strict=True):
            cupy.copyto(x, y)
        second = sb.attention(*late, method="lsh", check_finite=False)
        stream.synchronize()
    cupy.testing.assert_array_equal(first, second)


BUSY = 'extern "C" __global__ void wait(long long n) { for (long long t = clock64(); clock64() - t < n;); }'


def test_another_stream_of_torch(rng):
    make_library("torch:cuda")
    import torch

    arrays = [torch.asarray(x, device="cuda") for x in draw_problem(rng, 900, 900, dim=64, dtype="float32")]
    first = sb.attention(*arrays, method="lsh")
    late = [torch.full_like(x, torch.nan) for x in arrays]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2 * 10**8)
        for x, y in zip(late, arrays, strict=True):
            x.copy_(y)
        second = sb.attention(*late, method="lsh", check_finite=False)
    stream.synchronize()
    assert relative_error(second.cpu().numpy(), first.cpu().numpy()) <= 1e-5


def test_views_that_are_neither_contiguous_nor_aligned(library, rng):
    arrays = draw_problem(rng, 300, 300, dim=65, dtype="float32")
    narrow = [x[..., 1:] for x in arrays]
    form = {"method": sb.Scatterbrain(sparse=sb.LocalWindow(64)), "scale": 1.0}
    own = sb.attention(*(x[..., 1:] for x in library.arrays(*arrays)), **form)
    expected = sb.attention(*map(np.ascontiguousarray, narrow), **form)
    assert relative_error(library.to_numpy(own), expected) <= 1e-5


def test_arrays_that_begin_four_bytes_late(library, launched, rng):
    """Contiguous, so that they are handed to the kernel as they are."""
    arrays = draw_problem(rng, 300, 300, dim=64, dtype="float32")

    def late(x):
        whole = library.asarray(np.concatenate([[0.0], x.ravel()]).astype(np.float32))
        return whole[1:].reshape(x.shape)

    form = {"method": sb.Scatterbrain(sparse=sb.LocalWindow(64)), "scale": 1.0}
    own = sb.attention(*map(late, arrays), **form)
    assert "tile_partial" in launched
    assert relative_error(library.to_numpy(own), sb.attention(*arrays, **form)) <= 1e-5


def test_long_sums_on_tensor_cores_are_not_biased(library, launched):
    """Whose accumulators round towards zero: values of one sign show it, before the output is rounded."""
    multiplies_halves(library)
    case = Case(n_queries=8, n_keys=2**17, dim=16, columns=17, n_visits=1, dtype="bfloat16")
    visits = sink(case)
    own = partial(on_device(library, visits))
    assert "tile_partial_half" in launched
    expected = by_definition(visits)[1][..., :-1][visits.blocks.filled]
    sums = library.to_numpy(own.acc)[..., :-1][visits.blocks.filled]
    assert abs((sums / expected - 1).mean()) <= 1e-4


def test_gradients_are_those_of_the_cpu(rng):
    make_library("torch:cuda")
    import torch

    arrays = draw_problem(rng, 200, 200, dim=16)
    gradients = []
    for device in ("cpu", "cuda"):
        leaves = [torch.asarray(x, device=device).requires_grad_() for x in arrays]
        sb.attention(*leaves, method="scatterbrain").square().sum().backward()
        gradients.append([x.grad.cpu().numpy() for x in leaves])
    for own, expected in zip(*gradients, strict=True):
        assert relative_error(own, expected) <= 1e-9


@pytest.mark.parametrize("name", ["key", "value"])
def test_arrays_on_two_devices_are_refused(library, rng, name):
    """The host is no other device for CuPy, whose arrays are never there."""
    call = dict(zip(("query", "key", "value"), draw_problem(rng, 20, 20, dim=8), strict=True))
    there = {key: library.asarray(x) for key, x in call.items()}
    if library.name == "torch:cuda":
        there[name] = there[name].cpu()
    else:
        cupy = pytest.importorskip("cupy")
        if cupy.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("one device alone is here")
        with cupy.cuda.Device(1):
            there[name] = cupy.asarray(call[name])
    with pytest.raises(ValueError, match="on the device of query, got query on"):
        sb.attention(**there)


def test_half_precision_that_needs_a_gradient_gets_one(rng):
    make_library("torch:cuda")
    import torch

    gradients = []
    for device in ("cpu", "cuda"):
        arrays = draw_problem(np.random.default_rng(1), 100, 100, dim=16)
        leaves = [torch.asarray(x, device=device).to(torch.bfloat16).requires_grad_() for x in arrays]
        sb.attention(*leaves, method="lsh").float().square().sum().backward()
        gradients.append([x.grad.double().cpu().numpy() for x in leaves])
    for own, expected in zip(*gradients, strict=True):
        assert relative_error(own, expected) <= 2.0**-6


def test_what_does_not_fit_into_memory_says_how_much_it_was(library, rng):
    arrays = draw_problem(rng, 4000, 4000, dim=64, dtype="float32")
    there = library.arrays(*arrays)
    if library.name == "torch:cuda":
        import torch

        limit = torch.cuda.memory_allocated() + 2**20
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
        try:
            with pytest.raises(torch.cuda.OutOfMemoryError, match=r"Tried to allocate [\d.]+ [KMG]iB"):
                sb.attention(*there, method="exact")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    cupy = pytest.importorskip("cupy")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 2**20)
    try:
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"allocating [\d,]+ bytes"):
            sb.attention(*there, method="exact")
    finally:
        pool.set_limit(size=0)


def test_memory_is_given_back(cupy, rng):
    arrays = [cupy.asarray(x) for x in draw_problem(rng, 900, 900, dim=64, dtype="float32")]
    sb.attention(*arrays)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    sb.attention(*arrays)
    assert pool.used_bytes() == before
