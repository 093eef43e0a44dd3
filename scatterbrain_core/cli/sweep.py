"""Every method at every budget over the same inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

import scatterbrain_core as sb
from scatterbrain_core.cli.console import progress, share
from scatterbrain_core.cli.measure import EXACT, Array, Row, relative_error, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True)
class Problem:
    """Inputs of attention, one triple a layer, and what exact attention makes of them.

    Attributes
    ----------
    layers : sequence of (query, key, value)
    references : sequence of array
        The exact output of each layer.
    options : dict
        Further arguments of `scatterbrain_core.attention`.
    """

    layers: Sequence[tuple[Array, Array, Array]]
    references: Sequence[Array]
    options: dict[str, Any] = field(default_factory=dict)

    def attend(self, method: str, budget: float | None, seed: int) -> list[Array]:
        """Return the output of each layer."""
        return [sb.attention(*layer, **asked) for layer, asked in self._calls(method, budget, seed)]

    def error(self, outputs: Sequence[Array]) -> float:
        """Return the mean over the layers of the relative error."""
        return fmean(map(relative_error, outputs, self.references))

    def fraction(self, method: str, budget: float | None, seed: int) -> float:
        """Return the mean over the layers of what was used, as a fraction of the keys."""
        calls = self._calls(method, budget, seed)
        return fmean(sb.estimate(*layer, **asked).cost.fraction for layer, asked in calls)

    def _calls(
        self, method: str, budget: float | None, seed: int
    ) -> Iterator[tuple[tuple[Array, Array, Array], dict[str, Any]]]:
        for number, layer in enumerate(self.layers):
            yield layer, {**choice(method, budget, seed, number), **self.options}


def choice(method: str, budget: float | None, seed: int, layer: int) -> dict[str, Any]:
    """Return the arguments that choose a method; every layer draws its own random numbers."""
    return {"method": method, "budget": budget or 1.0, "seed": np.random.default_rng((seed, layer))}


def measure(problem: Problem, method: str, budget: float | None, seeds: Sequence[int]) -> Row:
    """Return the errors over the seeds, the least of the times and the cost at the first seed."""
    errors, seconds = [], []
    for seed in seeds:
        outputs, elapsed = timed(partial(problem.attend, method, budget, seed))
        errors.append(problem.error(outputs))
        seconds.append(elapsed)
    fraction = problem.fraction(method, budget, seeds[0])
    return Row(method, budget, tuple(errors), min(seconds), fraction)


def sweep(
    problem: Problem,
    methods: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
    complete: Callable[[Row], Row] | None = None,
    refused: Callable[[str, ValueError], None] | None = None,
) -> list[Row]:
    """Measure exact attention, then every method at every budget.

    Parameters
    ----------
    problem : Problem
    methods, budgets, seeds : sequences
    complete : callable, optional
        Adds to a row what only the calling command measures.
    refused : callable, optional
        Told of a method and budget that the library refuses, and why; without it that is an error.

    Returns
    -------
    list of Row
        Exact attention first.
    """
    others = dict.fromkeys(method for method in methods if method != EXACT)
    wanted: list[tuple[str, float | None]] = [(EXACT, None)]
    wanted += [(method, budget) for method in others for budget in sorted(set(budgets))]
    rows = []
    with progress(len(wanted)) as step:
        for method, budget in wanted:
            name = method if budget is None else f"{method} at {share(budget)}"
            step(name)
            try:
                row = measure(problem, method, budget, seeds)
            except ValueError as error:
                if refused is None:
                    raise
                refused(name, error)
                continue
            rows.append(complete(row) if complete else row)
    return rows
