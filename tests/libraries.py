"""The array libraries that every test runs over, each with what it takes to come and go."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Library:
    name: str
    asarray: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]

    def arrays(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        return tuple(self.asarray(x) for x in arrays)

    def is_own(self, x: Any) -> bool:
        return type(x) is type(self.asarray(np.zeros(1)))


def _numpy() -> Library:
    return Library("numpy", np.array, np.asarray)


def _read_only() -> Library:
    def asarray(x: np.ndarray) -> np.ndarray:
        x = np.array(x)
        x.flags.writeable = False
        return x

    return Library("numpy-readonly", asarray, np.asarray)


def _strict() -> Library:
    import array_api_strict

    array_api_strict.set_array_api_strict_flags(
        api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False
    )
    # Not the default device: what is made without saying where does not meet the arrays.
    there, here = (array_api_strict.Device(name) for name in ("device1", "CPU_DEVICE"))
    return Library(
        "array_api_strict",
        lambda x: array_api_strict.asarray(x, device=there),
        lambda x: np.asarray(x.to_device(here)),
    )


def _torch(device: str) -> Library:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return Library(
        f"torch:{device}",
        lambda x: torch.asarray(np.array(x), device=device),
        lambda x: x.detach().cpu().numpy(),
    )


def _jax() -> Library:
    import jax

    jax.config.update("jax_enable_x64", True)
    return Library("jax", jax.numpy.asarray, np.asarray)


def _cupy() -> Library:
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"CuPy sees no device here: {error}")
    return Library("cupy", cupy.asarray, cupy.asnumpy)


MAKERS: dict[str, tuple[str, Callable[[], Library]]] = {
    "numpy": ("numpy", _numpy),
    "numpy-readonly": ("numpy", _read_only),
    "array_api_strict": ("array_api_strict", _strict),
    "torch": ("torch", lambda: _torch("cpu")),
    "torch:cuda": ("torch", lambda: _torch("cuda")),
    "jax": ("jax", _jax),
    "cupy": ("cupy", _cupy),
}


# JAX compiles every operation anew for every shape: it has a file of tests of its own.
EVERYWHERE = [name for name in MAKERS if name != "jax"]


def make_library(name: str) -> Library:
    module, maker = MAKERS[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return maker()
