"""Reverse-mode differentiation of array-API code: a small tape, for libraries without autograd.

The core writes all its arithmetic as ``xp.f(...)`` and operators. Run with a `TracingBackend`, whose
namespace knows the adjoint of each operation, the same code records what its gradient needs.
"""

from scatterbrain_core.differentiation.tape import Tape
from scatterbrain_core.differentiation.traced import Traced, untraced
from scatterbrain_core.differentiation.tracing import TracingBackend

__all__ = ["Tape", "Traced", "TracingBackend", "untraced"]
