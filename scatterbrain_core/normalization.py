r"""The streaming softmax: partial results of a softmax-weighted sum, and how they merge.

A partial result stands for :math:`\sum_j e^{s_j} (v_j, 1)` as a reference and an accumulator,
:math:`e^{ref} \cdot acc`, so that nothing overflows and a far smaller part is lost only where rounding
would lose it. Values carry their weight as a last column of ones: the numerator with V = 1 *is* the
denominator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend
from scatterbrain_core.tiles import gather, integers


@dataclass(frozen=True)
class Partial:
    """Sum of exp(logit) * (value, 1) over some keys, as exp(ref) * acc.

    Attributes
    ----------
    ref : array, shape (...)
        Log of the scale of `acc`; -inf where no key was seen.
    acc : array, shape (..., Dv + 1)
        Scaled sums; the last column is the denominator.
    """

    ref: Array
    acc: Array


def softmax_partial(
    backend: Backend, logits: Array, weighted_values: Array, factor: Array | None = None
) -> Partial:
    """Partial result of the keys whose logits stand along the last axis.

    Parameters
    ----------
    logits : array, shape (..., Lq, n)
        A temporary that may be overwritten; -inf hides a key.
    weighted_values : array, shape (..., n, Dv + 1)
        Values with their weights as last column.
    factor : array, shape (..., Lq, n), optional
        Weights are exp(logits) * factor, which may be negative.
    """
    xp = backend.xp
    ref = xp.max(backend.stop_gradient(logits), axis=-1)
    weights = backend.exp_below(logits, finite(backend, ref)[..., None])
    weights = weights if factor is None else weights * factor
    return Partial(ref, xp.matmul(weights, weighted_values))


def merge(backend: Backend, first: Partial, *others: Partial) -> Partial:
    """Partial result of disjoint sets of keys, from the partial result of each."""
    total = first
    for other in others:
        ref = backend.xp.maximum(total.ref, other.ref)
        total = Partial(ref, scaled(backend, total, ref) + scaled(backend, other, ref))
    return total


def merge_along(backend: Backend, parts: Partial) -> Partial:
    """Partial results of disjoint sets of keys along the last axis of `ref`, merged."""
    ref = backend.xp.max(parts.ref, axis=-1)
    return Partial(ref, backend.xp.sum(scaled(backend, parts, ref[..., None]), axis=-2))


def merge_one_by_one(
    backend: Backend, nothing: Partial, part: Callable[[int], Partial], count: int
) -> Partial:
    """part(0), part(1), ... merged, where a gradient too holds one of them at a time."""

    def merged() -> tuple[Array, Array]:
        total = nothing
        for step in range(count):
            total = merge(backend, total, part(step))
        return total.ref, total.acc

    # Once the reference of all is known, the merge is a plain sum.
    def terms() -> Iterator[tuple[Array, Array]]:
        return ((ref, scaled(backend, part(step), ref)) for step in range(count))

    ref, acc = backend.checkpoint(merged, terms)
    return Partial(ref, acc)


def scaled(backend: Backend, partial: Partial, ref: Array) -> Array:
    """The accumulator of `partial` in units of exp(ref)."""
    return partial.acc * backend.xp.exp(partial.ref - finite(backend, ref))[..., None]


def running_merge(backend: Backend, parts: Partial, segment: Array, longest: int) -> Partial:
    """Inclusive running merge along the first axis, starting afresh in every segment.

    The order of the sums depends on a part's place within its segment alone, so what comes later, or
    stands in another segment, changes no bit.

    Parameters
    ----------
    parts : Partial
        `ref` of shape (n, m), `acc` of shape (n, m, Dv + 1).
    segment : array of int, shape (n,)
        Equal numbers stand together.
    longest : int
        Length of the longest segment.
    """

    def generic() -> tuple[Array, Array]:
        merged = _merged_by_doubling(backend, parts, segment, longest)
        return merged.ref, merged.acc

    ref, acc = backend.running_merge(parts.ref, parts.acc, segment, generic)
    return Partial(ref, acc)


def _merged_by_doubling(backend: Backend, parts: Partial, segment: Array, longest: int) -> Partial:
    """The same in log2(longest) vectorised steps."""
    xp = backend.xp
    for step in (2**i for i in range(max(longest - 1, 0).bit_length())):
        same = (segment[step:] == segment[:-step])[:, None]
        before = Partial(xp.where(same, parts.ref[:-step, ...], -math.inf), parts.acc[:-step, ...])
        after = merge(backend, before, Partial(parts.ref[step:, ...], parts.acc[step:, ...]))
        parts = Partial(
            xp.concat([parts.ref[:step, ...], after.ref], axis=0),
            xp.concat([parts.acc[:step, ...], after.acc], axis=0),
        )
    return parts


def last_of_segments(backend: Backend, running: Partial, segment: Array, n_segments: int) -> Partial:
    """The last of each segment's running merges: `ref` of shape (n_segments, m), nothing seen where none is.

    Parameters
    ----------
    segment : array of int, shape (n,)
        Ascending, in [0, n_segments).
    """
    xp = backend.xp
    numbers = integers(xp, n_segments, segment)
    last = xp.searchsorted(segment, numbers, side="right") - 1
    block = xp.maximum(last, 0)
    exists = (last >= 0) & (xp.take(segment, block) == numbers)
    chosen = Partial(gather(xp, running.ref, block), gather(xp, running.acc, block))
    return select(backend, xp.broadcast_to(exists[:, None], chosen.ref.shape), chosen)


def nothing_seen(backend: Backend, rows: Array, weighted_values: Array) -> Partial:
    """The partial result of no key at all, for rows of the shape of `rows`."""
    xp = backend.xp
    acc = xp.zeros_like(rows[..., None]) + xp.zeros_like(weighted_values[0, ...])
    return Partial(xp.full_like(rows, -math.inf), acc)


def select(backend: Backend, condition: Array, partial: Partial) -> Partial:
    """`partial` where the condition holds, nothing seen elsewhere."""
    xp = backend.xp
    return Partial(
        xp.where(condition, partial.ref, -math.inf), xp.where(condition[..., None], partial.acc, 0.0)
    )


def normalize(backend: Backend, partial: Partial) -> tuple[Array, Array]:
    """Output and log-normaliser; zeros and -inf for a row that saw no key.

    Returns
    -------
    output : array, shape (..., Dv)
    lse : array, shape (...)
    """
    xp = backend.xp
    weight = partial.acc[..., -1]
    seen = weight != 0  # true of NaN too: what is not finite must not pass for a row without keys
    weight = xp.where(seen, weight, 1.0)
    output = xp.where(seen[..., None], partial.acc[..., :-1] / weight[..., None], 0.0)
    # Signed features may make a weight negative: it has no log.
    log_weight = xp.log(xp.where(weight < 0, 1.0, weight))
    return output, xp.where(seen, partial.ref + xp.where(weight < 0, math.nan, log_weight), -math.inf)


def finite(backend: Backend, ref: Array) -> Array:
    """A reference to subtract: 0 where no key was seen."""
    return backend.xp.where(ref == -math.inf, 0.0, ref)
