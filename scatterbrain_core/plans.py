"""What `method="auto"` would do with a query and a key, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scatterbrain_core.attention import prepare
from scatterbrain_core.backend import in_full_precision
from scatterbrain_core.estimator import draw, solve, total
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import finite, normalize, scaled
from scatterbrain_core.problem import Problem
from scatterbrain_core.random import Draws
from scatterbrain_core.routing.layout import Layout, lay_out
from scatterbrain_core.sparse import AllPairs, RoutedClusters
from scatterbrain_core.sparse.routed_clusters import EXACT_UP_TO, LINEAR_FROM
from scatterbrain_core.tiles import integers

# Rows of a head whose weights are looked at one by one.
SAMPLED_QUERIES = 64
# Up to so many heads `explain` has a row for each.
MOST_ROWS = 24


@dataclass(frozen=True)
class HeadPlan:
    """What auto sees of a head, and what it spends there.

    Attributes
    ----------
    entropy : float
        Of the exact weights of up to 64 queries at equal distances, their mean in nats.
    query_norm, key_norm : float
        Mean of ‖q‖² and ‖k‖², the scale of the logits shared evenly between the two.
    pairs : float
        Exact keys of a query, on average.
    rank : float
        Clusters and groups that a query sees as one, on average.
    exact_share : float
        Share of the weight that stands on exact keys, the mean over the queries.
    """

    entropy: float
    query_norm: float
    key_norm: float
    pairs: float
    rank: float
    exact_share: float


@dataclass(frozen=True)
class Plan:
    """What auto would do.

    Attributes
    ----------
    method : Scatterbrain
        The parts with all that was chosen; `attention` takes it as its `method`.
    budget : float
    n_queries, n_keys : int
    is_causal : bool
    heads : tuple of HeadPlan
        By head, the leading axes flattened.
    layout : Layout or None
        Blocks and clusters; None where all pairs are exact.
    reason : str
        Why this method.
    """

    method: Scatterbrain
    budget: float
    n_queries: int
    n_keys: int
    is_causal: bool
    heads: tuple[HeadPlan, ...]
    layout: Layout | None
    reason: str

    @property
    def fraction(self) -> float:
        """Exact pairs and rank of a query, as a fraction of the keys, the mean over the heads."""
        entries = [head.pairs + head.rank for head in self.heads]
        return sum(entries) / max(len(entries), 1) / max(self.n_keys, 1)

    def explain(self) -> str:
        """The plan in words, and a table of the heads; of some quantiles where there are many."""
        lines = [
            f"{self.n_queries} queries, {self.n_keys} keys, {'causal' if self.is_causal else 'not causal'}, "
            f"budget {self.budget:g}: {self.method}",
            self.reason,
        ]
        if self.layout is not None:
            lines += _describe(self.layout)
        lines.append(f"In all {self.fraction:.1%} of the keys a query.")
        return "\n".join([*lines, "", *_table(self.heads)])


@in_full_precision()
def plan(
    query: Any,
    key: Any,
    *,
    budget: float = 0.125,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    check_finite: bool = True,
) -> Plan:
    """What `method="auto"` would do with a query and a key.

    It takes about as long as `attention` itself. Arguments and errors are those of `attention`; the choice
    does not depend on the values.

    Returns
    -------
    Plan
        `explain` says it in words and a table.

    Examples
    --------
    >>> import numpy as np
    >>> import scatterbrain_core as sb
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 1000, 16))
    >>> plan = sb.plan(q, k, budget=1 / 8)
    >>> plan.method
    Scatterbrain(sparse=RoutedClusters(entries=125.0))
    >>> plan.fraction <= 1.05 / 8
    True
    """
    arguments = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    problem, _, method = prepare(query, key, key, "auto", budget, **arguments, check_finite=check_finite)
    problem = problem.with_arrays(
        *map(problem.backend.stop_gradient, (problem.query, problem.key, problem.value))
    )
    part = method.sparse
    layout = None if problem.is_empty or not isinstance(part, RoutedClusters) else lay_out(problem, part)
    heads = () if problem.is_empty else _heads(problem, method)
    sizes = problem.n_queries, problem.n_keys
    return Plan(method, float(budget), *sizes, is_causal, heads, layout, _reason(problem, method))


def _heads(problem: Problem, method: Scatterbrain) -> tuple[HeadPlan, ...]:
    xp = problem.xp
    result = solve(problem, method, draw(problem, method, Draws(0)), [], count_pairs=True)
    whole = total(problem, result)
    lse = finite(problem.backend, normalize(problem.backend, whole)[1])
    exact = scaled(problem.backend, result.near, lse)[..., -1]
    rank = result.pairs * 0 if result.rank is None else result.rank
    columns = (
        _entropy(problem),
        *(xp.mean(xp.sum(x * x, axis=-1), axis=-1) for x in (problem.query, problem.key)),
        *(xp.mean(x, axis=-1) for x in (result.pairs, rank, exact)),
    )
    return tuple(HeadPlan(*(float(column[head]) for column in columns)) for head in range(problem.n_heads))


def _entropy(problem: Problem) -> Any:
    """Mean entropy of the exact weights of some queries of each head, shape (H,)."""
    xp = problem.xp
    step = -(-problem.n_queries // SAMPLED_QUERIES)
    logits = xp.matmul(problem.query[:, ::step, :], xp.matrix_transpose(problem.key))
    seen = xp.full_like(logits, 1.0) > 0
    key = integers(xp, problem.n_keys, logits)
    if problem.is_causal:
        seen = seen & (key <= integers(xp, problem.n_queries, logits)[::step][:, None])
    if problem.key_mask is not None:
        seen = seen & problem.key_mask[:, None, :]
    if problem.dense_mask is not None:
        seen = seen & xp.stack([problem.dense_mask[mask, ::step, :] for mask in problem.mask_of_head])
    logits = xp.where(seen, logits, -float("inf"))
    top = finite(problem.backend, xp.max(logits, axis=-1))[..., None]
    weight = xp.exp(logits - top)
    mass = xp.sum(weight, axis=-1)
    mass = xp.where(mass > 0, mass, 1.0)
    spread = xp.sum(weight * xp.where(seen, logits - top, 0.0), axis=-1) / mass
    entropy = xp.log(mass) - spread
    if problem.row_mask is None:
        return xp.mean(entropy, axis=-1)
    there = xp.astype(problem.row_mask[:, ::step], entropy.dtype)
    n_there = xp.sum(there, axis=-1)
    return xp.sum(entropy * there, axis=-1) / xp.where(n_there > 0, n_there, 1.0)


def _reason(problem: Problem, method: Scatterbrain) -> str:
    if isinstance(method.sparse, AllPairs):
        if problem.dense_mask is not None:
            return "A mask of pairs costs as much as all pairs do: they are exact."
        if problem.n_keys <= EXACT_UP_TO:
            return f"Up to {EXACT_UP_TO} keys no cluster is worth its work: all pairs are exact."
        return "The budget pays for all pairs: they are exact."
    if problem.is_empty:
        return "There is nothing to compute."
    capped = ""
    if problem.n_keys > LINEAR_FROM:
        capped = f", the budget's share of {LINEAR_FROM} of them so that time is linear in their number"
    assert isinstance(method.sparse, RoutedClusters)
    return f"{method.sparse.entries:g} entries a query for {problem.n_keys} keys{capped}."


def _describe(layout: Layout) -> list[str]:
    own = f" and its past in its own block of {layout.own}" if layout.own else ""
    where = "of a block" if layout.own else "over all"
    return [
        f"Exact for every query: the first {layout.first} keys{own}.",
        *(
            f"Blocks of {level.block} keys: {level.n_fine} clusters a block, groups {where} {level.n_coarse}."
            for level in layout.levels
        ),
        "At first a query sees each group as one key; it then spends "
        f"{layout.refined} entries on average where they lower its error most: on clusters to open, and on "
        "groups to split.",
    ]


def _table(heads: tuple[HeadPlan, ...]) -> list[str]:
    names = ("entropy", "|q|^2", "|k|^2", "exact keys", "clusters", "weight exact")
    rows = {
        str(i): (h.entropy, h.query_norm, h.key_norm, h.pairs, h.rank, h.exact_share)
        for i, h in enumerate(heads)
    }
    if len(rows) > MOST_ROWS:
        columns = [sorted(column) for column in zip(*rows.values(), strict=True)]
        last = len(heads) - 1
        places = {"least": 0, "median": last // 2, "most": last}
        rows = {name: tuple(column[place] for column in columns) for name, place in places.items()}
    lines = [f"{'head':>6}" + "".join(f"{name:>14}" for name in names)]
    return lines + [f"{name:>6}" + "".join(f"{x:>14.4g}" for x in row) for name, row in rows.items()]
