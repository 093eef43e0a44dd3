"""One method at one budget on one model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from unittest import mock

import numpy as np

import scatterbrain_core as sb
from benchmarks.accuracy.models import Array, Attention, Layer, Model
from scatterbrain_core.cli.measure import EXACT, relative_error, timed
from scatterbrain_core.cli.sweep import choice

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """What is to be measured: exact attention has no budget."""

    model: str
    method: str
    budget: float | None


@dataclass(frozen=True)
class Result:
    """What was measured of a case.

    Attributes
    ----------
    case : Case
    errors : list of lists of float
        ‖Ô − O‖ / ‖O‖, a list a layer, a number a head.
    costs : list of lists of float
        Of the keys, what a query of that head cost on average, likewise; empty where it was not asked for.
    seconds : float
        Of `scatterbrain_core.attention` over all these layers.
    quality : float or None
        Of the model with its attention replaced in every layer; None where it was not asked for.
    refused : str or None
        Why the library does not do it; nothing was measured then.
    """

    case: Case
    errors: list[list[float]]
    costs: list[list[float]]
    seconds: float
    quality: float | None
    refused: str | None = None


def steps(model: Model, layers: int, parts: Sequence[str]) -> int:
    """How often `measure` calls its `step`, unless it is refused."""
    return sum({"errors": layers, "costs": layers, "quality": model.layers}[part] for part in parts)


def measure(
    model: Model, layers: Sequence[Layer], case: Case, seed: int, parts: Sequence[str], step: Step
) -> Result:
    """Measure `parts` of a case: errors, costs, quality. What the library refuses is a result too."""
    errors, costs, seconds, quality = [], [], 0.0, None
    try:
        for layer in layers:
            if "errors" in parts:
                output, elapsed = timed(partial(attend, model, case, seed, layer))
                errors.append([relative_error(*pair) for pair in zip(output, layer.output, strict=True)])
                seconds += elapsed
                step()
            if "costs" in parts:
                costs.append(head_costs(model, case, seed, layer))
                step()
        if "quality" in parts:
            quality = model.run(replacement(model, case, seed, step))
    except (ValueError, TypeError) as error:
        return Result(case, [], [], 0.0, None, refused=" ".join(str(error).split()))
    return Result(case, errors, costs, seconds, quality)


def attend(model: Model, case: Case, seed: int, layer: Layer) -> Array:
    """Return the case's output in a layer that is fed exactly."""
    chosen = choice(case.method, case.budget, seed, layer.number)
    output: Array = sb.attention(layer.query, layer.key, layer.value, **chosen, **model.options)
    return output


def head_costs(model: Model, case: Case, seed: int, layer: Layer) -> list[float]:
    """Return what each head costs, called alone: a call tells the mean over its heads only."""
    group = len(layer.query) // len(layer.key)
    costs = []
    # Only the cost is read, so features need not be run in groups for a standard error.
    with mock.patch.object(sys.modules["scatterbrain_core.attention"], "ERROR_GROUPS", 1):
        for head in range(len(layer.query)):
            owner = slice(head // group, head // group + 1)
            query, key, value = layer.query[head : head + 1], layer.key[owner], layer.value[owner]
            chosen = choice(case.method, case.budget, seed, layer.number)
            costs.append(float(sb.estimate(query, key, value, **chosen, **model.options).cost.fraction))
    return costs


def replacement(model: Model, case: Case, seed: int, step: Step) -> Attention:
    """Return the case's method as the model calls it, layer after layer."""
    numbers = count()

    def attention(query: Array, key: Array, value: Array) -> Array:
        chosen = choice(case.method, case.budget, seed, next(numbers))
        output: Array = sb.attention(query, key, value, **chosen, **model.options)
        step()
        return output

    return attention


def cases(model: str, methods: Sequence[str], budgets: Sequence[float]) -> list[Case]:
    """Exact attention, then every method at every budget, the largest first."""
    others = [method for method in dict.fromkeys(methods) if method != EXACT]
    ordered = sorted(set(budgets), reverse=True)
    return [
        Case(model, EXACT, None),
        *(Case(model, method, budget) for method in others for budget in ordered),
    ]


def spread(values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Median, mean, 95th percentile and maximum over all layers and heads."""
    flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in values])
    return {
        "median": float(np.median(flat)),
        "mean": float(flat.mean()),
        "p95": float(np.percentile(flat, 95)),
        "max": float(flat.max()),
    }
