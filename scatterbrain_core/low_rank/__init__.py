"""Low-rank parts: weights that are inner products of features, one family a file."""

from scatterbrain_core.low_rank.centroids import Centroids
from scatterbrain_core.low_rank.column_sample import ColumnSample
from scatterbrain_core.low_rank.elu_features import EluFeatures
from scatterbrain_core.low_rank.feature_map import FeatureMap
from scatterbrain_core.low_rank.geometric_mean import GeometricMean
from scatterbrain_core.low_rank.indicator import IndicatorKernel, indicator_rows
from scatterbrain_core.low_rank.low_rank import Features, LowRank
from scatterbrain_core.low_rank.nystrom import NystromLandmarks
from scatterbrain_core.low_rank.positive_features import PositiveFeatures
from scatterbrain_core.low_rank.segment_means import SegmentMeans
from scatterbrain_core.low_rank.trigonometric_features import TrigonometricFeatures
from scatterbrain_core.low_rank.uniform_weights import UniformWeights

__all__ = [
    "Centroids",
    "ColumnSample",
    "EluFeatures",
    "FeatureMap",
    "Features",
    "GeometricMean",
    "IndicatorKernel",
    "LowRank",
    "NystromLandmarks",
    "PositiveFeatures",
    "SegmentMeans",
    "TrigonometricFeatures",
    "UniformWeights",
    "indicator_rows",
]
