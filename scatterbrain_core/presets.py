"""The methods people know by name: each a pair of parts, with one line and its reference."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from scatterbrain_core._checks import type_name
from scatterbrain_core.low_rank import (
    EluFeatures,
    GeometricMean,
    NystromLandmarks,
    PositiveFeatures,
    SegmentMeans,
    UniformWeights,
)
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.sparse import (
    AllPairs,
    Blocks,
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


@dataclass(frozen=True)
class Preset:
    """A method that has a name, and what is said of it."""

    method: Scatterbrain
    line: str


PRESETS = {
    "auto": Preset(
        Scatterbrain(sparse=RoutedClusters()),
        "the one we would choose: key clusters that each query opens, splits or sees as one "
        "(the principle of Chen et al., arXiv 2110.15343, with routing as in Roy et al., arXiv 2003.05997)",
    ),
    "exact": Preset(
        Scatterbrain(sparse=AllPairs()),
        "softmax attention itself, O(Lq·Lk) time (Vaswani et al., arXiv 1706.03762)",
    ),
    "lsh": Preset(
        Scatterbrain(sparse=RandomHyperplanes()),
        "sparse alone: exact within random-hyperplane buckets, nothing elsewhere (Charikar, STOC 2002)",
    ),
    "local": Preset(
        Scatterbrain(sparse=LocalWindow()),
        "sparse alone: exact within a sliding window, nothing elsewhere (Beltagy et al., arXiv 2004.05150)",
    ),
    "longformer": Preset(
        Scatterbrain(sparse=(GlobalTokens(n_first=1, n_queries=1), LocalWindow())),
        "sparse alone: a sliding window, and a first token that sees and is seen by all "
        "(Beltagy et al., arXiv 2004.05150)",
    ),
    "bigbird": Preset(
        Scatterbrain(sparse=(GlobalTokens(n_first=1, n_queries=1), Blocks())),
        "sparse alone: a window of blocks, random blocks, and a first token that sees and is seen by all "
        "(Zaheer et al., arXiv 2007.14062)",
    ),
    "reformer": Preset(
        Scatterbrain(sparse=SortedChunks()),
        "sparse alone: chunks of keys sorted by angular LSH (Kitaev et al., arXiv 2001.04451)",
    ),
    "smyrf": Preset(
        Scatterbrain(sparse=SortedClusters()),
        "sparse alone: equal clusters along an asymmetric hash, each pair once however many rounds "
        "bring it together (Daras et al., arXiv 2010.05315)",
    ),
    "routing": Preset(
        Scatterbrain(sparse=KeyClusters()),
        "sparse alone: exact within the clusters of keys nearest to a query, here fitted by k-means and not "
        "learned (Roy et al., arXiv 2003.05997)",
    ),
    "top_k": Preset(
        Scatterbrain(sparse=TopKeys()),
        "sparse alone: exact on the keys of largest weight, an oracle in O(Lq·Lk) time (Gupta et al., "
        "arXiv 2106.06899)",
    ),
    "informer": Preset(
        Scatterbrain(low_rank=UniformWeights(), sparse=SelectedQueries()),
        "the queries farthest from uniform exact, the mean of the values for the others "
        "(Zhou et al., arXiv 2012.07436)",
    ),
    "skeinformer": Preset(
        Scatterbrain(low_rank=GeometricMean(), sparse=SampledColumns()),
        "sparse + low-rank: keys sampled by importance, pilot queries exact, the geometric mean for the "
        "other keys (Chen et al., arXiv 2112.05359)",
    ),
    "performer": Preset(
        Scatterbrain(low_rank=PositiveFeatures()),
        "low-rank alone: positive random features (Choromanski et al., arXiv 2009.14794)",
    ),
    "linear": Preset(
        Scatterbrain(low_rank=EluFeatures()),
        "low-rank alone: linear attention, a kernel of its own (Katharopoulos et al., arXiv 2006.16236)",
    ),
    "linformer": Preset(
        Scatterbrain(low_rank=SegmentMeans()),
        "low-rank alone: segments of keys by their means; Linformer with mean pooling, as its learned "
        "projections cannot be had without training (Wang et al., arXiv 2006.04768)",
    ),
    "nystrom": Preset(
        Scatterbrain(low_rank=NystromLandmarks()),
        "low-rank alone: Nyströmformer's landmarks of queries and keys (Xiong et al., arXiv 2102.03902)",
    ),
    "long_short": Preset(
        Scatterbrain(low_rank=SegmentMeans(), sparse=LocalWindow()),
        "sparse + low-rank: a sliding window, and the keys outside it by means of segments, in place of "
        "Transformer-LS's learned projection; no key counts twice (Zhu et al., arXiv 2107.02192)",
    ),
    "scatterbrain": Preset(
        Scatterbrain(low_rank=PositiveFeatures(), sparse=RandomHyperplanes()),
        "sparse + low-rank: positive random features + LSH (Chen et al., arXiv 2110.15343, Algorithm 1)",
    ),
    "scatterbrain_smyrf": Preset(
        Scatterbrain(low_rank=PositiveFeatures(), sparse=SortedClusters()),
        "sparse + low-rank: positive random features + SMYRF's clusters, the paper's own instance "
        "(Chen et al., arXiv 2110.15343)",
    ),
    "scatterbrain_local": Preset(
        Scatterbrain(low_rank=PositiveFeatures(), sparse=LocalWindow()),
        "sparse + low-rank: positive random features + a sliding window (Chen et al., arXiv 2110.15343)",
    ),
    "naive_sum": Preset(
        Scatterbrain(low_rank=PositiveFeatures(), sparse=RandomHyperplanes(), double_counting=True),
        "sparse + low-rank added up, both counted on the support: a baseline (Chen et al., arXiv 2110.15343)",
    ),
}


def methods() -> dict[str, str]:
    """Names that `method` takes, each with one line and its reference.

    Returns
    -------
    dict of str to str
    """
    return {name: preset.line for name, preset in PRESETS.items()}


def resolve_method(method: Any) -> tuple[str, Scatterbrain]:
    """Name and parts of a `method` argument.

    Raises
    ------
    TypeError
        It is neither a name nor a `Scatterbrain`.
    ValueError
        No method has that name; the message tells the nearest ones.
    """
    if isinstance(method, Scatterbrain):
        return repr(method), method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Scatterbrain, got {type_name(method)}")
    if method not in PRESETS:
        known = sorted(methods())
        near = difflib.get_close_matches(method.lower(), known, cutoff=0.5)
        hint = f"the nearest: {', '.join(map(repr, near))}; " if near else ""
        raise ValueError(f"method {method!r} is unknown; {hint}known are {', '.join(map(repr, known))}")
    return method, PRESETS[method].method
