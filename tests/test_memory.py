"""`max_memory`, and how memory grows."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_backends.numpy_ import NumpyBackend, runs

PARTS = {
    "one table": sb.Scatterbrain(sb.PositiveFeatures(32), sb.RandomHyperplanes(max_bucket=64)),
    "four tables": sb.Scatterbrain(sb.PositiveFeatures(16), sb.RandomHyperplanes(n_bits=3, n_tables=4)),
    "debiased": sb.Scatterbrain(sb.PositiveFeatures(8), (sb.LocalWindow(9), sb.GlobalTokens(4)), debias=8),
    "signed": sb.Scatterbrain(sb.TrigonometricFeatures(32), sb.CrossPolytope(1, 4)),
}
METHODS = {name: name for name in sb.methods()} | PARTS


def least_memory(*arrays, **arguments):
    """What the message of a limit of one byte says."""
    with pytest.raises(ValueError, match=r"max_memory must be at least \d+ bytes for this call") as caught:
        sb.attention(*arrays, max_memory=1, **arguments)
    return int(re.search(r"at least (\d+) bytes", str(caught.value))[1])


def peak_of(*arrays, **arguments):
    """Output, and bytes that a call took beside it at a time."""
    tracemalloc.start()
    output = sb.attention(*arrays, **arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return output, peak - output.nbytes


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("dim", "dtype", "masked"), [(4, "float64", True), (64, "float32", False), (32, "float16", True)]
)
def test_no_call_takes_more_than_the_least(rng, is_causal, one_thread, name, dim, dtype, masked):
    """Which each message promises; two heads, so that working both at a time would be seen."""
    arrays = draw_problem(rng, 3000, 3000, dim=dim, lead=(2,), columns=dim)
    q, k, v = ((0.5 * x).astype(dtype) for x in arrays)
    mask = rng.random((2, 1, 3000)) < 0.9 if masked else None
    arguments = {"method": METHODS[name], "budget": 0.06, "is_causal": is_causal, "attn_mask": mask}
    try:
        sb.attention(q[:, :9], k[:, :9], v[:, :9], **(arguments | {"attn_mask": None, "budget": 1.0}))
    except ValueError as error:  # not causal
        assert is_causal
        pytest.skip(str(error))
    least = least_memory(q, k, v, **arguments)
    output, peak = peak_of(q, k, v, max_memory=least, **arguments)
    assert peak <= least
    free = sb.attention(q, k, v, **arguments)
    tolerance = 2e-3 if dtype == "float16" else 1e-4
    assert np.abs(output - free).max() <= tolerance * np.abs(free.astype(float)).max()


LARGE = {
    "auto, half of the keys": (4096, 8, {"budget": 0.5}),
    "auto, many keys": (20000, 4, {}),
    "tables": (
        16384,
        2,
        {"method": sb.Scatterbrain(sparse=sb.RandomHyperplanes(n_bits=8, n_tables=16, max_bucket=64))},
    ),
    "top keys": (4000, 8, {"method": sb.Scatterbrain(sparse=sb.TopKeys(2))}),
    "clusters": (10000, 4, {"method": sb.Scatterbrain(sparse=sb.KeyClusters(500)), "budget": 0.01}),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_grows_is_counted(rng, is_causal, two_threads, name):
    """Where the constant part of the least is small beside it, and with as many threads as fit."""
    n, dim, arguments = LARGE[name]
    if is_causal and name == "clusters":
        pytest.skip("clusters of all keys are not causal")
    arrays = [0.5 * x for x in draw_problem(rng, n, n, dim=dim, lead=(2,), columns=dim, dtype="float32")]
    arguments = {**arguments, "is_causal": is_causal}
    least = least_memory(*arrays, **arguments)
    for limit in (least, 2 * least):
        assert peak_of(*arrays, max_memory=limit, **arguments)[1] <= limit


@pytest.mark.parametrize("masked", [False, True])
def test_the_check_of_entries_is_counted(rng, two_threads, masked):
    """Which copies what it checks of half precision."""
    q, k, v = (x.astype("float16") for x in draw_problem(rng, 64, 64, dim=64, lead=(600,), columns=64))
    mask = rng.random((600, 1, 64)) < 0.9 if masked else None
    arguments = {"method": "scatterbrain", "attn_mask": mask}
    least = least_memory(q, k, v, **arguments)
    assert peak_of(q, k, v, max_memory=least, **arguments)[1] <= least


@pytest.mark.parametrize(("length", "dim", "dtype"), [(3000, 128, "float32"), (4096, 4, "float64")])
def test_generic_code_keeps_to_the_limit_too(rng, length, dim, dtype):
    strict = pytest.importorskip("array_api_strict")
    arrays = draw_problem(rng, length, length, dim=dim, lead=(1,), columns=dim, dtype=dtype)
    own = [strict.asarray(x) for x in arrays]
    least = least_memory(*own)
    tracemalloc.start()
    sb.attention(*own, max_memory=least)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= least + arrays[2].nbytes


def test_torch_on_the_cpu_hands_the_limit_on(rng, monkeypatch):
    torch = pytest.importorskip("torch")
    found, attend = [], runs.attend

    def spy(problem, *arguments):
        found.append(problem.backend.is_limited)
        return attend(problem, *arguments)

    monkeypatch.setattr(runs, "attend", spy)
    tensors = [torch.asarray(x) for x in draw_problem(rng, 300, 300, lead=(3,), dtype="float32")]
    arguments = {"method": PARTS["one table"]}
    sb.attention(*tensors, max_memory=2**28, **arguments)
    assert found == [True] * 3


def test_more_memory_makes_larger_temporaries_and_more_heads_at_a_time(rng):
    arrays = draw_problem(rng, 600, 600, lead=(4,), dtype="float32")
    least = least_memory(*arrays)
    found = []

    within = NumpyBackend.within

    def spy(self, *arguments):
        found.append(arguments)
        return within(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NumpyBackend, "within", spy)
        for limit in (least, 3 * least, 10 * least):
            sb.attention(*arrays, max_memory=limit)
    (chunk, heads), (more, _), (most, several) = found
    assert (chunk, heads) == (2**16, 1)
    assert chunk < more <= most == NumpyBackend.chunk_elements
    assert several > 1


def test_other_libraries_count_what_putting_the_output_together_takes(rng):
    torch = pytest.importorskip("torch")
    arrays = draw_problem(rng, 50, 50, lead=(3,), dtype="float32")
    tensors = [torch.asarray(x) for x in arrays]
    assert least_memory(*tensors) == least_memory(*arrays) + arrays[2].nbytes
    got = sb.attention(*tensors, max_memory=2**28, method="scatterbrain")
    np.testing.assert_allclose(got, sb.attention(*arrays, method="scatterbrain"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("limit", "error", "told"),
    [
        (True, TypeError, "max_memory must be an int or None, got bool"),
        (1e9, TypeError, "max_memory must be an int or None, got float"),
        ("1GB", TypeError, "max_memory must be an int or None, got str"),
        (-1, ValueError, "max_memory must be at least"),
    ],
)
def test_a_wrong_limit_is_refused(rng, limit, error, told):
    with pytest.raises(error, match=told):
        sb.attention(*draw_problem(rng, 20, 20), max_memory=limit)


@pytest.mark.parametrize("order", ["read-only", "misaligned"])
@pytest.mark.parametrize("method", ["auto", "scatterbrain", "exact"])
def test_arrays_in_files_are_read_where_they_are(rng, tmp_path, order, method):
    """A memmap is an array: nothing is written to it, and its bytes may begin anywhere."""
    arrays = draw_problem(rng, 400, 400, dim=16, lead=(2,), dtype="float32")
    maps = []
    for i, x in enumerate(arrays):
        path = tmp_path / f"{i}.bin"
        offset = 0 if order == "read-only" else 3
        path.write_bytes(b"\0" * offset + x.tobytes())
        maps.append(np.memmap(path, np.float32, "r", offset, x.shape))
    assert maps[0].flags.aligned == (order == "read-only")
    got = sb.attention(*maps, method=method, budget=0.3)
    assert type(got) is np.ndarray
    np.testing.assert_allclose(got, sb.attention(*arrays, method=method, budget=0.3), rtol=1e-5, atol=1e-6)
