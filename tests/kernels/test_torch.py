"""When Torch tensors may go to the kernels, which autograd does not see."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402

from kernels.cases import Case, make_visits  # noqa: E402
from scatterbrain_backends import torch_  # noqa: E402


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


def test_cupy_is_not_imported_for_torch():
    code = (
        "import sys, torch, scatterbrain_core as sb; "
        "sb.attention(*torch.ones(3, 200, 8)); print('cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
