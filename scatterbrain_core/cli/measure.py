"""What is measured of a method, and the yardsticks."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import scatterbrain_core as sb
from scatterbrain_core.cli.console import duration, share
from scatterbrain_core.cli.errors import UserError, library_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Array: TypeAlias = npt.NDArray[Any]
Result = TypeVar("Result")

EXACT = "exact"


@dataclass(frozen=True)
class Row:
    """The figures of one method at one budget, one value a seed where the seed matters.

    Attributes
    ----------
    method : str
    budget : float or None
        None for exact attention, which takes none.
    errors : tuple of float
        ‖Ô - O‖ / ‖O‖.
    cosines : tuple of float
        Of the final embedding to the exact one; empty where there is no model to run.
    seconds : float
        Of the fastest run, the one that other work on the machine disturbed least.
    fraction : float
        Of the keys, what a row of the query really cost.
    memory : int or None
        Peak bytes above what was there before the call.
    """

    method: str
    budget: float | None
    errors: tuple[float, ...]
    seconds: float
    fraction: float
    cosines: tuple[float, ...] = ()
    memory: int | None = None

    @property
    def error(self) -> float:
        """Median error over the seeds."""
        return median(self.errors)

    @property
    def cosine(self) -> float:
        """Median cosine over the seeds."""
        return median(self.cosines)

    @property
    def megabytes(self) -> float:
        """Peak memory in units of 10^6 bytes."""
        return (self.memory or 0) / 1e6

    @property
    def cells(self) -> list[str]:
        """Method, budget, used, error and time, as a table shows them."""
        budget = "-" if self.budget is None else share(self.budget)
        return [self.method, budget, f"{self.fraction:.3f}", f"{self.error:.2g}", duration(self.seconds)]

    @property
    def name(self) -> str:
        """Method and budget, as in a sentence."""
        return self.method if self.budget is None else f"{self.method} at {share(self.budget)}"


def approximations() -> list[str]:
    """Return the library's methods but exact attention."""
    return [name for name in sb.methods() if name != EXACT]


def check_methods(methods: Iterable[str]) -> None:
    """Let the library refuse a method it does not know before the work starts."""
    one = np.ones((1, 1), dtype=np.float32)
    for method in methods:
        with library_errors({}):
            sb.attention(one, one, one, method=method, budget=1.0)


def dense_attention(query: Array, key: Array, value: Array) -> npt.NDArray[np.float64]:
    """Softmax attention by its definition, in float64: the yardstick, independent of the library."""
    logits = query.astype(np.float64) @ np.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights @ value / weights.sum(axis=-1, keepdims=True))


def relative_error(output: Array, reference: Array) -> float:
    """‖output - reference‖ / ‖reference‖ in float64; 0 where both are zero."""
    reference = np.asarray(reference, dtype=np.float64)
    unit = (
        np.abs(reference).max(initial=0) or 1.0
    )  # the squares of what is very large or small have no float64
    difference, norm = np.linalg.norm(output / unit - reference / unit), np.linalg.norm(reference / unit)
    if norm > 0:
        return float(difference / norm)
    return 0.0 if difference == 0 else float("inf")


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of `call` and the seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def can_hold_threads() -> bool:
    """Whether threadpoolctl is installed."""
    return find_spec("threadpoolctl") is not None


def one_thread() -> AbstractContextManager[object]:
    """Hold the linear algebra to one thread, where threadpoolctl is installed.

    On a busy machine its threads wait for each other, which makes times of small products useless.
    """
    if not can_hold_threads():
        return nullcontext()
    limit: AbstractContextManager[object] = import_module("threadpoolctl").threadpool_limits(1, "blas")
    return limit


def peak_memory(call: Callable[[], object]) -> int:
    """Return the most bytes Python's allocators held during `call`, above what they held before it."""
    if tracemalloc.is_tracing():
        raise UserError("the peak memory cannot be measured while tracemalloc runs already")
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
