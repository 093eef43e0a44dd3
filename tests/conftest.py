"""Fixtures shared by the suite, and the hypothesis profiles."""

from __future__ import annotations

import os
from functools import cache
from zlib import crc32

# The suite runs in several processes, and its matrices are small.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")


import hypothesis
import numpy as np
import pytest
from commands import SHAPE
from libraries import EVERYWHERE, Library, make_library
from oracle import METHODS, is_call

import scatterbrain_core as sb
from scatterbrain_core.presets import PRESETS
from scatterbrain_core.routing import layout as layouts

ON_CPU = ["numpy", "array_api_strict", "torch"]

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.register_profile("nightly", derandomize=False, deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


EVERY_TEST = "SCATTERBRAIN_EVERY_TEST" in os.environ
ON_CUDA = ["cupy", "torch:cuda"]


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config, items):
    """Leave out methods under masks that they refuse (test_bad_input tests that they do), and thin products.

    Every method meets every library and dtype against the oracle. Elsewhere it meets a library in one dtype,
    no read-only arrays, and each shape of a mask in one library of the CPU: all of the product would take an
    hour. The slow array-api-strict, which computes as NumPy does, runs in float32 alone. A library whose
    device is not here skips once a test, not once for each of its parameters. With SCATTERBRAIN_EVERY_TEST in
    the environment, as for planted faults, nothing is thinned.
    """
    kept, left_out, absent = [], [], set()
    for item in items:
        if parameters(item).get("library") in ON_CUDA:
            item.add_marker("gpu")
        where = absent_library(item), item.nodeid.partition("[")[0]
        is_kept = is_test(item) and (EVERY_TEST or is_in_turn(item)) and where not in absent
        (kept if is_kept else left_out).append(item)
        if is_kept and where[0] is not None:
            absent.add(where)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@cache
def is_here(name):
    try:
        make_library(name)
    except pytest.skip.Exception:
        return False
    return True


def absent_library(item):
    """The library of a test's parameters that is not here; None where it is."""
    name = parameters(item).get("library")
    return name if name in EVERYWHERE and not is_here(name) else None


def parameters(item):
    return getattr(getattr(item, "callspec", None), "params", {})


def is_test(item):
    """Whether the method of a test, its "name", takes the mask that its "is_causal" or "shape" says."""
    params = parameters(item)
    presets = {name: preset.method for name, preset in PRESETS.items()}
    parts = (presets | METHODS).get(params.get("name"))
    *_, rows, columns = (1, 1, *params.get("shape", ()))
    return parts is None or is_call(parts, params.get("is_causal", False), rows > 1 and columns > 1)


def is_in_turn(item):
    """Whether it is the turn of a test's dtype, and of its library where it has a shape."""
    params = parameters(item)
    name, library = params.get("name"), params.get("library")
    if (library, params.get("dtype")) == ("array_api_strict", "float64"):
        return False
    if name not in METHODS or library is None or item.originalname == "test_output_and_lse_are_the_oracles":
        return True
    if library == "numpy-readonly":
        return False
    turn = crc32(name.encode())
    if "shape" in params and library in ON_CPU:
        place = crc32(repr(params["shape"]).encode())
        if ON_CPU.index(library) != (turn + place) % len(ON_CPU):
            return False
    dtypes = ("float32", "float64")
    whose = "float32" if library == "array_api_strict" else dtypes[(turn + EVERYWHERE.index(library)) % 2]
    return params.get("dtype", whose) == whose


@pytest.fixture(params=EVERYWHERE)
def library(request: pytest.FixtureRequest) -> Library:
    return make_library(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["all", "causal"])
def is_causal(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20211029)


@pytest.fixture
def few_looked(monkeypatch):
    """Tiles look at about as many clusters as a query has entries, and see many groups as one."""
    monkeypatch.setattr(layouts, "LEAST_LOOKED", 1)


@pytest.fixture
def exact_drop_in():
    """The drop-in for transformers, exact by the library at any length: what is off is its own mistake."""
    drop_in = pytest.importorskip("scatterbrain_backends.transformers")
    with drop_in.configure(method="exact", budget=0.125, exact_below=0, seed=0):
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with q.npy, k.npy, v.npy and some files that are no such thing."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(7)
    for name in "qkv":
        np.save(f"{name}.npy", draw.standard_normal(SHAPE).astype(np.float32))
    return tmp_path


@pytest.fixture
def one_thread():
    """Calls on NumPy arrays use one thread."""
    yield from _on_threads(1)


@pytest.fixture
def two_threads():
    """Calls on NumPy arrays use two threads, however many processors there are."""
    yield from _on_threads(2)


def _on_threads(n):
    sb.set_num_threads(n)
    yield
    sb.set_num_threads(None)
