"""When Torch tensors may go to the kernels, which autograd does not see."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import array_api_compat.torch as xp  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

from kernels.cases import Case, make_visits, rounded_rows  # noqa: E402
from kernels.host import COMPILER, HostKernels, HostRunner  # noqa: E402
from scatterbrain_backends import torch_  # noqa: E402
from scatterbrain_backends.cupy_ import hashes, states  # noqa: E402
from scatterbrain_backends.cupy_.launches import Runner  # noqa: E402
from scatterbrain_backends.cupy_.tile_partial import half_rows  # noqa: E402
from scatterbrain_core import tiles  # noqa: E402


def test_what_autograd_records_is_differentiated():
    x = torch.ones(3, requires_grad=True)
    assert torch_.is_differentiated(x)
    assert torch_.is_differentiated(x * 2)
    assert not torch_.is_differentiated(x.detach())
    with torch.no_grad():
        assert not torch_.is_differentiated(x)
    with torch.inference_mode():
        assert not torch_.is_differentiated(torch.ones(3))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_carries_a_tangent_is_differentiated():
    x = torch.ones(3)
    with forward_ad.dual_level():
        assert torch_.is_differentiated(forward_ad.make_dual(x, x))
        assert not torch_.is_differentiated(x)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_what_is_transformed_is_differentiated(transform):
    seen = []

    def function(x):
        seen.append(torch_.is_differentiated(x))
        return x.sum()

    transform(function)(torch.ones(2, 3))
    assert seen == [True]


def test_tensors_of_the_cpu_go_to_no_kernel(rng, monkeypatch):
    monkeypatch.setattr(torch_, "_cuda_module", lambda: pytest.fail("a kernel was looked for"))
    backend = torch_.TorchBackend(torch)
    visits = make_visits(rng, Case())
    tensors = type(visits.pairs)(*map(torch.asarray, (visits.pairs.query, visits.pairs.key)), None)
    visits = replace(visits, pairs=tensors, weighted_value=torch.asarray(visits.weighted_value))
    assert backend.tile_partial(visits, lambda: "generic") == "generic"
    ref, acc = torch.zeros(2, 1), torch.ones(2, 1, 1)
    assert backend.running_merge(ref, acc, torch.asarray([0, 0]), lambda: "generic") == "generic"
    whole = torch.zeros(2, dtype=torch.int64)
    assert backend.sort_jointly(whole, whole, ref[:, 0], ref[:, 0], lambda: "generic") == "generic"
    assert backend.hyperplane_codes(ref, ref, None, lambda: "generic") == "generic"
    total = backend.scatter_add(torch.zeros(3, 2), torch.asarray([2, 2]), torch.ones(2, 2))
    np.testing.assert_array_equal(total.numpy(), [[0, 0], [0, 0], [2, 2]])


def test_tensors_of_a_device_that_need_a_gradient_go_to_no_kernel(monkeypatch):
    looked_for = []
    monkeypatch.setattr(torch_, "_cuda_module", lambda: looked_for.append(True))
    there, needs = (SimpleNamespace(device=torch.device("cuda"), requires_grad=x) for x in (False, True))
    monkeypatch.setattr(torch_, "is_differentiated", lambda x: x.requires_grad)
    assert torch_._kernels(there, needs) is None
    assert not looked_for
    torch_._kernels(there, there)
    assert looked_for


@pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")
def test_tensors_are_handed_to_the_kernels_as_arrays_are(rng, tmp_path):
    """What surrounds the launches, in Torch's own operations."""
    names = {
        "sort_numbers": "sort_numbers<float>",
        "bucket_intervals": "bucket_intervals",
        "hyperplane_codes": "hyperplane_codes<float>",
        "running_merge": "running_merge<float>",
        "half_rows": "half_rows<BFloat16>",
    }
    kernels = {name: HostKernels(name, [kernel], tmp_path) for name, kernel in names.items()}
    run = HostRunner(kernels).run
    runner = Runner(run, lambda x: x.contiguous().numpy(), lambda n, dtype: torch.empty(n, dtype=dtype))

    buckets, ranks = ([torch.asarray(make(n)) for n in (40, 30)] for make in (np.arange, np.ones))
    buckets, ranks = [x // 7 for x in buckets], [x.float() for x in ranks]
    own = hashes.sort_jointly(xp, buckets, ranks, runner)
    for name, x in vars(tiles.sort_jointly(xp, *buckets, *ranks)).items():
        assert torch.equal(getattr(own, name), x)

    x, normals = (torch.asarray(rng.standard_normal((n, 9)).astype("float32")) for n in (40, 4))
    code, projection = hashes.hyperplane_codes(xp, x, normals[:3], normals[3], runner)
    assert torch.equal(code, (x @ normals[:3].T >= 0).long() @ torch.asarray([4, 2, 1]))
    torch.testing.assert_close(projection, x @ normals[3])

    ref, acc = torch.zeros(4, 3), torch.ones(4, 3, 2)
    _, merged = states.running_merge(xp, ref, acc, torch.asarray([1, 1, 1, 0]), runner)
    assert merged[:, 0, 0].tolist() == [1, 2, 3, 1]

    visits = make_visits(rng, Case(dtype="bfloat16"))
    pairs = replace(visits.pairs, key=torch.asarray(visits.pairs.key))
    there = replace(visits, pairs=pairs, weighted_value=torch.asarray(visits.weighted_value))
    own = half_rows(xp, there, runner)
    for x, expected in zip(own, rounded_rows(visits), strict=True):
        np.testing.assert_array_equal(x.numpy(), expected)


def test_cupy_is_not_imported_for_torch():
    code = (
        "import sys, torch, scatterbrain_core as sb; "
        "sb.attention(*torch.ones(3, 200, 8)); print('cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("reason", [None, "RuntimeError: CuPy failed to load libnvrtc.so.12"])
def test_a_cupy_that_compiles_nothing_is_left_alone(monkeypatch, reason):
    """With one warning: generic code gives the same."""
    module = SimpleNamespace(reason_against=lambda: reason)
    monkeypatch.setattr(torch_.importlib, "import_module", lambda _: module)
    torch_._cuda_module.cache_clear()
    try:
        if reason is None:
            assert torch_._cuda_module() is module
            return
        with pytest.warns(UserWarning, match="compiles no kernels, Torch works without: RuntimeError"):
            assert torch_._cuda_module() is None
        assert torch_._cuda_module() is None  # without another
    finally:
        torch_._cuda_module.cache_clear()
