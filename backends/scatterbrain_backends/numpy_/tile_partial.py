"""Sums over the tiles of visits in compiled loops, for the visits that they can take."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import numpy as xp

from scatterbrain_backends.visits import inputs, is_of_intervals
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.rows import exact_weights, unit_weights
from scatterbrain_core.sparse_correction import Visits


def is_taken(visits: Visits) -> bool:
    """Whether the loops compute such visits: exact or unit weights, or positive features, on intervals."""
    weights = visits.pairs.weights
    is_known = weights in (exact_weights, unit_weights) or _is_of_features(weights)
    return is_known and is_of_intervals(visits)


def tile_partial(visits: Visits) -> tuple[Any, Any]:
    """As `Backend.tile_partial`."""
    from scatterbrain_backends.numpy_.compiled.tiles import partial

    query, *arrays = (np.ascontiguousarray(x) for x in inputs(xp, visits))
    excluded = (
        arrays[7:] if visits.excluded else [np.zeros(shape, int) for shape in ((0, 0), *2 * [(0, 0, 0)])]
    )
    ref = np.empty(visits.blocks.rows.shape, query.dtype)
    acc = np.empty((*ref.shape, visits.weighted_value.shape[1]), query.dtype)
    sizes = (visits.intervals.n_visits, visits.tile_keys)
    partial(_least(visits), query, *arrays[:7], tuple(excluded), *sizes, ref, acc)
    return ref, acc


def _least(visits: Visits) -> Any:
    """Below it products of features are summed again, as in `log_kernel`; -1 where pairs have none."""
    query: Any = visits.pairs.query
    if not _is_of_features(visits.pairs.weights):
        return query.dtype.type(-1)
    info = np.finfo(query.dtype)
    return query.dtype.type(float(info.smallest_normal) / float(info.eps) * query.shape[1])


def _is_of_features(weights: Any) -> bool:
    return getattr(weights, "__func__", None) is PositiveKernel.pairs
