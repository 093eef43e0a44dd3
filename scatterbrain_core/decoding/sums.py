"""State of a low-rank part alone: sums of the features over all keys, Hk · m · (Dv + 2) numbers."""

from __future__ import annotations

from scatterbrain_core.decoding.context import Context
from scatterbrain_core.decoding.state import State
from scatterbrain_core.estimator import feature_slices, solve, total
from scatterbrain_core.normalization import Partial, merge


class Sums:
    """For feature c the sum of φ_c(k_j) (v_j, 1) over the past: "ref" and "acc"."""

    def shapes(self, context: Context) -> dict[str, tuple[int | str, ...]]:
        """(Hk, m) and (Hk, m, Dv + 1)."""
        shape = (context.n_key_heads, context.parts.rank)
        return {"ref": shape, "acc": (*shape, context.columns)}

    def start(self, context: Context) -> State:
        """Sums over the tokens of the context."""
        features = context.features()
        key = context.once(features.key)
        states = features.kernel.states(context.problem.backend, key, context.weighted_value())
        return {"ref": states.ref, "acc": states.acc}

    def advance(self, context: Context, state: State) -> tuple[Partial, State]:
        """The past by its sums, the new tokens as a causal call."""
        backend, features = context.problem.backend, context.features()
        past = Partial(context.repeat(state["ref"]), context.repeat(state["acc"]))
        before = features.kernel.apply(backend, features.query, past)
        slices = feature_slices(context.parts, 1)
        new = total(context.problem, solve(context.problem, context.parts, context.projections, slices))
        own = self.start(context)
        states = merge(backend, Partial(state["ref"], state["acc"]), Partial(own["ref"], own["acc"]))
        return merge(backend, before, new), {"ref": states.ref, "acc": states.acc}
