"""Scatterbrain attention (sparse + low-rank, arXiv 2110.15343) on any array-API arrays.

Hand in NumPy, CuPy, Torch, JAX or any array-API arrays and get the same back::

    import scatterbrain_core as sb

    out = sb.attention(query, key, value, budget=0.125, seed=0)
"""

from scatterbrain_core._version import __version__
from scatterbrain_core.attention import attention, attention_matrix, estimate
from scatterbrain_core.estimates import Cost, Estimate
from scatterbrain_core.gradients import attention_vjp
from scatterbrain_core.low_rank import EluFeatures, PositiveFeatures, TrigonometricFeatures
from scatterbrain_core.merging import merge
from scatterbrain_core.method import Scatterbrain, methods
from scatterbrain_core.sparse import E2LSH, AllPairs, CrossPolytope, RandomHyperplanes

__all__ = [
    "E2LSH",
    "AllPairs",
    "Cost",
    "CrossPolytope",
    "EluFeatures",
    "Estimate",
    "PositiveFeatures",
    "RandomHyperplanes",
    "Scatterbrain",
    "TrigonometricFeatures",
    "__version__",
    "attention",
    "attention_matrix",
    "attention_vjp",
    "estimate",
    "merge",
    "methods",
]
