"""State of a low-rank part alone: sums of the features over all keys, Hk · m · (Dv + 2) numbers."""

from __future__ import annotations

from scatterbrain_core.decoding.context import Context, concat_tokens
from scatterbrain_core.decoding.state import State
from scatterbrain_core.estimator import feature_slices, solve, total
from scatterbrain_core.normalization import Partial, merge

# From so many tokens on the overhead of a causal call pays.
MAX_ONE_BY_ONE = 16


class Sums:
    """For feature c the sum of φ_c(k_j) (v_j, 1) over the past: "ref" and "acc"."""

    def shapes(self, context: Context) -> dict[str, tuple[int | str, ...]]:
        """(Hk, m) and (Hk, m, Dv + 1)."""
        shape = (context.n_key_heads, context.parts.rank)
        return {"ref": shape, "acc": (*shape, context.columns)}

    def start(self, context: Context) -> State:
        """Sums over the tokens of the context."""
        features = context.features
        key = context.once(features.key)
        states = features.kernel.states(context.problem.backend, key, context.weighted_value())
        return {"ref": states.ref, "acc": states.acc}

    def advance(self, context: Context, state: State) -> tuple[Partial, State]:
        """A few tokens one by one; more of them as a causal call, merged with the past by its sums."""
        if context.problem.n_queries <= MAX_ONE_BY_ONE:
            return self._one_by_one(context, state)
        backend, features = context.problem.backend, context.features
        past = Partial(context.repeat(state["ref"]), context.repeat(state["acc"]))
        before = features.kernel.apply(backend, features.query, past)
        slices = feature_slices(context.parts, 1)
        new = total(context.problem, solve(context.problem, context.parts, context.projections, slices))
        own = self.start(context)
        states = merge(backend, Partial(state["ref"], state["acc"]), Partial(own["ref"], own["acc"]))
        return merge(backend, before, new), {"ref": states.ref, "acc": states.acc}

    def _one_by_one(self, context: Context, state: State) -> tuple[Partial, State]:
        backend, features = context.problem.backend, context.features
        key, value = context.once(features.key), context.weighted_value()
        states, parts = Partial(state["ref"], state["acc"]), []
        for i in range(context.problem.n_queries):
            one = slice(i, i + 1)
            own = features.kernel.states(backend, key[:, one, :], value[:, one, :])
            states = merge(backend, states, own)
            seen = Partial(context.repeat(states.ref), context.repeat(states.acc))
            parts.append(features.kernel.apply(backend, features.query[:, one, :], seen))
        return concat_tokens(context, parts), {"ref": states.ref, "acc": states.acc}
