"""What an estimate of attention holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scatterbrain_core.method import Scatterbrain


@dataclass(frozen=True)
class Cost:
    """What a call really used.

    Attributes
    ----------
    pairs : float
        Exact pairs of a query, sampled ones of `debias` included: the mean over all queries of all heads.
    rank : float
        Rank of the low-rank part: its number of features; for `RoutedClusters` the clusters and groups that a
        query sees as one, the mean over all queries of all heads.
    fraction : float
        (pairs + rank) / Lk, to be compared with the budget.
    n_keys : int
        Lk.
    n_bits, n_tables : int or None
        Bits of a code and number of tables of the hashes; None without any.
    of_heads : array, shape (...)
        The fraction of each head, over the leading axes of the queries.
    """

    pairs: float
    rank: float
    fraction: float
    n_keys: int
    n_bits: int | None = None
    n_tables: int | None = None
    of_heads: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        hashes = "" if self.n_bits is None else f", K = {self.n_bits} bits, T = {self.n_tables} tables"
        return (
            f"{self.pairs:.1f} pairs + rank {self.rank:.4g} a query = {self.fraction:.1%} of the keys{hashes}"
        )


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of attention and what is known of it.

    Attributes
    ----------
    output : array, shape (..., Lq, Dv)
        What `attention` returns; zeros for a query that sees no key.
    lse : array, shape (..., Lq)
        Log of the normaliser, -inf for a query that sees no key; float32 where the queries are in half
        precision, as are the standard errors.
    stderr : array, shape (..., Lq, Dv), or None
        Estimated standard error of `output`, given the support and the sample of `debias`: a jackknife over
        up to 32 groups of features. With 64 features or more, output ± 1.96 · stderr covers the exact output
        92 to 94 times in 100 where ‖q + k‖² is at most 1; it covers less with few features (Student's t with
        as many degrees of freedom, less one), and at larger norms, whose tails no spread of groups shows. inf
        where a single group holds all weight, NaN with a single group; None without random features, as where
        the budget is all keys.
    lse_stderr : array, shape (..., Lq), or None
        The same of `lse`.
    cost : Cost
        What was really used.
    method : str
        Name of the method, or repr of the `Scatterbrain` that was passed.
    parts : Scatterbrain
        The parts with all that the budget chose.
    seed : int
        What gives the same draws again, also where a generator was passed.
    scale : float
        Of the logits.
    is_causal : bool
    query_sum : float
        A weighted sum of the queries, by which `merge` tells others.
    """

    output: Any
    lse: Any
    stderr: Any
    lse_stderr: Any
    cost: Cost
    method: str
    parts: Scatterbrain
    seed: int
    scale: float
    is_causal: bool
    query_sum: float
