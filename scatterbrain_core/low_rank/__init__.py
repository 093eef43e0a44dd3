"""Low-rank parts: feature maps whose inner products estimate exp(q·k), one family a file."""

from scatterbrain_core.low_rank.positive_features import PositiveFeatures

__all__ = ["PositiveFeatures"]
