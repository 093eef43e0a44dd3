"""The public call that gives gradients to callers without autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from array_api_compat import device

from scatterbrain_core._typing import Array, Seed
from scatterbrain_core.attention import nothing, prepare
from scatterbrain_core.backend import backend_of, in_full_precision
from scatterbrain_core.differentiation import TracingBackend, untraced
from scatterbrain_core.estimator import Projections, attend, draw, head_groups
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem, bring_to_form
from scatterbrain_core.random import Draws

# A recorded group of heads keeps several arrays where a plain one reuses the memory of one.
RECORDED_GROUP_ELEMENTS = 2**22

Vjp: TypeAlias = Callable[[Any], tuple[Any, Any, Any]]


@in_full_precision()
def attention_vjp(
    query: Any,
    key: Any,
    value: Any,
    *,
    method: str | Scatterbrain = "auto",
    budget: float = 0.125,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    seed: Seed = 0,
    check_finite: bool = True,
) -> tuple[Any, Vjp]:
    r"""`attention` and the function that takes a cotangent back to its query, key and value.

    The arguments and errors are those of `attention`. It needs no autograd: NumPy, CuPy and other arrays
    have gradients by it too. The support is a constant, as the signs of the hashes have no derivative; the
    gradient is that of the estimate, given the draws of the call. Where a query gains equally, to rounding,
    by two clusters of `auto`, a compiled or GPU call, as that of `output`, may make another choice than the
    one that is differentiated.

    Returns
    -------
    output : array, shape (..., Lq, Dv)
        What `attention` returns.
    vjp : callable
        ``d_query, d_key, d_value = vjp(cotangent)``. With :math:`\ell` a function of the output and
        cotangent :math:`\partial\ell/\partial O`, of the output's shape, dtype, library and device, these are
        :math:`\partial\ell/\partial Q`, :math:`\partial\ell/\partial K` and
        :math:`\partial\ell/\partial V`, of the shapes of query, key and value. What a mask hides has
        gradient zero. It may be called any number of times. It reads the arguments again, which must not
        be changed in place before. A cotangent of another type, shape or dtype is an error, and so is one
        with NaN or inf in what is not hidden, unless `check_finite` is False.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was expected.

    Notes
    -----
    Memory is linear in the length, as that of `attention`: blocks of pairs are computed again on the way
    back. One call of `vjp` takes a few times as long as one of `attention`.

    Of Torch tensors that require a gradient the values alone are used: `output` and the gradients are
    constants to Torch's autograd. There, differentiate `attention` itself.

    Examples
    --------
    >>> import numpy as np
    >>> import scatterbrain_core as sb
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((8, 200, 16)) for _ in range(3))
    >>> output, vjp = sb.attention_vjp(q, k, v, budget=0.25)
    >>> d_query, d_key, d_value = vjp(np.ones_like(output))
    >>> d_query.shape, d_key.shape, d_value.shape
    ((8, 200, 16), (8, 200, 16), (8, 200, 16))
    """
    form = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    problem, _, parts = prepare(query, key, value, method, budget, **form, check_finite=check_finite)
    backend, arguments = problem.backend, (query, key, value)
    problem = problem.with_arrays(*map(backend.stop_gradient, (problem.query, problem.key, problem.value)))
    projections = draw(problem, parts, Draws(seed))
    if problem.is_empty:
        output = nothing(problem)[0]
    else:
        output = problem.as_output(attend(problem, parts, projections))
    shape, dtype = tuple(output.shape), output.dtype

    @in_full_precision()
    def vjp(cotangent: Any) -> tuple[Any, Any, Any]:
        _check_cotangent(query, cotangent, shape, dtype)
        tracing = TracingBackend(backend)
        watched = [tracing.watch(x) for x in arguments]
        traced = bring_to_form(tracing, *watched, **form, check_finite=False)
        arrays = (traced.query, traced.key, traced.value)
        plain = replace(traced, backend=backend).with_arrays(*map(untraced, arrays))
        flat = _flat_cotangent(plain, cotangent, check_finite)
        cotangents = [] if plain.is_empty else _pull_back(plain, parts, projections, flat)
        d_query, d_key, d_value = tracing.gradients(zip(arrays, cotangents, strict=False), *watched)
        return d_query, d_key, d_value

    return output, vjp


def _pull_back(
    problem: Problem, parts: Scatterbrain, projections: Projections, cotangent: Array
) -> list[Array]:
    """Gradients of a problem's own query, key and value, a few heads at a time."""
    by_group, first = [], 0
    for group in head_groups(problem, parts, RECORDED_GROUP_ELEMENTS):
        last = first + group.n_heads
        tracing = TracingBackend(problem.backend)
        watched = [tracing.watch(x) for x in (group.query, group.key, group.value)]
        output = attend(replace(group, backend=tracing).with_arrays(*watched), parts, projections)
        by_group.append(tracing.gradients([(output, cotangent[first:last, ...])], *watched))
        first = last
    return [problem.xp.concat(column, axis=0) for column in zip(*by_group, strict=True)]


def _check_cotangent(query: Any, cotangent: Any, shape: tuple[int, ...], dtype: Any) -> None:
    backend_of(query=query, cotangent=cotangent)
    if cotangent.dtype != dtype:
        raise TypeError(
            f"cotangent must have the dtype of the output, {dtype}, got {cotangent.dtype}; nothing is cast"
        )
    if tuple(cotangent.shape) != shape:
        raise ValueError(
            f"cotangent must have the shape of the output, {shape}, got {tuple(cotangent.shape)}"
        )
    if device(cotangent) != device(query):
        raise ValueError(
            f"cotangent must be on the device of query, {device(query)}, got {device(cotangent)}"
        )


def _flat_cotangent(problem: Problem, cotangent: Any, check_finite: bool) -> Array:
    """The cotangent by head, zero in hidden rows; raise where it is not finite."""
    xp = problem.xp
    flat = xp.astype(problem.backend.stop_gradient(cotangent), problem.query.dtype, copy=False)
    flat = xp.reshape(flat, (*problem.query.shape[:2], problem.dim_value))
    if problem.row_mask is not None:
        flat = xp.where(problem.row_mask[:, :, None], flat, 0.0)
    if check_finite and not bool(xp.all(xp.isfinite(flat))):
        raise ValueError(
            "cotangent must be finite, got NaN or inf; check_finite=False switches this check off"
        )
    return flat
