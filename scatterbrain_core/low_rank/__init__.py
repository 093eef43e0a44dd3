"""Low-rank parts: weights that are inner products of features, one family a file."""

from scatterbrain_core.low_rank.elu_features import EluFeatures
from scatterbrain_core.low_rank.feature_map import FeatureMap
from scatterbrain_core.low_rank.positive_features import PositiveFeatures
from scatterbrain_core.low_rank.trigonometric_features import TrigonometricFeatures

__all__ = ["EluFeatures", "FeatureMap", "PositiveFeatures", "TrigonometricFeatures"]
