"""Keys and values as rows of half precision, by the kernel on the CPU; planted bugs are seen."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest

from kernels.cases import FACTORS, HALVES, Case, make_visits, rounded_rows
from kernels.host import COMPILER, ORDERS, HostKernels, HostRunner
from scatterbrain_backends.cupy_.forms import C_TYPES_OF_HALF
from scatterbrain_backends.cupy_.launches import ROW_THREADS
from scatterbrain_backends.cupy_.tile_partial import half_rows
from scatterbrain_core.problem import HalfPrecision

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

CASES = {
    "odd": Case(dim=7, columns=6),
    "padded": Case(dim=20, columns=23),
    "full": Case(dim=32, columns=33),
    "no columns": Case(columns=1),
    "one key": Case(n_keys=1, n_visits=1, longest=1),
    "more than a thread block": Case(n_keys=3 * ROW_THREADS, dim=8, columns=9),
}
BUGS = {1: "rows of values without their weights", 2: "weights taken for a column", 3: "the factor left out"}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    names = [f"half_rows<{type_}>" for type_ in C_TYPES_OF_HALF.values()]
    return {"half_rows": HostKernels("half_rows", names, tmp_path_factory.mktemp("halves"))}


def rows_of(kernels, visits, **how):
    """By the kernel; and by NumPy."""
    own = half_rows(xp, visits, HostRunner(kernels, **how))
    half = visits.pairs.half
    half._kept.clear()
    return own, rounded_rows(visits)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rows_are_those_that_came(kernels, rng, case, dtype, order):
    visits = make_visits(rng, Case(**{**vars(case), "dtype": dtype}))
    for x, expected in zip(*rows_of(kernels, visits, order=order), strict=True):
        np.testing.assert_array_equal(x, expected)
        assert x.dtype == np.int16
        assert x.shape[1] % 8 == 0


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_seen(kernels, rng, bug):
    visits = make_visits(rng, Case(dim=7, columns=7, dtype="float16"))
    own, expected = rows_of(kernels, visits, bug_of={"half_rows": bug})
    assert not all(map(np.array_equal, own, expected))


def test_the_same_rows_are_rounded_once(rng):
    half, made = HalfPrecision("float16", *FACTORS), []
    rows, others = (rng.standard_normal((3, 2)) for _ in range(2))
    for x in (rows, rows, others, rows):
        half.once("key", x, lambda x=x: made.append(x))
    half.once("value", rows, lambda: made.append("value"))
    assert [x is rows for x in made] == [True, False, True, False]
