"""NumPy's own ways: the fast path against the array-API code, sorts against NumPy's stable one, threads."""

from __future__ import annotations

import os
import signal
import threading
import tracemalloc
import warnings
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from array_api_compat import numpy as xp
from hypothesis import given
from hypothesis import strategies as st
from problems import draw_problem, eps

import scatterbrain_core as sb
from scatterbrain_backends.numpy_ import NumpyBackend, blas, merging, runs, threads
from scatterbrain_backends.numpy_.sorting import stable_argsort
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, running_merge
from scatterbrain_core.random import Draws

METHODS = {
    "hyperplanes": sb.Scatterbrain(sb.PositiveFeatures(6), sb.RandomHyperplanes(2)),
    "one bucket": sb.Scatterbrain(sb.PositiveFeatures(6), sb.RandomHyperplanes(0)),
    "cut buckets": sb.Scatterbrain(sb.PositiveFeatures(5), sb.RandomHyperplanes(2, max_bucket=7)),
    "coupled": sb.Scatterbrain(sb.PositiveFeatures(6, "simplex", paired=True, rho=0.8), sb.E2LSH(1, 1.0)),
    "fitted": sb.Scatterbrain(
        sb.PositiveFeatures(6, rho="optimal", centred=True, whitened=True), sb.CrossPolytope(1, 4)
    ),
    "elu": sb.Scatterbrain(sb.EluFeatures(), sb.RandomHyperplanes(3)),
}


@pytest.fixture
def taken(monkeypatch):
    """What the fast path said of each call: True where it wrote the output."""
    said, attend = [], runs.attend

    def spy(*arguments):
        said.append(attend(*arguments))
        return said[-1]

    monkeypatch.setattr(runs, "attend", spy)
    return said


def by_array_api(*arrays, **arguments):
    """The output of the array-API code alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "is_taken", lambda *_: False)
        return sb.attention(*arrays, **arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("masked", ["no", "keys", "queries"])
def test_fast_path_equals_the_array_api_code(rng, taken, monkeypatch, name, masked, dtype):
    monkeypatch.setattr(runs, "CHUNK_KEYS", 20)
    monkeypatch.setattr(runs, "TILE_QUERIES", 9)
    arrays = draw_problem(rng, 90, 80, lead=(2, 2), dtype=dtype)
    shape = {"keys": (2, 2, 1, 80), "queries": (2, 1, 90, 1)}.get(masked)
    mask = None if shape is None else rng.random(shape) < 0.6
    arguments = {"method": METHODS[name], "attn_mask": mask, "seed": 3}
    got = sb.attention(*arrays, **arguments)
    assert taken
    assert all(taken)
    expected = by_array_api(*arrays, **arguments)
    assert np.abs(got - expected).max() <= 64 * eps(dtype) * np.abs(expected).max()


@given(
    n_queries=st.integers(1, 60),
    n_keys=st.integers(1, 60),
    bits=st.integers(0, 4),
    limit=st.none() | st.integers(1, 9),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_fast_path_at_any_shape(n_queries, n_keys, bits, limit, spread, seed):
    """With equal keys, and with keys so long that features of other runs vanish beside those of one."""
    q, k, v = draw_problem(np.random.default_rng(seed), n_queries, n_keys)
    method = sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(bits, max_bucket=limit))
    arrays, arguments = (q, k * spread, v), {"method": method, "seed": seed}
    got, expected = sb.attention(*arrays, **arguments), by_array_api(*arrays, **arguments)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)


def test_features_off_a_run_of_all_keys_do_not_count(rng, taken):
    """Far larger than the weights of the keys, as for vectors along a row of W, they would hide these."""
    method = sb.Scatterbrain(sb.PositiveFeatures(8), sb.RandomHyperplanes(0))
    (rows,) = method.low_rank.draw(Draws(0).feature_generator(), 256)
    x = (rows[:1] / 2 + 0.01 * rng.standard_normal((30, 256))).astype(np.float32)
    got = sb.attention(x, x, x, method=method, scale=1.0)
    assert taken == [True]
    expected = sb.attention(x, x, x, method="exact", scale=1.0)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_far_apart_runs_are_left_to_the_array_api_code(rng, taken):
    """A feature's sum off the run of its largest would vanish beside it in one sum with one reference."""
    q, k, v = draw_problem(rng, 40, 40, dtype="float32")
    k = np.abs(k)
    k[:, ::2] *= -30  # long keys in buckets of their own
    arguments = {"method": METHODS["hyperplanes"], "scale": 1.0}
    got = sb.attention(q, k, v, **arguments)
    assert not any(taken)
    np.testing.assert_array_equal(got, by_array_api(q, k, v, **arguments))


def test_what_is_not_finite_is_left_to_the_array_api_code(rng, taken):
    q, k, v = draw_problem(rng, 40, 40)
    k[0, 3, 1] = np.nan
    out = sb.attention(q, k, v, method=METHODS["hyperplanes"], check_finite=False)
    assert taken == [False, True]  # of each head
    assert np.isnan(out[0]).any()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("other", ["causal", "dense", "two tables", "several parts", "debias", "short runs"])
def test_other_calls_are_left_to_the_array_api_code(rng, taken, other):
    q, k, v = draw_problem(rng, 40, 40)
    parts = {
        "two tables": (6, sb.RandomHyperplanes(2, 2), {}),
        "several parts": (6, (sb.RandomHyperplanes(2), sb.LocalWindow(3)), {}),
        "debias": (6, sb.RandomHyperplanes(2), {"debias": 3}),
        "short runs": (30, sb.RandomHyperplanes(3, max_bucket=2), {}),
    }
    rank, sparse, more = parts.get(other, (6, sb.RandomHyperplanes(2), {}))
    mask = rng.random((40, 40)) < 0.9 if other == "dense" else None
    method = sb.Scatterbrain(sb.PositiveFeatures(rank), sparse, **more)
    sb.attention(q, k, v, method=method, is_causal=other == "causal", attn_mask=mask)
    assert not any(taken)


@pytest.mark.parametrize("name", ["auto", "scatterbrain", "lsh", "exact", "performer", "smyrf"])
def test_no_bit_depends_on_the_number_of_threads(rng, monkeypatch, name):
    monkeypatch.setattr(NumpyBackend, "group_elements", 1)
    arrays = draw_problem(rng, 300, 310, dim=16, lead=(3,), dtype="float32")
    outputs = []
    for n_threads in (1, 2, 5):
        sb.set_num_threads(n_threads)
        outputs.append([sb.attention(*(x[:n] for x in arrays), method=name, budget=0.3) for n in (1, 3)])
    sb.set_num_threads(None)
    for got in outputs[1:]:
        for one, other in zip(got, outputs[0], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_form_of_a_head_goes_with_it(rng, monkeypatch, is_causal):
    """A head more takes the memory of its output: no scaled copies of all queries and keys are held."""
    monkeypatch.setattr(NumpyBackend, "group_elements", 1)
    sb.set_num_threads(1)
    q, k, v = draw_problem(rng, 1024, 1024, dim=32, lead=(12,), columns=32, dtype="float32")
    peaks = []
    for n in (1, 4, 12):  # the first call imports and caches
        tracemalloc.start()
        sb.attention(q[:n], k[:n], v[:n], is_causal=is_causal)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    sb.set_num_threads(None)
    assert peaks[2] - peaks[1] <= 1.3 * v[:8].nbytes


def test_torch_on_the_cpu_is_numpys(rng, taken):
    torch = pytest.importorskip("torch")
    arrays = draw_problem(rng, 70, 60, lead=(2, 3), dtype="float32")
    mask = rng.random((2, 1, 1, 60)) < 0.8
    arguments = {"method": METHODS["cut buckets"], "seed": 5}
    expected = sb.attention(*arrays, attn_mask=mask, **arguments)
    tensors = [torch.asarray(x) for x in arrays]
    got = sb.attention(*tensors, attn_mask=torch.asarray(mask), **arguments)
    assert all(taken)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)
    negated = torch.complex(torch.zeros_like(tensors[0]), -tensors[0]).conj().imag  # its bit is set
    again = sb.attention(negated, *tensors[1:], attn_mask=torch.asarray(mask), **arguments)
    np.testing.assert_array_equal(again.numpy(), got.numpy())
    tensors[0].requires_grad_()
    with torch.no_grad():
        again = sb.attention(*tensors, attn_mask=torch.asarray(mask), **arguments)
    np.testing.assert_array_equal(again.numpy(), got.numpy())
    n_before = len(taken)
    assert sb.attention(*tensors, **arguments).requires_grad
    assert len(taken) == n_before


NUMBERS = {
    "floats": np.random.default_rng(0).standard_normal(3000, dtype=np.float32),
    "ties": np.random.default_rng(0).integers(0, 9, 500).astype(np.float64),
    "all equal": np.zeros(7, np.float32),
    "signed zeros": np.array([0.0, -0.0, 1.0, -0.0, 0.0]),
    "not numbers": np.array([np.nan, 1.0, np.nan, -np.inf, np.inf, 1.0]),
    "empty": np.empty(0),
    "no integers": np.empty(0, np.int64),
    "large integers": np.random.default_rng(0).integers(0, 2**40, 500) // 2**33 * 2**20,
    "bytes": np.random.default_rng(0).integers(0, 2, 500).astype(np.int8),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_sorts_are_stable(name):
    x = NUMBERS[name]
    np.testing.assert_array_equal(stable_argsort(x), np.argsort(x, kind="stable"))


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0]) | st.floats(width=32, allow_nan=False)))
def test_sorts_of_any_floats_are_stable(numbers):
    x = np.array(numbers, np.float32)
    np.testing.assert_array_equal(stable_argsort(x), np.argsort(x, kind="stable"))


def test_threads_keep_the_order_and_the_context_of_the_call(two_threads):
    both = threading.Barrier(2)

    def work(i):
        if i < 2:  # a thread cannot have both
            both.wait(timeout=60)
        return i, np.geterr()["over"], threading.current_thread()

    with np.errstate(over="raise"):
        got = NumpyBackend(np).map(work, range(6))
    assert [i for i, *_ in got] == list(range(6))
    assert {over for _, over, _ in got} == {"raise"}
    names = {thread.name for *_, thread in got}
    assert names == {threading.current_thread().name, "scatterbrain_1"}


def test_the_first_error_in_time_is_raised(two_threads):
    """And not what others make of the end of the call."""

    def work(i):
        if i == 0:
            threads._stopped.get().wait(timeout=60)
            raise threads.Interrupted
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        threads.map_on_threads(work, range(4))


def in_blocks(function):
    for _ in range(100_000):
        NumpyBackend(np).checkpoint(function)


@pytest.mark.parametrize(
    "in_turn", [lambda function: threads.map_on_threads(function, range(100_000)), in_blocks]
)
def test_an_error_ends_the_work_and_leaves_no_thread(two_threads, in_turn):
    begun, before = [], threading.active_count()
    numbers = np.random.default_rng(0).random(10_000)

    def work(i):
        begun.append(i)
        if i == 0:
            raise KeyboardInterrupt
        # What it maps in turn sees the end of the call, and so do blocks of a head.
        in_turn(lambda _=None: np.sort(numbers))

    with pytest.raises(KeyboardInterrupt):
        threads.map_on_threads(work, range(1000))
    assert threading.active_count() == before
    assert len(begun) < 10


def blas_threads():
    controllers = pytest.importorskip("threadpoolctl")
    return [x["num_threads"] for x in controllers.threadpool_info() if x["user_api"] == "blas"]


@pytest.mark.parametrize("n_items", [1, 2])
def test_blas_is_given_back_after_calls_within_calls(two_threads, n_items):
    controllers = pytest.importorskip("threadpoolctl")
    with controllers.threadpool_limits(2, "blas"):
        before = blas_threads()
        inside = threads.map_on_threads(lambda _: blas_threads(), range(n_items))
        assert inside == [[1] * len(before)] * n_items
        assert blas_threads() == before


def test_blas_is_held_whichever_thread_takes_hold_and_which_lets_go(two_threads):
    """The first of two calls ends before the second, whose thread lets go; and so once more."""
    controllers = pytest.importorskip("threadpoolctl")

    def call(begun, ending):
        def work(_):
            begun.set()
            assert ending.wait(timeout=60)
            inside.append(blas_threads())

        threads.map_on_threads(work, [0])

    with controllers.threadpool_limits(2, "blas"):
        before = blas_threads()
        for _ in range(2):
            inside = []
            events = [(threading.Event(), threading.Event()) for _ in range(2)]
            calls = [threading.Thread(target=call, args=pair) for pair in events]
            for thread, (begun, _) in zip(calls, events, strict=True):
                thread.start()
                assert begun.wait(timeout=60)
            for thread, (_, ending) in zip(calls, events, strict=True):
                ending.set()
                thread.join()
            assert inside == [[1] * len(before)] * 2
            assert blas_threads() == before


def passes_in_a_child(check):
    """Whether a check is true in a process forked here, which is ended where it waits for ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there are threads
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork here")
def test_a_child_forked_while_another_thread_holds_blas_has_all_threads_and_locks(two_threads):
    controllers = pytest.importorskip("threadpoolctl")
    begun, ending = threading.Event(), threading.Event()

    def work(_):
        begun.set()
        ending.wait(timeout=60)

    def is_as_before():
        inside = threads.map_on_threads(lambda _: blas_threads(), range(2))
        return inside == [[1] * len(before)] * 2 and blas_threads() == before

    with controllers.threadpool_limits(2, "blas"):
        before = blas_threads()
        caller = threading.Thread(target=threads.map_on_threads, args=(work, [0]))
        caller.start()
        try:
            assert begun.wait(timeout=60)
            assert passes_in_a_child(lambda: blas_threads() == before and is_as_before())
            with blas._finding, blas._holds().of_process.lock:  # as where it is being set
                assert passes_in_a_child(is_as_before)
        finally:
            ending.set()
            caller.join()
        assert is_as_before()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork here")
def test_a_child_forked_in_a_hold_lets_go_of_its_own(two_threads):
    controllers = pytest.importorskip("threadpoolctl")

    def is_held_until_its_end():
        inside = blas_threads()
        hold.close()
        return inside == [1] * len(before) and blas_threads() == before

    with controllers.threadpool_limits(2, "blas"):
        before = blas_threads()
        with ExitStack() as hold:
            hold.enter_context(blas.one_blas_thread())
            assert passes_in_a_child(is_held_until_its_end)
            assert blas_threads() == [1] * len(before)
        assert blas_threads() == before


class OfEachThread(threading.local):
    """Stands in for a BLAS whose OpenMP counts threads for each thread that asks."""

    number = 4

    def get_num_threads(self):
        return self.number

    def set_num_threads(self, number):
        self.number = number


def test_every_thread_holds_what_it_has_of_its_own(two_threads, monkeypatch):
    library = OfEachThread()
    holds = blas._Holds(blas._Hold([]), blas._HoldOfThread([library]))
    monkeypatch.setattr(blas, "_holds", lambda: holds)
    both = threading.Barrier(2)

    def work(_):
        both.wait(timeout=60)
        return library.number, threading.current_thread().name

    inside = threads.map_on_threads(work, range(2))
    assert [number for number, _ in inside] == [1, 1]
    assert len({name for _, name in inside}) == 2
    assert library.number == 4


@pytest.mark.parametrize("interrupted", [1, 2])
def test_an_interrupt_while_blas_is_set_leaves_it_to_be_given_back(monkeypatch, interrupted):
    """Of the two times that a hold sets it."""
    library, n_set = OfEachThread(), 0
    hold = blas._Hold([library])

    def set_number(number):
        nonlocal n_set
        n_set += 1
        if n_set == interrupted:
            raise KeyboardInterrupt
        library.number = number

    monkeypatch.setattr(library, "set_num_threads", set_number)
    with pytest.raises(KeyboardInterrupt), hold:
        pass
    with hold:
        assert library.number == 1
    assert (hold.holders, library.number) == (set(), 4)


def test_a_hold_that_an_interrupt_kept_from_its_end_ends_with_the_next_of_its_thread():
    library = OfEachThread()
    hold = blas._Hold([library])
    hold.__enter__()  # and no more
    with hold:
        assert library.number == 1
    assert library.number == 4


def test_a_hold_within_a_hold_has_nothing_to_do(monkeypatch):
    """And an interrupt ends both."""
    library, asked = OfEachThread(), []
    holds = blas._Holds(blas._Hold([library]), nullcontext())
    monkeypatch.setattr(blas, "_holds", lambda: asked.append(None) or holds)

    def interrupted():
        with blas.one_blas_thread(), blas.one_blas_thread() as is_held, blas.one_blas_thread_here():
            assert is_held
            assert library.number == 1
            raise KeyboardInterrupt

    for n_asked in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert (library.number, len(asked)) == (4, n_asked)


FUNCTIONS = {
    ("openblas", "pthreads"): ("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
    ("openblas", "openmp"): ("omp_get_max_threads", "omp_set_num_threads"),
    ("mkl", "intel"): ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads_Local"),
    ("blis", "pthreads"): ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
}


@pytest.mark.parametrize("functions", [*FUNCTIONS, None])
def test_the_functions_of_a_blas_are_those_of_its_threads_whichever_threadpoolctl(functions):
    """And threadpoolctl's own where a library has none of these."""
    api, layer = functions or ("openblas", "openmp")
    library, get_and_set = OfEachThread(), FUNCTIONS.get(functions, ())
    library.internal_api, library.threading_layer = api, layer
    library.check_symbols = ("bli_arch", "openblas_get_num_threads", *FUNCTIONS[api, layer])
    own = OfEachThread()
    values = (own.get_num_threads, own.set_num_threads)
    library.dynlib = SimpleNamespace(bli_arch=None, **dict(zip(get_and_set, values, strict=False)))
    with blas._Hold([blas._bound(library)]):
        assert (own.number, library.number) == ((1, 4) if functions else (4, 1))
    assert (own.number, library.number) == (4, 4)
    assert blas._is_of_thread(library) == (layer in ("openmp", "intel"))


def test_without_threadpoolctl_the_environment_says_what_blas_does(monkeypatch):
    monkeypatch.setattr(blas, "_holds", lambda: None)
    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with blas.one_blas_thread() as is_held:
        assert not is_held
    assert (
        threads.map_on_threads(lambda _: threading.current_thread(), range(2))
        == [threading.current_thread()] * 2
    )
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with blas.one_blas_thread() as is_held:
        assert is_held


def test_the_number_of_threads_is_what_was_said(monkeypatch):
    monkeypatch.setenv("SCATTERBRAIN_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert sb.get_num_threads() == 3
    monkeypatch.delenv("SCATTERBRAIN_NUM_THREADS")
    assert sb.get_num_threads() == 5
    sb.set_num_threads(np.int64(2))
    assert sb.get_num_threads() == 2
    sb.set_num_threads(None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert sb.get_num_threads() >= 1


@pytest.mark.parametrize(
    ("n_threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_wrong_number_of_threads_is_refused(n_threads, error):
    with pytest.raises(error, match="n_threads must be an int of at least 1"):
        sb.set_num_threads(n_threads)


def test_a_wrong_number_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("SCATTERBRAIN_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="SCATTERBRAIN_NUM_THREADS must be a positive integer, got 'many'"):
        sb.get_num_threads()


def test_other_libraries_map_in_turn():
    assert Backend(np).map(lambda _: threading.current_thread(), [1, 2]) == [threading.current_thread()] * 2


@given(
    lengths=st.lists(st.integers(1, 9), max_size=5),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_running_merges_are_those_of_the_array_api_code(lengths, rank, seed):
    rng = np.random.default_rng(seed)
    segment = np.repeat(np.arange(len(lengths)), lengths)
    ref = rng.choice([-np.inf, -800.0, 0.0, 1.5, 900.0], (len(segment), rank))
    acc = rng.random((len(segment), rank, 2)) * (ref > -np.inf)[..., None]
    got = merging.running_merge(ref, acc, segment)
    generic = Backend(xp)
    expected = running_merge(generic, Partial(ref, acc), segment, max(lengths, default=0))
    np.testing.assert_array_equal(got[0], expected.ref)
    np.testing.assert_allclose(got[1], expected.acc, rtol=1e-12, atol=1e-300)
