"""The part behind `method="auto"`: clusters of the keys that each query opens, splits or sees as one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scatterbrain_core._checks import set_at_least


@dataclass(frozen=True)
class RoutedClusters:
    r"""Key clusters that each query opens where it needs them, and sees as one key each where it does not.

    A near field and a far field in one, so that it goes with no other part. The keys of a block are clustered
    by k-means in the metric of the queries, into fine clusters and groups of these. A query sees the first
    keys and, where causal, those of its own block exactly. Everything else it sees at first as one key a
    group, with the weight :math:`\sum_c n_c e^{q\cdot\mu_c + \sigma_c^2(q)/2}` of the group's clusters, to
    second order. Then it spends the entries left on what lowers its squared error most an entry: it opens a
    cluster, whose keys are exact then, or splits a group into its clusters. Where causal, queries of a head
    share their entries, blocks are clustered once they are complete, at several sizes, and nothing depends on
    what comes later. Where not, tiles of 64 similar queries share theirs, and a tile looks at the clusters of
    those groups alone that matter to its queries.

    Nothing is drawn. Time and memory are linear in the length for a given number of entries. Biased, as the
    weight and the mean value of a closed cluster are approximations.

    Parameters
    ----------
    entries : float, optional
        Exact keys and clusters or groups seen as one of a query, on average. By default the budget's share of
        the keys, and of 4096 keys where there are more, which keeps time linear in the length; a budget of 1
        is all keys, exact.

    References
    ----------
    The principle, near field exact and far field low-rank, is that of Chen et al., arXiv 2110.15343; routing
    by k-means that of Roy et al., arXiv 2003.05997; the first keys that of Xiao et al., arXiv 2309.17453;
    opening what gains most that of tree codes (Barnes and Hut, Nature 324, 1986).
    """

    entries: float | None = None

    def __post_init__(self) -> None:
        set_at_least(self, "entries", 1.0)

    def planned(self, budget: float, n_keys: int) -> RoutedClusters:
        """The same part with its entries chosen."""
        if self.entries is not None:
            return self
        return RoutedClusters(max(1.0, budget * (n_keys if budget == 1 else min(n_keys, LINEAR_FROM))))

    def is_exact(self, n_queries: int, n_keys: int, is_causal: bool) -> bool:
        """Whether a planned part has entries for all keys, or there are too few to be worth a cluster."""
        mean = mean_visible(n_queries, n_keys) if is_causal else n_keys
        return n_keys <= EXACT_UP_TO or (self.entries or math.inf) >= mean


def mean_visible(n_queries: int, n_keys: int) -> float:
    """Keys that a causal query sees, on average."""
    n_square = min(n_queries, n_keys)
    return (n_square * (n_square + 1) / 2 + (n_queries - n_square) * n_keys) / n_queries


# Up to so many keys all are exact, whatever the budget.
EXACT_UP_TO = 64
# A fraction of more keys than this would make time grow with their square.
LINEAR_FROM = 4096
