"""Estimates over shards of the keys, combined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from array_api_compat import array_namespace, device

from scatterbrain_core._checks import type_name
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import backend_of, library_name
from scatterbrain_core.estimates import Cost, Estimate
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.normalization import finite


def merge(estimates: Sequence[Estimate]) -> Estimate:
    r"""The estimate over all keys from the estimates over disjoint shards of them.

    With :math:`w_s = e^{\mathrm{lse}_s - \mathrm{lse}}` the output is :math:`\sum_s w_s O_s`.

    Parameters
    ----------
    estimates : sequence of Estimate
        Of the same queries, one a shard, with the same parts, seed and scale; one at most with `is_causal`,
        which counts positions from the shard's first key. State the size of the parts, or give shards of
        equal length: a budget chooses by the length.

    Returns
    -------
    Estimate
        `cost` is that of all shards together. The shards share their features, so that their errors do not
        average out: `stderr` and `lse_stderr` are upper bounds,
        :math:`\sum_s w_s(\mathrm{stderr}_s + |O_s - O|\,\mathrm{lse\_stderr}_s)` to first order.

    Raises
    ------
    TypeError, ValueError
        There is nothing to merge; the shards differ in queries, parts, seed, scale, shape, dtype, library
        or device; more than one is causal; or their weights may be negative (`TrigonometricFeatures`,
        `NystromLandmarks`, `debias`), when a shard's normaliser has no log.

    Notes
    -----
    It equals the call over all keys, to rounding, for `exact`, for feature maps without statistics, and for
    hashes without `max_bucket` and statistics: there every weight is a function of its own query and key.
    A bucket that is cut, or statistics of the keys (`centred`, `whitened`, `rho="optimal"`, a `radius`
    taken from the data), depend on the other keys of the shard: the merged estimate is then another one of
    the same kind, no worse founded, but not the same numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import scatterbrain_core as sb
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 100, 8))
    >>> shards = [sb.estimate(q, k[i::2], v[i::2], method="exact") for i in range(2)]
    >>> whole = sb.attention(q, k, v, method="exact")
    >>> bool(np.allclose(sb.merge(shards).output, whole))
    True
    """
    shards = _checked(estimates)
    first = shards[0]
    backend = backend_of(**{f"estimates[{i}].lse": shard.lse for i, shard in enumerate(shards)})
    xp = backend.xp
    top = reduce(xp.maximum, [shard.lse for shard in shards])
    weights = [xp.exp(shard.lse - finite(backend, top)) for shard in shards]
    total = _sum(weights)
    seen = total != 0
    total = xp.where(seen, total, 1.0)
    weights = [weight / total for weight in weights]
    # Half precision is summed in the dtype of lse, which is never less than float32.
    outputs = [xp.astype(shard.output, first.lse.dtype) for shard in shards]
    output = _sum([weight[..., None] * x for weight, x in zip(weights, outputs, strict=True)])
    errors = _errors(xp, shards, weights, [xp.abs(x - output) for x in outputs])
    return replace(
        first,
        output=xp.astype(output, first.output.dtype),
        lse=xp.where(seen, top + xp.log(total), -math.inf),
        stderr=errors[0],
        lse_stderr=errors[1],
        cost=_cost(first.parts, [shard.cost for shard in shards]),
    )


def _errors(
    xp: Namespace, shards: list[Estimate], weights: list[Array], moves: list[Array]
) -> tuple[Array | None, Array | None]:
    if shards[0].stderr is None:
        return None, None
    of_output, of_lse = [], []
    for shard, weight, move in zip(shards, weights, moves, strict=True):
        # A shard without weight has none in the error, even if its own is not finite.
        counts = weight > 0
        lse_stderr = xp.where(counts, shard.lse_stderr, 0.0)
        stderr = xp.where(counts[..., None], shard.stderr, 0.0)
        of_lse.append(weight * lse_stderr)
        # No move is no error, even where that of the weight is not finite.
        moved = xp.where(move > 0, move * xp.where(move > 0, lse_stderr[..., None], 0.0), 0.0)
        of_output.append(weight[..., None] * (stderr + moved))
    return _sum(of_output), _sum(of_lse)


def _sum(terms: list[Array]) -> Array:
    return sum(terms[1:], start=terms[0])


def _cost(parts: Scatterbrain, costs: list[Cost]) -> Cost:
    n_keys = sum(cost.n_keys for cost in costs)
    pairs = math.fsum(cost.pairs for cost in costs)
    # Features are those of all shards; clusters are a shard's own.
    rank = math.fsum(cost.rank for cost in costs) if parts.low_rank is None else costs[0].rank
    fraction = (pairs + rank) / max(n_keys, 1)
    # What the shards share counts once.
    shared = math.fsum(cost.rank for cost in costs) - rank
    of_heads = (_sum([cost.of_heads * cost.n_keys for cost in costs]) - shared) / max(n_keys, 1)
    return replace(costs[0], pairs=pairs, rank=rank, n_keys=n_keys, fraction=fraction, of_heads=of_heads)


def _checked(estimates: Any) -> list[Estimate]:
    if not isinstance(estimates, Sequence):
        raise TypeError(f"estimates must be a sequence of Estimate, got {type_name(estimates)}")
    for i, shard in enumerate(estimates):
        if not isinstance(shard, Estimate):
            raise TypeError(f"estimates[{i}] must be an Estimate, got {type_name(shard)}")
    if not estimates:
        raise ValueError("estimates must hold at least one Estimate, got none")
    first = _facts(estimates[0])
    for i, shard in enumerate(estimates):
        for name, (got, expected) in _differences(_facts(shard), first).items():
            raise ValueError(
                f"estimates must be of one {name}, got {expected} in estimates[0] and {got} in estimates[{i}]"
            )
    causal = [i for i, shard in enumerate(estimates) if shard.is_causal]
    if len(causal) > 1:
        raise ValueError(
            "estimates must hold at most one with is_causal=True, which counts positions from its first key, "
            f"got {', '.join(f'estimates[{i}]' for i in causal)}"
        )
    parts = estimates[0].parts
    if len(estimates) > 1 and not parts.is_positive:
        raise ValueError(f"estimates must have positive weights to be merged, got those of {parts}")
    return list(estimates)


def _facts(shard: Estimate) -> dict[str, Any]:
    """What all shards must have in common; the seed matters where something was drawn."""
    facts = {
        "library": library_name(array_namespace(shard.lse)),
        "device": device(shard.lse),
        "method": shard.parts,
        "shape": tuple(shard.output.shape),
        "dtype": shard.output.dtype,
        "scale": shard.scale,
        "set of queries": shard.query_sum,
    }
    return facts | {"seed": shard.seed} if shard.parts.is_random else facts


def _differences(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (got[name], value) for name, value in expected.items() if got.get(name) != value}
