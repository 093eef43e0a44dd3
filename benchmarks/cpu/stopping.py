"""At which length a method is not run any more, by what it took at shorter ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.cpu.cases import Result
from scatterbrain_core.cli.console import duration

LINEAR, QUADRATIC = 1.0, 2.0


@dataclass(frozen=True)
class Limits:
    """Of one call, and of what the process holds at its peak."""

    seconds: float
    bytes: float


def reason_to_stop(earlier: Sequence[Result], length: int, limits: Limits) -> str | None:
    """Why a method is not run at `length`, or None.

    Parameters
    ----------
    earlier : sequence of Result
        Of the same method on the same data at shorter lengths, the shortest first.
    """
    if not earlier:
        return None
    last = earlier[-1]
    if last.reason is not None:
        return last.reason
    seconds = predicted([(x.case.length, median(x.times)) for x in earlier], length)
    if seconds > limits.seconds:
        return f"{_stopped(length)}a call would take {duration(seconds)}, {_limit(duration(limits.seconds))}"
    held = predicted([(x.case.length, float(x.resident_bytes + x.peak_bytes)) for x in earlier], length)
    if held > limits.bytes:
        return f"{_stopped(length)}it would hold {_gib(held)}, {_limit(_gib(limits.bytes))}"
    return None


def _stopped(length: int) -> str:
    return f"stopped from n = {length} on: by its growth so far "


def _limit(most: str) -> str:
    return f"the limit is {most}"


def predicted(known: Sequence[tuple[int, float]], length: int) -> float:
    """The value at `length`, by the growth between the last two that are known, linear to quadratic.

    After a single one the growth is taken to be linear: at the shortest length nothing takes long.
    """
    last_length, last = known[-1]
    growth = LINEAR
    if len(known) > 1:
        before_length, before = known[-2]
        growth = math.log(last / before) / math.log(last_length / before_length)
    return float(last * (length / last_length) ** min(max(growth, LINEAR), QUADRATIC))


def _gib(count: float) -> str:
    """A number of bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"
