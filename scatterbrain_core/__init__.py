"""Scatterbrain attention (sparse + low-rank, arXiv 2110.15343) on any array-API arrays.

Hand in NumPy, CuPy, Torch, JAX or any array-API arrays and get the same back::

    import scatterbrain_core as sb

    out = sb.attention(query, key, value, budget=0.125, seed=0)
"""

from scatterbrain_core._version import __version__
from scatterbrain_core.attention import attention, attention_matrix, estimate
from scatterbrain_core.estimates import Cost, Estimate
from scatterbrain_core.gradients import attention_vjp
from scatterbrain_core.low_rank import (
    Centroids,
    ColumnSample,
    EluFeatures,
    GeometricMean,
    NystromLandmarks,
    PositiveFeatures,
    SegmentMeans,
    TrigonometricFeatures,
    UniformWeights,
)
from scatterbrain_core.merging import merge
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.plans import Plan, plan
from scatterbrain_core.presets import methods
from scatterbrain_core.sparse import (
    E2LSH,
    AllPairs,
    Blocks,
    CrossPolytope,
    GlobalTokens,
    KeyClusters,
    LocalWindow,
    RandomHyperplanes,
    RoutedClusters,
    SampledColumns,
    SelectedQueries,
    SortedChunks,
    SortedClusters,
    TopKeys,
)
from scatterbrain_core.threads import get_num_threads, set_num_threads

__all__ = [
    "E2LSH",
    "AllPairs",
    "Blocks",
    "Centroids",
    "ColumnSample",
    "Cost",
    "CrossPolytope",
    "EluFeatures",
    "Estimate",
    "GeometricMean",
    "GlobalTokens",
    "KeyClusters",
    "LocalWindow",
    "NystromLandmarks",
    "Plan",
    "PositiveFeatures",
    "RandomHyperplanes",
    "RoutedClusters",
    "SampledColumns",
    "Scatterbrain",
    "SegmentMeans",
    "SelectedQueries",
    "SortedChunks",
    "SortedClusters",
    "TopKeys",
    "TrigonometricFeatures",
    "UniformWeights",
    "__version__",
    "attention",
    "attention_matrix",
    "attention_vjp",
    "estimate",
    "get_num_threads",
    "merge",
    "methods",
    "plan",
    "set_num_threads",
]
