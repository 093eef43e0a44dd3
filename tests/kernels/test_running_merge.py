"""Running merges by the kernel, on the CPU: against the definition; planted bugs are seen."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from problems import draw_problem

import scatterbrain_core as sb
from kernels.host import COMPILER, ORDERS, HostKernels
from kernels.merges import by_definition, error, make_states, prepare
from scatterbrain_backends.cupy_.launches import MERGE_THREADS
from scatterbrain_backends.numpy_ import NumpyBackend
from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial, running_merge

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

CASES = {
    "ragged": {},
    "single blocks": {"lengths": (1, 1, 1)},
    "one block": {"lengths": (1,)},
    "one segment": {"lengths": (30,)},
    "one row": {"rows": 1, "columns": 1},
    "more than a thread block": {"rows": 9, "columns": 65},
    "one column": {"rows": 33, "columns": 1},
}
BUGS = {
    1: "a block of the next segment too many",
    2: "NaN is no reference",
    3: "minus infinity less minus infinity",
    4: "sums not brought to the new reference",
    5: "every block starts a segment",
    6: "columns taken for rows",
}
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    names = ["running_merge<float>", "running_merge<double>"]
    return HostKernels("running_merge", names, tmp_path_factory.mktemp("merges"))


def merged(kernels, states, **how):
    launch, *found = prepare(*states)
    kernels.run(launch, **how)
    return found


def generic(ref, acc, segment):
    longest = int(np.unique(segment, return_counts=True)[1].max())
    found = running_merge(Backend(xp), Partial(ref, acc), segment, longest)
    return found.ref, found.acc


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_merges_are_those_of_the_definition(kernels, rng, case, dtype, order):
    states = make_states(rng, **case, dtype=dtype)
    expected = by_definition(*states)
    assert error(*merged(kernels, states, order=order), *expected) <= TOLERANCE[dtype]
    assert error(*generic(*states), *expected) <= TOLERANCE[dtype]


def test_large_references_do_not_overflow(kernels, rng):
    ref, acc, segment = make_states(rng)
    states = 1e30 * ref, acc, segment
    assert error(*merged(kernels, states), *by_definition(*states)) <= TOLERANCE["float32"]


def with_nan():
    """States of which one reference and one sum are no numbers."""
    ref, acc, segment = make_states(np.random.default_rng(3), lengths=(6, 4))
    ref[2, 1], acc[7, 2, 3] = np.nan, np.nan
    return ref, acc, segment


def spreads_nan(kernels, bug=0):
    ref, acc = merged(kernels, with_nan(), bug=bug)
    expected_ref, expected = np.zeros(ref.shape, bool), np.zeros(acc.shape, bool)
    expected_ref[2:6, 1] = expected[2:6, 1] = expected[7:, 2, 3] = True
    return np.array_equal(np.isnan(ref), expected_ref) and np.array_equal(np.isnan(acc), expected)


def test_what_is_no_number_stays_so_in_its_segment_alone(kernels):
    assert spreads_nan(kernels)


def test_what_comes_later_and_other_segments_change_no_bit(kernels, rng):
    ref, acc, segment = make_states(rng, lengths=(8, 3))
    first = merged(kernels, (ref, acc, segment))
    ref, acc = ref.copy(), acc.copy()
    ref[5:], acc[5:] = ref[5:] + 300, 2 * acc[5:]
    second = merged(kernels, (ref, acc, segment))
    alone = merged(kernels, (ref[8:], acc[8:], segment[8:]))
    for x, y, z in zip(first, second, alone, strict=True):
        np.testing.assert_array_equal(x[:5], y[:5])
        np.testing.assert_array_equal(y[8:], z)


def seen_by(kernels, bug, order):
    if bug == 2:
        return not spreads_nan(kernels, bug)
    states = make_states(np.random.default_rng(4), lengths=(5, 1, 9, 2))
    return not error(*merged(kernels, states, order=order, bug=bug), *by_definition(*states)) <= 1e-3


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_seen(kernels, bug):
    assert any(seen_by(kernels, bug, order) for order in ORDERS)


@pytest.mark.parametrize("method", ["performer", "scatterbrain", "linformer"])
def test_calls_whose_states_are_merged_by_the_kernel(kernels, rng, monkeypatch, method):
    arrays = draw_problem(rng, 300, 300, dim=8)
    arguments = {"method": method, "is_causal": method != "linformer"}
    expected = sb.attention(*arrays, **arguments)
    calls = []

    def by_kernel(_, ref, acc, segment, generic):
        calls.append(segment)
        return tuple(merged(kernels, (np.ascontiguousarray(ref), acc, segment), order="random"))

    monkeypatch.setattr(NumpyBackend, "running_merge", by_kernel)
    np.testing.assert_allclose(sb.attention(*arrays, **arguments), expected, rtol=0, atol=1e-12)
    assert calls


def test_every_entry_has_a_thread_where_thread_blocks_are_few(kernels, rng, monkeypatch):
    monkeypatch.setattr("scatterbrain_backends.cupy_.launches.MOST_BLOCKS_Y", 2)
    states = make_states(rng, lengths=(3, 2), rows=3 * MERGE_THREADS, columns=2)
    assert error(*merged(kernels, states), *by_definition(*states)) <= TOLERANCE["float32"]
