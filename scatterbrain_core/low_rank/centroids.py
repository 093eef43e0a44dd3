r"""Clusters of the keys as one centroid each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scatterbrain_core._checks import require_bool
from scatterbrain_core._typing import Array
from scatterbrain_core.clustering import clustering_name, key_clusters, query_metric
from scatterbrain_core.low_rank.indicator import IndicatorKernel, indicator_rows, label_means
from scatterbrain_core.low_rank.low_rank import Features
from scatterbrain_core.low_rank.of_keys import OfKeys
from scatterbrain_core.low_rank.preconditioning import double
from scatterbrain_core.problem import Problem
from scatterbrain_core.tiles import gather, integers


@dataclass(frozen=True, repr=False)
class Centroids(OfKeys):
    r"""Keys of a cluster weigh as their centroid does: :math:`L_{ij} = e^{q_i\cdot\mu_c}` for j in cluster c.

    The clusters are those of k-means in the metric of the queries, :math:`\sum_i (q_i\cdot(k-\mu))^2`: a
    cluster is as good as its logits are near each other. From 128 clusters on they are found in blocks of
    consecutive keys, so that time stays linear.

    Biased: a cluster's weight is at most its exact one, :math:`n_c e^{q\cdot\mu_c} \le \sum_{j\in c}
    e^{q\cdot k_j}` (Jensen); of second order biased either way, exact for keys that are normal in the
    cluster.

    Parameters
    ----------
    n_clusters : int, optional
        m, the rank, at most the number of keys. By default the budget of the call chooses it. A head of fewer
        visible or different keys has fewer clusters.
    second_order : bool
        Add :math:`\tfrac12 \sum_e (q_i\cdot u_e)^2\,\mathrm{Var}_c(u_e\cdot k)` to the logits, u the
        eigenvectors of :math:`Q^TQ`. They are constants for a gradient.

    References
    ----------
    Lloyd, *Least squares quantization in PCM*, IEEE Trans. Inf. Theory 28 (1982); Vyas, Katharopoulos,
    Fleuret, *Fast Transformers with Clustered Attention*, arXiv 2007.04825, which clusters the queries.
    """

    n_clusters: int | None = None
    second_order: bool = False

    size_name: ClassVar[str] = "n_clusters"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool("second_order", self.second_order)

    @property
    def reason_not_causal(self) -> str:
        """Clusters."""
        return "cluster all keys"

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Logits with the centroids; keys by cluster."""
        del drawn
        xp = problem.xp
        label = key_clusters(problem, self.rank)
        mean, _ = label_means(problem.backend, label, problem.key, self.rank)
        query = xp.matmul(problem.query, xp.matrix_transpose(mean))
        if self.second_order:
            query = query + self._spread(problem, label, mean)
        key = indicator_rows(xp, label, xp.zeros_like(problem.key[..., 0]))
        return Features(query, key, IndicatorKernel(self.rank), clustering_name(self.rank))

    def _spread(self, problem: Problem, label: Array, mean: Array) -> Array:
        """Half the variance of q·k in each cluster, its covariance taken as diagonal: shape (H, Lq, m)."""
        xp = problem.xp
        query = problem.backend.stop_gradient(problem.query)
        metric = query_metric(xp, xp.astype(query, double(xp, query)))
        axes = xp.astype(xp.linalg.eigh(metric)[1], query.dtype)
        row = integers(xp, problem.n_heads, label)[:, None] * self.rank + xp.maximum(label, 0)
        centred = problem.key - gather(xp, xp.reshape(mean, (-1, mean.shape[-1])), row)
        variance, _ = label_means(problem.backend, label, xp.matmul(centred, axes) ** 2, self.rank)
        return xp.matmul(xp.matmul(problem.query, axes) ** 2 / 2, xp.matrix_transpose(variance))
