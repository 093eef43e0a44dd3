"""Adjoints of the array-API operations that the core uses on differentiable values.

A rule takes the raw namespace, the result and the operation's own arguments, and gives the pullback of one
array argument: from the cotangent of the result to that of the argument. Axes over which the argument was
broadcast are summed by the tape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from scatterbrain_core._typing import Namespace
from scatterbrain_core.differentiation.tape import AtKey, AtRows, Pullback

Rule = Callable[..., Pullback]


def _same(*_: Any) -> Pullback:
    return lambda g: g


def _larger(xp: Namespace, x: Any, y: Any, g: Any) -> Any:
    """Share of x in the cotangent of their maximum: a half where they are equal."""
    return xp.where(x > y, g, xp.where(x == y, g / 2, 0.0))


def _matmul(xp: Namespace, _: Any, x: Any, y: Any) -> Pullback:
    return lambda g: xp.matmul(g, xp.matrix_transpose(y))


def _matmul_right(xp: Namespace, _: Any, x: Any, y: Any) -> Pullback:
    return lambda g: xp.matmul(xp.matrix_transpose(x), g)


def _clip(xp: Namespace, out: Any, x: Any, *_: Any, **__: Any) -> Pullback:
    is_inside = out == x
    return lambda g: xp.where(is_inside, g, 0.0)


def _reduced_shape(x: Any, axis: Any) -> tuple[int, ...]:
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % x.ndim for a in axes}
    return tuple(1 if a in reduced else n for a, n in enumerate(x.shape))


def _sum(xp: Namespace, _: Any, x: Any, *, axis: Any = None, **__: Any) -> Pullback:
    kept, shape = _reduced_shape(x, axis), x.shape
    return lambda g: xp.broadcast_to(xp.reshape(g, kept), shape)


def _extreme(xp: Namespace, out: Any, x: Any, *, axis: Any = None, **__: Any) -> Pullback:
    kept = _reduced_shape(x, axis)
    is_extreme = xp.astype(x == xp.reshape(out, kept), x.dtype)
    share = is_extreme / xp.sum(is_extreme, axis=axis, keepdims=True)
    return lambda g: xp.reshape(g, kept) * share


def _reshape(xp: Namespace, _: Any, x: Any, *__: Any, **___: Any) -> Pullback:
    shape = x.shape
    return lambda g: xp.reshape(g, shape)


def _flip(xp: Namespace, _: Any, x: Any, *, axis: Any = None) -> Pullback:
    return lambda g: xp.flip(g, axis=axis)


def _astype(xp: Namespace, _: Any, x: Any, *__: Any, **___: Any) -> Pullback:
    dtype = x.dtype
    return lambda g: xp.astype(g, dtype)


def _tile(xp: Namespace, _: Any, x: Any, repetitions: tuple[int, ...]) -> Pullback:
    n = max(x.ndim, len(repetitions))
    shape = (1,) * (n - x.ndim) + x.shape
    times = (1,) * (n - len(repetitions)) + tuple(repetitions)
    split = tuple(size for pair in zip(times, shape, strict=True) for size in pair)
    copies, own = tuple(range(0, 2 * n, 2)), x.shape
    return lambda g: xp.reshape(xp.sum(xp.reshape(g, split), axis=copies), own)


def _repeat(xp: Namespace, _: Any, x: Any, repeats: int, *, axis: int) -> Pullback:
    axis = axis % x.ndim
    split = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    return lambda g: xp.sum(xp.reshape(g, split), axis=axis + 1)


def _take(xp: Namespace, _: Any, x: Any, index: Any, *, axis: int = 0) -> Pullback:
    if axis != 0:
        raise NotImplementedError(f"take has an adjoint along axis 0 alone, got axis {axis}")
    return lambda g: AtRows(index, g)


def get_item(xp: Namespace, _: Any, x: Any, key: Any) -> Pullback:
    """Rule of indexing by slices, integers, None and an ellipsis."""
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
        raise NotImplementedError("an index array has no adjoint here; use take")
    plain = tuple(k for k in keys if k is not None)
    shape = x[plain].shape
    return lambda g: AtKey(plain, xp.reshape(g, shape))


def _piece(k: int, xp: Namespace, _: Any, *arrays: Any, axis: int = 0) -> Pullback:
    axis = axis % arrays[k].ndim
    first = sum(x.shape[axis] for x in arrays[:k])
    key = (*(slice(None),) * axis, slice(first, first + arrays[k].shape[axis]), Ellipsis)
    return lambda g: g[key]


def _layer(k: int, xp: Namespace, out: Any, *arrays: Any, axis: int = 0) -> Pullback:
    key = (*(slice(None),) * (axis % out.ndim), k, Ellipsis)
    return lambda g: g[key]


RULES: dict[str, tuple[Rule | None, ...]] = {
    "abs": (lambda xp, _, x: lambda g: g * xp.sign(x),),
    "add": (_same, _same),
    "astype": (_astype,),
    "broadcast_to": (lambda xp, *_: lambda g: g,),
    "clip": (_clip,),
    "cos": (lambda xp, _, x: lambda g: -g * xp.sin(x),),
    "divide": (lambda xp, _, x, y: lambda g: g / y, lambda xp, out, x, y: lambda g: -g * (out / y)),
    "exp": (lambda xp, out, x: lambda g: g * out,),
    "expand_dims": (_reshape,),
    "expm1": (lambda xp, out, x: lambda g: g * (out + 1.0),),
    "flip": (_flip,),
    "log": (lambda xp, _, x: lambda g: g / x,),
    "log1p": (lambda xp, _, x: lambda g: g / (x + 1.0),),
    "matmul": (_matmul, _matmul_right),
    "matrix_transpose": (lambda xp, *_: xp.matrix_transpose,),
    "max": (_extreme,),
    "maximum": (
        lambda xp, _, x, y: lambda g: _larger(xp, x, y, g),
        lambda xp, _, x, y: lambda g: _larger(xp, y, x, g),
    ),
    "min": (_extreme,),
    "minimum": (
        lambda xp, _, x, y: lambda g: _larger(xp, y, x, g),
        lambda xp, _, x, y: lambda g: _larger(xp, x, y, g),
    ),
    "multiply": (lambda xp, _, x, y: lambda g: g * y, lambda xp, _, x, y: lambda g: g * x),
    "negative": (lambda *_: lambda g: -g,),
    "pow": (lambda xp, _, x, y: lambda g: g * (y * x ** (y - 1)),),
    "repeat": (_repeat,),
    "reshape": (_reshape,),
    "sin": (lambda xp, _, x: lambda g: g * xp.cos(x),),
    "sqrt": (lambda xp, out, x: lambda g: g / (2.0 * out),),
    "squeeze": (_reshape,),
    "subtract": (_same, lambda *_: lambda g: -g),
    "sum": (_sum,),
    "take": (_take,),
    "tile": (_tile,),
    "where": (
        None,
        lambda xp, _, c, x, y: lambda g: xp.where(c, g, 0.0),
        lambda xp, _, c, x, y: lambda g: xp.where(c, 0.0, g),
    ),
}
"""One rule for every array argument, by position; None for one that is never differentiable."""

RULES_OF_LISTS: dict[str, Callable[..., Pullback]] = {"concat": _piece, "stack": _layer}
"""Operations on a list of arrays: the rule of the k-th."""

CONSTANT = frozenset({"full_like", "ones_like", "sign", "zeros_like"})
"""Operations whose results are constants, besides all that give no floating-point numbers."""


def rules_of_list(name: str, n: int) -> tuple[Rule | None, ...]:
    """Rules of an operation on a list of n arrays."""
    return tuple(partial(RULES_OF_LISTS[name], k) for k in range(n))
