"""One method at one budget on one model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

import numpy as np

import scatterbrain_core as sb
from benchmarks.accuracy.models import Array, Attention, Layer, Model
from benchmarks.accuracy.places import Place
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
        Of the keys, what a query of that head cost on average, likewise.
    seconds : float
        Of `scatterbrain_core.estimate` over all these layers.
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
    return sum({"errors": layers, "quality": model.layers}[part] for part in parts)


@dataclass(frozen=True)
class Call:
    """How the library is called in a run.

    Attributes
    ----------
    place : Place
        Where it runs.
    seed : int
    step : callable
        Called behind every layer.
    """

    place: Place
    seed: int
    step: Step

    def arguments(self, model: Model, case: Case, layer: int) -> dict[str, Any]:
        """Return all but the arrays."""
        return {**choice(case.method, case.budget, self.seed, layer), **model.options}


def measure(model: Model, layers: Sequence[Layer], case: Case, parts: Sequence[str], call: Call) -> Result:
    """Measure `parts` of a case: errors and costs, quality. What the library refuses is a result too."""
    errors: list[list[float]] = []
    costs: list[list[float]] = []
    seconds, quality = 0.0, None
    try:
        for layer in layers if "errors" in parts else ():
            arguments = call.arguments(model, case, layer.number)
            est, elapsed = timed(partial(estimate, layer, arguments))
            pairs = zip(*map(call.place.to_numpy, (est.output, layer.output)), strict=True)
            errors.append([relative_error(*pair) for pair in pairs])
            costs.append([float(x) for x in call.place.to_numpy(est.cost.of_heads)])
            seconds += elapsed
            call.step()
        if "quality" in parts:
            quality = model.run(replacement(model, case, call))
    except (ValueError, TypeError) as error:
        return Result(case, [], [], 0.0, None, refused=" ".join(str(error).split()))
    return Result(case, errors, costs, seconds, quality)


def estimate(layer: Layer, arguments: dict[str, Any]) -> sb.Estimate:
    """Return the estimate of a layer, without the standard error, for which features run in groups."""
    with mock.patch.object(sys.modules["scatterbrain_core.attention"], "ERROR_GROUPS", 1):
        return sb.estimate(layer.query, layer.key, layer.value, **arguments)


def replacement(model: Model, case: Case, call: Call) -> Attention:
    """Return the case's method as the model calls it, layer after layer."""
    numbers = count()

    def attention(query: Array, key: Array, value: Array) -> Array:
        output = sb.attention(query, key, value, **call.arguments(model, case, next(numbers)))
        call.step()
        return output

    return attention


def cases(model: str, methods: Sequence[str], budgets: Sequence[float]) -> list[Case]:
    """Exact attention, which has no budget, then the other methods at every budget, the largest first."""
    ordered = sorted(set(budgets), reverse=True)
    exact = [Case(model, EXACT, None)] if EXACT in methods else []
    others = [method for method in dict.fromkeys(methods) if method != EXACT]
    return exact + [Case(model, method, budget) for method in others for budget in ordered]


def spread(values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Median, mean, 95th percentile and maximum over all layers and heads."""
    flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in values])
    return {
        "median": float(np.median(flat)),
        "mean": float(flat.mean()),
        "p95": float(np.percentile(flat, 95)),
        "max": float(flat.max()),
    }
