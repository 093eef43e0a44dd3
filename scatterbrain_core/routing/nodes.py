"""Clusters of the keys and what is known of each: size, mean, spread, mean value."""

from __future__ import annotations

from dataclasses import dataclass, fields

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.kmeans import kmeans, one_hot
from scatterbrain_core.tiles import integers

# Added to the metric, relative to its mean eigenvalue, a little more along every next axis: where fewer
# queries than dimensions were seen, the axes in which none lies are then the same in every library.
RIDGE = 1e-2


@dataclass(frozen=True)
class Clusters:
    """Clusters of blocks of keys: A runs of B blocks with one metric each, K clusters a block.

    Attributes
    ----------
    labels : array of int, shape (H, A, B, block)
        Cluster of each key.
    count : array, shape (H, A, B, K)
        Keys of a cluster; 0 for an empty one.
    mean : array, shape (H, A, B, K, D)
    variance : array, shape (H, A, B, K, D)
        Along the columns of `axes`.
    axes : array, shape (H, A, D, D)
        Orthonormal columns, the eigenvectors of the metric.
    value : array, shape (H, A, B, K, Dv)
        Mean of the values.
    """

    labels: Array
    count: Array
    mean: Array
    variance: Array
    axes: Array
    value: Array


@dataclass(frozen=True)
class Columns:
    """K clusters as columns of a view, which share a metric, and their groups.

    Attributes
    ----------
    axes : array, shape (H, D, D)
    mean, variance : array, shape (H, K, D)
    count : array, shape (H, K)
    value : array, shape (H, K, Dv)
    group : array of int, shape (H, K)
    start : array of int, shape (H, K)
        Slot of a cluster's first key.
    n_groups : int
    """

    axes: Array
    mean: Array
    variance: Array
    count: Array
    value: Array
    group: Array
    start: Array
    n_groups: int


def second_moment(xp: Namespace, rows: Array) -> Array:
    """Sum of x xᵀ over rows (..., n, D)."""
    return xp.matmul(xp.matrix_transpose(rows), rows)


def metric_of(xp: Namespace, moment: Array) -> Array:
    """A second moment with unit trace, made definite; of what is not finite it knows nothing."""
    moment = xp.where(xp.isfinite(moment), moment, 0.0)
    trace = xp.linalg.trace(moment)[..., None, None]
    scaled = moment / xp.where(trace > 0, trace, 1.0)
    dim = moment.shape[-1]
    place = integers(xp, dim, moment)
    graded = RIDGE / dim * (0.5 + xp.astype(place, moment.dtype) / dim)
    return scaled + xp.where(place[:, None] == place[None, :], graded, 0.0)


def cluster(
    backend: Backend, key: Array, value: Array, weight: Array, metric: Array, n_clusters: int
) -> Clusters:
    """Cluster blocks of keys, each by itself, as many at a time as the backend's temporaries hold.

    Parameters
    ----------
    key : array, shape (H, A, B, block, D)
    value : array, shape (H, A, B, block, Dv)
    weight : array, shape (H, A, B, block)
        1.0, or 0.0 for a key that belongs to no cluster.
    metric : array, shape (H, A, D, D)
    """
    n_heads, n_runs, n_blocks, block, dim = key.shape
    widest = max(n_clusters, dim, value.shape[-1])
    at_a_time = max(1, backend.chunk_of(key) // (n_heads * block * widest))
    axis = 1 if n_runs > 1 else 2
    step = max(1, at_a_time // n_blocks) if n_runs > 1 else at_a_time
    parts = []
    for first in range(0, key.shape[axis], step):
        piece = (slice(None),) * axis + (slice(first, min(first + step, key.shape[axis])), ...)
        run_metric = metric[piece] if n_runs > 1 else metric
        parts.append(_cluster(backend, key[piece], value[piece], weight[piece], run_metric, n_clusters))
    return parts[0] if len(parts) == 1 else _together(backend.xp, parts, axis)


def _together(xp: Namespace, parts: list[Clusters], axis: int) -> Clusters:
    """Clusters of blocks along an axis: of several runs, or of the blocks of one run."""
    arrays = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Clusters)}
    axes = arrays.pop("axes")
    joined = {name: xp.concat(column, axis=axis) for name, column in arrays.items()}
    return Clusters(axes=xp.concat(axes, axis=1) if axis == 1 else axes[0], **joined)


def _cluster(
    backend: Backend, key: Array, value: Array, weight: Array, metric: Array, n_clusters: int
) -> Clusters:
    xp = backend.xp
    metric = metric[:, :, None, :, :]
    labels = kmeans(backend, backend.stop_gradient(key), weight, metric, n_clusters)
    axes = xp.linalg.eigh(metric)[1]

    def generic() -> tuple[Array, Array, Array, Array]:
        return _statistics(xp, key, value, weight, labels, axes, n_clusters)

    count, mean, variance, mean_value = backend.cluster_statistics(
        key, value, weight, labels, axes, n_clusters, generic
    )
    return Clusters(labels, count, mean, variance, axes[:, :, 0, :, :], mean_value)


def _statistics(
    xp: Namespace, key: Array, value: Array, weight: Array, labels: Array, axes: Array, n_clusters: int
) -> tuple[Array, Array, Array, Array]:
    """Count, mean, variance along the axes and mean value of each cluster."""
    member = one_hot(xp, labels, n_clusters, key) * weight[..., None]
    count = xp.sum(member, axis=-2)
    share = xp.matrix_transpose(member) / xp.where(count == 0, 1.0, count)[..., None]
    mean = xp.matmul(share, key)
    along = xp.matmul(key - xp.matmul(member, mean), axes)
    return count, mean, xp.matmul(share, along * along), xp.matmul(share, value)
