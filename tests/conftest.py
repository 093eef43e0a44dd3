"""Fixtures shared by the suite, and the hypothesis profiles."""

from __future__ import annotations

import os

# The suite runs in several processes, and its matrices are small.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")


import hypothesis
import numpy as np
import pytest
from commands import SHAPE
from libraries import EVERYWHERE, Library, make_library

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.register_profile("nightly", derandomize=False, deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


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
def folder(tmp_path, monkeypatch):
    """A working folder with q.npy, k.npy, v.npy and some files that are no such thing."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(7)
    for name in "qkv":
        np.save(f"{name}.npy", draw.standard_normal(SHAPE).astype(np.float32))
    return tmp_path
