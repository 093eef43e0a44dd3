"""Two calls timed in turn, so that what else the machine does falls on both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

Clock = Callable[[], float]

# The threads of the call before go on spinning for some milliseconds.
SETTLE_SECONDS = 0.01


def in_turn(
    reference: Callable[[], object] | None,
    call: Callable[[], object],
    n_pairs: int,
    most_seconds: float,
    clock: Clock = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds of `reference` and of `call`, one behind the other; fewer pairs where they take too long.

    Without a reference its list is empty. At least one pair is timed.
    """
    of_reference: list[float] = []
    of_call: list[float] = []
    for _ in range(n_pairs):
        if reference is not None:
            of_reference.append(_seconds(reference, clock))
        of_call.append(_seconds(call, clock))
        if sum(of_reference) + sum(of_call) > most_seconds:
            break
    return of_reference, of_call


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    time.sleep(SETTLE_SECONDS)
    start = clock()
    call()
    return clock() - start


def median_ratio(of_reference: Sequence[float], of_call: Sequence[float]) -> float | None:
    """How many times as fast the call is: the median over the pairs, None without any."""
    ratios = [reference / own for reference, own in zip(of_reference, of_call, strict=False)]
    return median(ratios) if ratios else None
