"""Prefill and step: the calls behind `Scatterbrain.prefill` and `Scatterbrain.step`."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import device

from scatterbrain_core._checks import as_index, type_name
from scatterbrain_core.attention import nothing
from scatterbrain_core.backend import backend_of, in_full_precision
from scatterbrain_core.decoding.cache import Cache
from scatterbrain_core.decoding.context import Context, Form
from scatterbrain_core.decoding.leaves import Leaves
from scatterbrain_core.decoding.state import (
    CONFIGURATION,
    Configuration,
    State,
    check_arrays,
    check_step,
    configure,
    pack,
    restore,
)
from scatterbrain_core.decoding.sums import Sums
from scatterbrain_core.estimator import attend, draw
from scatterbrain_core.low_rank import FeatureMap
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import normalize
from scatterbrain_core.planning import check_masked, plan
from scatterbrain_core.problem import Problem, largest_entry, make_problem, resolve_scale
from scatterbrain_core.random import Draws
from scatterbrain_core.sparse import AllPairs, Hashing
from scatterbrain_core.tiles import integers

# Up to so many buckets of one table the far field is kept as a feature state a bucket: more cost more memory
# and time than the feature rows of a few thousand keys.
MAX_LEAVES = 64
# Values must keep sums over so many tokens within their dtype.
MAX_TOKENS = 2**32


@in_full_precision(1)
def prefill(
    method: Scatterbrain,
    query: Any,
    key: Any,
    value: Any,
    *,
    budget: float,
    length: int | None,
    scale: float | None,
    enable_gqa: bool,
    seed: Any,
    check_finite: bool,
) -> tuple[Any, State]:
    """Causal output of a prompt, and the state behind it."""
    facts = {"scale": scale, "enable_gqa": enable_gqa}
    problem = _problem(query, key, value, check_finite=check_finite, **facts)
    if 0 in (problem.n_heads, problem.n_keys):
        raise ValueError(f"query must hold at least one head and one token, got shape {tuple(query.shape)}")
    check_masked(problem, method)
    _check_kept(method)
    n_tokens = _planned_length(length, problem.n_keys)
    parts = plan(method, budget, n_tokens, n_tokens, problem.query.shape[-1])
    draws = Draws(seed)
    facts["scale"] = resolve_scale(scale, query)
    configuration = configure(method, parts, query, key, value, seed=draws.seed, **facts)
    context = _context(problem, parts, configuration)
    output = problem.as_output(attend(problem, parts, context.projections))
    return output, _whole(context, configuration, _form(parts).start(context), problem.n_keys)


@in_full_precision(1)
def step(
    method: Scatterbrain, query: Any, key: Any, value: Any, state: Any, *, check_finite: bool
) -> tuple[Any, State]:
    """Output of the next tokens, and the state behind them."""
    backend = backend_of(query=query, key=key, value=value)
    configuration, parts, arrays = restore(method, state, backend, query)
    check_step(configuration, query, key, value)
    facts = {"scale": configuration.scale, "enable_gqa": configuration.enable_gqa}
    problem = _problem(query, key, value, check_finite=check_finite, **facts)
    context, form = _context(problem, parts, configuration), _form(parts)
    expected = form.shapes(context) | {"length": ()}
    length = check_arrays(arrays, expected, problem, parts, check_finite)
    del arrays["length"]
    if problem.n_queries == 0:
        return nothing(problem)[0], _whole(context, configuration, arrays, length)
    partial, advanced = form.advance(context, arrays)
    output = problem.as_output(normalize(problem.backend, partial)[0])
    return output, _whole(context, configuration, advanced, length + problem.n_keys)


def _problem(query: Any, key: Any, value: Any, **facts: Any) -> Problem:
    problem = make_problem(query, key, value, attn_mask=None, is_causal=True, **facts)
    if problem.n_queries != problem.n_keys:
        raise ValueError(
            f"query and key must have the same length, a query, key and value a token, got query "
            f"{tuple(query.shape)}, key {tuple(key.shape)}"
        )
    if facts["check_finite"]:
        _check_values(problem)
    return problem


def _check_kept(method: Scatterbrain) -> None:
    """Raise where no state is kept for a method."""
    if isinstance(method.sparse, tuple):
        raise ValueError(
            f"sparse must be one part in decoding, which keeps no state of a union, got {method}"
        )
    if not isinstance(method.sparse, Hashing | AllPairs | None):
        raise ValueError(
            "sparse must be hashes, AllPairs or None in decoding, which keeps no state of others, "
            f"got {method}"
        )
    if not isinstance(method.low_rank, FeatureMap | None):
        raise ValueError(
            "low_rank must be a feature map or None in decoding, which keeps no state of others, "
            f"got {method}"
        )
    if method.debias is not None or method.double_counting:
        raise ValueError(
            "debias must be None and double_counting False in decoding, which keeps no state for them, "
            f"got {method}"
        )


def _planned_length(length: Any, n_keys: int) -> int:
    if length is None:
        return n_keys
    number = as_index(length)
    if number is None:
        raise TypeError(f"length must be an int or None, got {type_name(length)}")
    if number < n_keys:
        raise ValueError(f"length must be at least that of the prompt, {n_keys}, got {number}")
    return number


def _check_values(problem: Problem) -> None:
    """Raise where values could overflow a sum that has yet to grow."""
    largest = float(problem.xp.finfo(problem.value.dtype).max) / MAX_TOKENS
    top = largest_entry(problem, problem.value)
    if top >= largest:
        raise ValueError(f"value must be below {largest:.3g} for sums over all tokens to come, got {top:.3g}")


def _context(problem: Problem, parts: Scatterbrain, configuration: Configuration) -> Context:
    key_heads = math.prod(configuration.key_lead)
    projections = draw(problem, parts, Draws(configuration.seed))
    return Context(problem, parts, projections, problem.n_heads // key_heads)


def _form(parts: Scatterbrain) -> Form:
    """The kind of state for the parts."""
    if parts.sparse is None:
        return Sums()
    if not isinstance(parts.sparse, Hashing) or parts.low_rank is None:
        return Cache()
    is_small = (parts.sparse.n_tables or 1) == 1 and parts.sparse.n_buckets <= MAX_LEAVES
    return Leaves() if is_small else Cache()


def _whole(context: Context, configuration: Configuration, arrays: State, length: int) -> State:
    like, xp = context.problem.query, context.problem.xp
    return {
        CONFIGURATION: pack(configuration, context.problem.backend, like),
        "length": xp.asarray(length, dtype=integers(xp, 1, like).dtype, device=device(like)),
        **arrays,
    }
