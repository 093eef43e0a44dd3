"""The array libraries ``scatterbrain doctor`` looks for: their devices and their way back to NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Library:
    """An array library.

    Attributes
    ----------
    name : str
        Of the package, as it is imported.
    module : str
        With the array functions.
    devices : callable
        From that module to its devices here.
    make : callable
        From the module, a NumPy array and a device to the library's array there.
    to_numpy : callable
        From the library's array to NumPy's.
    """

    name: str
    module: str
    devices: Callable[[Any], Sequence[Any]]
    make: Callable[[Any, Any, Any], Any]
    to_numpy: Callable[[Any], Any]


def _torch_devices(torch: Any) -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    others = [name for name in ("mps", "xpu") if getattr(getattr(torch, name, None), "is_available", bool)()]
    return ["cpu", *cuda, *others]


def _cupy_devices(cupy: Any) -> list[Any]:
    return [cupy.cuda.Device(index) for index in range(cupy.cuda.runtime.getDeviceCount())]


def _cupy_make(cupy: Any, array: Any, device: Any) -> Any:
    with device:
        return cupy.asarray(array)


def _jax_devices(jnp: Any) -> list[Any]:
    import jax

    del jnp
    return list(jax.devices())


def _only_cpu(module: Any) -> list[str]:
    del module
    return ["cpu"]


def _strict_devices(xp: Any) -> list[Any]:
    # On the device no_x64 the library's own argsort, argmax and nonzero raise: their indices are int64.
    return [device for device in xp.__array_namespace_info__().devices() if "no_x64" not in str(device)]


def _plain(xp: Any, array: Any, device: Any) -> Any:
    del device
    return xp.asarray(array)


def _on_device(xp: Any, array: Any, device: Any) -> Any:
    return xp.asarray(array, device=device)


LIBRARIES = (
    Library("numpy", "numpy", _only_cpu, _plain, lambda x: x),
    Library("torch", "torch", _torch_devices, _on_device, lambda x: x.cpu().numpy()),
    Library("cupy", "cupy", _cupy_devices, _cupy_make, lambda x: x.get()),
    Library("jax", "jax.numpy", _jax_devices, _on_device, lambda x: x),
    Library(
        "array_api_strict",
        "array_api_strict",
        _strict_devices,
        _on_device,
        lambda x: x.to_device(type(x.device)("CPU_DEVICE")),
    ),
    Library("dask", "dask.array", _only_cpu, _plain, lambda x: x.compute()),
)
