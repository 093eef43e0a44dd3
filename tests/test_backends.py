"""Backends: found by entry point, imported only for arrays the caller brought, and equal to generic code."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from libraries import make_library
from oracle import METHODS, relative_error
from parts import Combs, CombWeights, DrawnChunks
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_core import backend as backends


def run_python(code, **kwargs):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, **kwargs
    )


def test_import_brings_in_no_other_library():
    code = (
        "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'; "  # SciPy comes with the loops of the extra numba
        "import sys, scatterbrain_core as sb, numpy as np; "
        "heavy = {'torch', 'cupy', 'jax', 'dask', 'scipy', 'matplotlib', 'rich', 'scatterbrain_backends', "
        "'importlib.metadata', 'array_api_strict'}; "
        "print(sorted(heavy & set(sys.modules))); "
        "sb.attention(*np.ones((3, 4, 8))); "
        "print(sorted((heavy | {'scatterbrain_backends.torch_'}) & set(sys.modules)))"
    )
    result = run_python(code, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "['importlib.metadata', 'scatterbrain_backends']"]


def test_each_library_has_its_backend(library):
    found = backends.backend_of(x=library.asarray(np.zeros(2)))
    expected = {
        "numpy": "NumpyBackend",
        "numpy-readonly": "NumpyBackend",
        "torch:cpu": "TorchBackend",
        "torch:cuda": "TorchBackend",
        "cupy": "CupyBackend",
    }.get(library.name, "Backend")
    assert type(found).__name__ == expected
    assert backends.backend_of(x=library.asarray(np.zeros(3))) is found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("other", ["numpy", "torch"])
def test_a_backend_gives_what_generic_code_gives(rng, dtype, is_causal, name, other, monkeypatch):
    library = make_library(other)
    q, k, v = library.arrays(*draw_problem(rng, 90, 80, dtype=dtype))
    own = sb.attention(q, k, v, method=METHODS[name], is_causal=is_causal)
    monkeypatch.setattr(backends, "_backend", lambda _, xp: backends.Backend(xp))
    generic = sb.attention(q, k, v, method=METHODS[name], is_causal=is_causal)
    assert relative_error(library.to_numpy(own), library.to_numpy(generic)) <= 4 * np.finfo(dtype).eps


class Counting(backends.Backend):
    """A third party's backend."""

    calls = 0

    def exp_below(self, logits, reference):
        Counting.calls += 1
        return super().exp_below(logits, reference)


@pytest.fixture
def fresh_backends():
    for function in (backends._backend, backends._backend_class):
        function.cache_clear()
    yield
    for function in (backends._backend, backends._backend_class):
        function.cache_clear()


def entries(monkeypatch, *values):
    found = [EntryPoint("array_api_strict", value, backends.ENTRY_POINT_GROUP) for value in values]

    def entry_points(group, name):
        assert group == "scatterbrain.backends"
        return [entry for entry in found if entry.name == name]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def test_a_third_party_backend_plugs_in(monkeypatch, fresh_backends):
    library = make_library("array_api_strict")
    entries(monkeypatch, f"{__name__}:Counting")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    before = Counting.calls
    sb.attention(*library.arrays(*np.ones((3, 5, 4))))
    assert Counting.calls > before


def test_two_backends_for_one_library_are_refused(monkeypatch, fresh_backends):
    library = make_library("array_api_strict")
    entries(monkeypatch, "one:Backend", "two:Backend")
    with pytest.raises(ValueError, match=r"claims .*'array_api_strict': one:Backend, two:Backend; keep one"):
        sb.attention(*library.arrays(*np.ones((3, 5, 4))))


UNION = (sb.GlobalTokens(4, (), 2), sb.LocalWindow(32), DrawnChunks(4, 8))
LINEAR = {
    "tables": sb.Scatterbrain(sb.PositiveFeatures(16), sb.RandomHyperplanes(6, 2, 32)),
    "union": sb.Scatterbrain(sb.PositiveFeatures(16), UNION),
    "labels, sample": sb.Scatterbrain(CombWeights(64), (Combs(2, 64), sb.LocalWindow(8)), debias=16),
}


@pytest.mark.parametrize("parts", LINEAR.values(), ids=LINEAR.keys())
@pytest.mark.parametrize("is_masked", [False, True], ids=["plain", "padding"])
def test_memory_is_linear(is_causal, is_masked, parts):
    """Four times the length takes no more than about four times the memory; a dense matrix, sixteen times."""

    def peak(n):
        arrays = np.random.default_rng(0).standard_normal((3, n, 16)).astype(np.float32)
        mask = np.arange(n) % 7 > 0 if is_masked else None
        tracemalloc.start()
        sb.attention(*arrays, method=parts, attn_mask=mask, is_causal=is_causal)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(8192), peak(32768)
    assert large < 5 * small
    assert large < 32768**2 / 4  # a byte for every fourth pair


def test_jax_without_double_precision():
    """JAX as it comes: 32-bit integers and floats, no warning."""
    pytest.importorskip("jax")
    code = (
        "import jax.numpy as jnp, numpy as np, scatterbrain_core as sb; "
        "arrays = np.random.default_rng(0).standard_normal((3, 2, 40, 8)).astype('float32'); "
        "own = sb.attention(*map(jnp.asarray, arrays), method='lsh'); "
        "assert type(own) is type(jnp.zeros(1)) and own.dtype == 'float32'; "
        "print(np.abs(np.asarray(own) - sb.attention(*arrays, method='lsh')).max())"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-5


@pytest.mark.parametrize("name", ["scatterbrain", "clusters, weights"])
def test_jax_is_numpy(rng, is_causal, name):
    library = make_library("jax")
    q, k, v = draw_problem(rng, 40, 40, lead=(1,))
    arguments = {"method": METHODS[name], "is_causal": is_causal}
    own = sb.attention(*library.arrays(q, k, v), **arguments)
    assert library.is_own(own)
    assert relative_error(library.to_numpy(own), sb.attention(q, k, v, **arguments)) <= 1e-12
