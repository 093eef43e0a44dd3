"""Every instantiation compiles for every architecture, as CuPy compiles it, and spills no register."""

from __future__ import annotations

import pytest

from kernels.nvrtc import ARCHITECTURES, KERNELS, compile_log, resources


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_and_spill_nothing(name, architecture):
    found = resources(compile_log(name, KERNELS[name], architecture))
    assert len(found) == len(KERNELS[name])
    assert [spilled for _, spilled in found] == [0] * len(found)
