"""NumPy: what the core can leave to in-place operations, cache-sized tiles and threads."""

from scatterbrain_backends.numpy_.backend import NumpyBackend

__all__ = ["NumpyBackend"]
