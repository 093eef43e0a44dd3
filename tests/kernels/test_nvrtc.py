"""Every instantiation compiles for every architecture, as CuPy compiles it, and takes what was reviewed."""

from __future__ import annotations

import pytest

from kernels.nvrtc import ARCHITECTURES, KERNELS, version
from kernels.resources import figures, reviewed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_spill_nothing_and_take_what_was_reviewed(name, architecture):
    found = figures(name, architecture)
    assert found.keys() == set(KERNELS[name])
    assert {kernel for kernel, x in found.items() if x["spilled"]} == set()
    of_version, expected = reviewed(name, architecture)
    assert found.keys() == expected.keys(), "run python tests/kernels/resources.py and review what changed"
    if of_version != version():
        pytest.skip(f"no kernel spills; the reviewed figures are of NVRTC {of_version}, this is {version()}")
    assert found == expected
