"""What is measured, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.shared.arrays import Array, normal, topical

DATA: dict[str, Callable[[int, int, int, int], list[Array]]] = {"normal": normal, "topics": topical}
DATA_TOLD = {
    "normal": "independent normal entries of deviation 1/2: nearly equal weights",
    "topics": "rows around 64 centres: a query's weight is on the keys of its topic, as in trained models",
}


@dataclass(frozen=True)
class Workload:
    """Inputs of one call, and the entries a query that methods are given."""

    data: str
    heads: int
    length: int
    dim: int
    entries: int
    is_causal: bool
    seed: int

    def draw(self) -> list[Array]:
        """Query, key and value, each of shape (heads, length, dim), in float32."""
        return DATA[self.data](self.heads, self.length, self.dim, self.seed)


@dataclass(frozen=True)
class Case:
    """One place in the tables."""

    data: str
    length: int
    method: str


@dataclass(frozen=True)
class Result:
    """What was found of a case.

    Attributes
    ----------
    case : Case
    reason : str or None
        Why there are no figures: the method was stopped at a shorter length, or it failed.
    times : list of float
        Seconds of each call, behind one of Torch's own attention where that still runs.
    reference_times : list of float
        Seconds of those, as many, or none.
    peak_bytes : int
        At the peak of a call, over what the process held before: the output and all that was temporary.
    resident_bytes : int
        That the process held before the call, inputs included.
    is_lower_bound : bool
        Whether the system could not forget an earlier peak, so that `peak_bytes` may be too small.
    error : float
        ‖Ô − O‖ / ‖O‖ over the sampled rows of all heads.
    pairs, rank : float
        Exact pairs a query, and the rank of the low-rank part.
    is_counted : bool
        Whether pairs and rank were counted in a call; otherwise they are what was asked for.
    """

    case: Case
    reason: str | None = None
    times: list[float] = field(default_factory=list)
    reference_times: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    resident_bytes: int = 0
    is_lower_bound: bool = False
    error: float = 0.0
    pairs: float = 0.0
    rank: float = 0.0
    is_counted: bool = False
