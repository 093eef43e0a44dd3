"""The arguments of a call, checked once and brought to one form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from array_api_compat import device

from scatterbrain_core._checks import require_bool, require_real
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend, backend_of

T = TypeVar("T")

# Half precision is worked in float32 and rounded once, at the end.
WORKED_IN = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


@dataclass(frozen=True)
class HalfPrecision:
    """What query, key and value were, where half precision came: values still are, but for their type.

    Attributes
    ----------
    dtype : str
        'float16' or 'bfloat16'.
    query_factor, key_factor : float
        What query and key were multiplied by, which rounds them to float32.
    """

    dtype: str
    query_factor: float
    key_factor: float
    _kept: dict[str, tuple[Array, Any]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def once(self, name: str, rows: Array, function: Callable[[], T]) -> T:
        """What `function` makes of these rows, kept until other ones are asked for by this name."""
        if name not in self._kept or self._kept[name][0] is not rows:
            self._kept[name] = rows, function()
        return self._kept[name][1]


@dataclass(frozen=True)
class Problem:
    """A checked call.

    Attributes
    ----------
    backend : Backend
    lead : tuple of int
        Leading axes of query, flattened to H heads below.
    dtype : dtype
        Of the arrays that came; `query`, `key` and `value` are at least float32.
    arrays : tuple of array, shapes (H, Lq, D), (H, Lk, D) and (H, Lk, Dv)
        Query, key and value as they came, but for their leading axes; or in form.
    in_form : bool
        Whether `arrays` are what `query`, `key` and `value` give. Otherwise these are made when they are
        asked for: `attention` asks for those of a few heads at a time.
    key_mask : array of bool, shape (H, Lk), or None
        False hides a key from every query.
    row_mask : array of bool, shape (H, Lq), or None
        False hides every key from a query, which is zero then.
    dense_mask : array of bool, shape (n_masks, Lq, Lk), or None
        A mask that is neither.
    mask_of_head : list of int
        Which of the masks in `dense_mask` each head has.
    is_causal : bool
    scale : float
        Of the logits, which query and key have in them.
    """

    backend: Backend
    lead: tuple[int, ...]
    dtype: Any
    arrays: tuple[Array, Array, Array]
    in_form: bool
    key_mask: Array | None
    row_mask: Array | None
    dense_mask: Array | None
    mask_of_head: list[int]
    is_causal: bool
    scale: float = 1.0
    _once: dict[Any, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    def once(self, name: Any, function: Callable[[], T]) -> T:
        """What `function` gives, computed once for this problem by whichever of its parts asks for it first.

        Parameters
        ----------
        name : hashable
            Of the result; equal names stand for equal functions.
        """
        if name not in self._once:
            self._once[name] = function()
        return self._once[name]

    @property
    def xp(self) -> Namespace:
        """Namespace of the arrays."""
        return self.backend.xp

    @property
    def half(self) -> HalfPrecision | None:
        """What the arrays were, where they came in half precision."""
        name = _name(self.dtype)
        return None if name == WORKED_IN[name] else HalfPrecision(name, *_shared(self.scale))

    @property
    def query(self) -> Array:
        """Queries times sign(scale) * sqrt(abs(scale)), so that the logits are query · key: (H, Lq, D).

        Hidden ones are zero.
        """
        return self._formed()[0]

    @property
    def key(self) -> Array:
        """Keys times sqrt(abs(scale)), shape (H, Lk, D); hidden ones are zero."""
        return self._formed()[1]

    @property
    def value(self) -> Array:
        """Values, shape (H, Lk, Dv); those of hidden keys are zero."""
        return self._formed()[2]

    def _formed(self) -> tuple[Array, Array, Array]:
        return self.arrays if self.in_form else self.once("arrays in form", lambda: _scaled(self))

    def with_arrays(self, query: Array, key: Array, value: Array) -> Problem:
        """The same problem with other arrays, in form."""
        return replace(self, arrays=(query, key, value), in_form=True)

    @property
    def like(self) -> Array:
        """A number in the dtype and on the device of `query`."""
        like = self.once("like", lambda: self.xp.sum(self.arrays[0][:0, :0, :0]))
        return self.xp.astype(like, self.worked_in, copy=False)

    @property
    def worked_in(self) -> Any:
        """The dtype of `query`, `key` and `value`."""
        return getattr(self.xp, WORKED_IN[_name(self.dtype)])

    @property
    def item_size(self) -> int:
        """Bytes of a number that is worked in."""
        return int(self.xp.finfo(self.worked_in).bits) // 8

    @property
    def n_heads(self) -> int:
        """H, the product of the leading axes."""
        return self.arrays[0].shape[0]

    @property
    def n_queries(self) -> int:
        """Lq."""
        return self.arrays[0].shape[1]

    @property
    def n_keys(self) -> int:
        """Lk."""
        return self.arrays[1].shape[1]

    @property
    def dim(self) -> int:
        """D."""
        return self.arrays[0].shape[2]

    @property
    def dim_value(self) -> int:
        """Dv."""
        return self.arrays[2].shape[2]

    @property
    def is_empty(self) -> bool:
        """Whether there is no row to compute, or no key to see."""
        return 0 in (self.n_heads, self.n_queries, self.n_keys)

    def of_heads(self, heads: slice) -> Problem:
        """The same problem for some consecutive heads."""

        def part(x: Any) -> Any:
            return None if x is None else x[heads, ...]

        query, key, value = self.arrays
        return replace(
            self,
            arrays=(query[heads, ...], key[heads, ...], value[heads, ...]),
            key_mask=part(self.key_mask),
            row_mask=part(self.row_mask),
            mask_of_head=self.mask_of_head[heads],
        )

    def by_heads(self, step: int) -> list[Problem]:
        """The problem a few heads at a time."""
        starts = range(0, self.n_heads, step)
        return [self.of_heads(slice(first, min(first + step, self.n_heads))) for first in starts]

    def afresh(self) -> Problem:
        """The same problem with nothing computed `once` yet: what it computes goes when it goes."""
        return replace(self)

    def unflatten(self, rows: Array) -> Array:
        """(H, Lq, ...) back to (..., Lq, ...)."""
        return self.xp.reshape(rows, self.lead + rows.shape[1:])

    def in_dtype(self, x: Array) -> Array:
        """`x` in the dtype of the arrays that came."""
        return self.xp.astype(x, self.dtype, copy=False)

    def as_output(self, rows: Array) -> Array:
        """(H, Lq, ...) back to (..., Lq, ...), in the dtype of the arrays that came."""
        return self.in_dtype(self.unflatten(rows))


def make_problem(
    query: Any,
    key: Any,
    value: Any,
    *,
    attn_mask: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    check_finite: bool,
) -> Problem:
    """Check the arguments of a public call and bring them to one form.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was expected.
    """
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa), ("check_finite", check_finite)):
        require_bool(name, flag)
    arrays = {"query": query, "key": key, "value": value}
    backend = backend_of(**arrays, **({} if attn_mask is None else {"attn_mask": attn_mask}))
    _check_dtypes(arrays)
    _check_devices(arrays if attn_mask is None else arrays | {"attn_mask": attn_mask})
    _check_shapes(query, key, value, enable_gqa)
    resolve_scale(scale, query)
    if attn_mask is not None:
        _check_mask(backend.xp, attn_mask, (*query.shape[:-1], key.shape[-2]), is_causal)
    return bring_to_form(
        backend,
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        check_finite=check_finite,
    )


def bring_to_form(
    backend: Backend,
    query: Any,
    key: Any,
    value: Any,
    *,
    attn_mask: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    check_finite: bool,
) -> Problem:
    """The problem of arguments that are checked but for their entries; linear in query, key and value."""
    if enable_gqa:
        key, value = _repeat_heads(backend.xp, query, key), _repeat_heads(backend.xp, query, value)
    problem = _flatten(backend, query, key, value, attn_mask, is_causal)
    problem = replace(problem, scale=resolve_scale(scale, query))
    if check_finite:
        _check_entries(problem)
    return problem


def dtype_name(x: Any) -> str:
    """Name of an array's dtype, whatever its library: 'float32', 'bfloat16', ..."""
    return _name(x.dtype)


def _name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def _check_dtypes(arrays: dict[str, Any]) -> None:
    for name, x in arrays.items():
        if dtype_name(x) not in WORKED_IN:
            raise TypeError(f"{name} must have dtype {', '.join(WORKED_IN)}, got {x.dtype}")
    if any(x.dtype != arrays["query"].dtype for x in arrays.values()):
        got = ", ".join(f"{name} {x.dtype}" for name, x in arrays.items())
        raise TypeError(f"query, key and value must have one dtype, got {got}; nothing is cast")


def _check_devices(arrays: dict[str, Any]) -> None:
    devices = {name: device(x) for name, x in arrays.items()}
    if any(place != devices["query"] for place in devices.values()):
        got = ", ".join(f"{name} on {place}" for name, place in devices.items())
        raise ValueError(f"all arrays must be on the device of query, got {got}")


def _check_shapes(query: Any, key: Any, value: Any, enable_gqa: bool) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 2:
            raise ValueError(f"{name} must have shape (..., L, D), got {_shape(x)}")
    query_and_key = f"query {_shape(query)}, key {_shape(key)}"
    key_and_value = f"key {_shape(key)}, value {_shape(value)}"
    if query.shape[-1] != key.shape[-1] or query.shape[-1] == 0:
        raise ValueError(f"query and key must have the same last axis D, at least 1, got {query_and_key}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key and value must have the same length Lk, got {key_and_value}")
    if key.shape[:-2] != value.shape[:-2]:
        raise ValueError(f"key and value must have the same leading axes, got {key_and_value}")
    if enable_gqa:
        _check_groups(query, key)
    elif query.shape[:-2] != key.shape[:-2]:
        hint = "; grouped-query heads need enable_gqa=True" if _is_grouped(query, key) else ""
        raise ValueError(f"query and key must have the same leading axes, got {query_and_key}{hint}")


def _is_grouped(query: Any, key: Any) -> bool:
    if query.ndim != key.ndim or query.ndim < 3 or query.shape[:-3] != key.shape[:-3]:
        return False
    heads, groups = query.shape[-3], key.shape[-3]
    return bool(heads == groups or (groups > 0 and heads % groups == 0))


def _check_groups(query: Any, key: Any) -> None:
    if not _is_grouped(query, key):
        raise ValueError(
            "with enable_gqa the heads axis (-3) of query must be a multiple of key's and the axes before it "
            f"equal, got query {_shape(query)}, key {_shape(key)}"
        )


def resolve_scale(scale: Any, query: Any) -> float:
    """Factor of the logits, by default 1/√D; raise unless it is a finite number."""
    if scale is None:
        return 1 / math.sqrt(query.shape[-1])
    factor = require_real("scale", scale, "a real number or None")
    if not math.isfinite(factor):
        raise ValueError(f"scale must be finite, got {factor}")
    return factor


def _check_mask(xp: Namespace, mask: Any, full: tuple[int, ...], is_causal: bool) -> None:
    if mask.dtype != xp.bool:
        raise TypeError(f"attn_mask must have dtype bool (True = may attend), got {mask.dtype}")
    padded = (1,) * (len(full) - mask.ndim) + tuple(mask.shape)
    if mask.ndim > len(full) or any(m not in (1, n) for m, n in zip(padded, full, strict=True)):
        raise ValueError(f"attn_mask must be broadcastable to (..., Lq, Lk) = {full}, got {_shape(mask)}")
    if is_causal and 1 not in padded[-2:]:
        raise ValueError(
            "attn_mask must be of keys (..., 1, Lk) or of queries (..., Lq, 1) where is_causal=True, got "
            f"{_shape(mask)}; a mask of pairs must hold the causal part itself"
        )


def _repeat_heads(xp: Namespace, query: Any, x: Any) -> Any:
    return xp.repeat(x, query.shape[-3] // max(x.shape[-3], 1), axis=-3)


def _flatten(backend: Backend, query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool) -> Problem:
    xp, lead = backend.xp, tuple(query.shape[:-2])
    query, key, value = (xp.reshape(x, (math.prod(lead), *x.shape[-2:])) for x in (query, key, value))
    problem = Problem(backend, lead, query.dtype, (query, key, value), False, None, None, None, [], is_causal)
    if attn_mask is None:
        return problem
    shape = (1,) * (len(lead) + 2 - attn_mask.ndim) + tuple(attn_mask.shape)
    return _with_mask(problem, xp.reshape(attn_mask, shape))


def _masked(problem: Problem) -> tuple[Array, Array, Array]:
    """Query, key and value in the dtype that is worked in, hidden ones zero."""
    xp = problem.xp
    query, key, value = (xp.astype(x, problem.worked_in, copy=False) for x in problem.arrays)
    # Zeroed, what stands where a mask hides it changes nothing: not the output, not a bucket, not a gradient.
    if problem.key_mask is not None:
        hidden = ~problem.key_mask[:, :, None]
        key, value = (xp.where(hidden, 0.0, x) for x in (key, value))
    if problem.row_mask is not None:
        query = xp.where(problem.row_mask[:, :, None], query, 0.0)
    return query, key, value


def _scaled(problem: Problem) -> tuple[Array, Array, Array]:
    """Query, key and value in form."""
    query, key, value = _masked(problem)
    if problem.scale == 1.0:
        return query, key, value
    of_query, of_key = _shared(problem.scale)
    return query * of_query, key * of_key, value


def _with_mask(problem: Problem, mask: Any) -> Problem:
    """The problem with its mask, of all axes, split by what it hides."""
    xp, lead = problem.xp, problem.lead
    rows, columns = mask.shape[-2:]
    if rows == 1:
        return replace(problem, key_mask=_by_head(xp, mask[..., 0, :], lead, problem.n_keys))
    if columns == 1:
        return replace(problem, row_mask=_by_head(xp, mask[..., 0], lead, problem.n_queries))
    n_masks = math.prod(mask.shape[:-2])
    numbers = xp.reshape(xp.arange(n_masks), mask.shape[:-2])
    numbers = xp.reshape(xp.broadcast_to(numbers, lead), (-1,))
    return replace(
        problem,
        # A key that no query may see is padding, however the mask is written; so is a query without keys.
        key_mask=_by_head(xp, xp.any(mask, axis=-2), lead, problem.n_keys),
        row_mask=_by_head(xp, xp.any(mask, axis=-1), lead, problem.n_queries),
        dense_mask=xp.reshape(mask, (n_masks, rows, columns)),
        mask_of_head=[int(numbers[head]) for head in range(problem.n_heads)],
    )


def _by_head(xp: Namespace, mask: Any, lead: tuple[int, ...], length: int) -> Array:
    return xp.reshape(xp.broadcast_to(mask, (*lead, length)), (math.prod(lead), length))


def _check_entries(problem: Problem) -> None:
    """Raise on NaN and inf, and where a logit, a squared norm or a sum of values could overflow."""
    if problem.n_heads == 0:
        return
    names = ("query", "key", "value")
    tops = dict(zip(names, _largest_entries(problem), strict=True))
    for name, top in tops.items():
        if not math.isfinite(top):
            raise ValueError(
                f"{name} must be finite, got NaN or inf; check_finite=False switches this check off"
            )
    if problem.is_empty:
        return
    query, key, value = tops.values()
    scale, dtype = problem.scale, problem.like.dtype
    largest = float(problem.xp.finfo(dtype).max)
    if max(query, key) * math.sqrt(abs(scale)) >= math.sqrt(largest / (4 * problem.dim)):
        raise ValueError(
            f"query, key and scale must keep products of entries within {dtype}, got entries up to "
            f"{query:.3g} and {key:.3g} with scale {scale:.3g}"
        )
    if value >= largest / (2 * problem.n_keys):
        raise ValueError(f"value must keep sums of its entries within {dtype}, got entries up to {value:.3g}")


def _largest_entries(problem: Problem) -> list[float]:
    """Largest absolute entries of query, key and value, NaN where one is NaN; a few heads at a time."""
    of_head = sum(math.prod(x.shape[1:]) for x in problem.arrays)
    step = max(1, problem.backend.checked_elements // max(of_head, 1))
    parts = problem.by_heads(step)
    tops = problem.backend.map(lambda part: [largest_entry(problem, x) for x in _masked(part)], parts)
    return [
        max(column) if all(map(math.isfinite, column)) else math.nan for column in zip(*tops, strict=True)
    ]


def largest_entry(problem: Problem, x: Array) -> float:
    """Largest absolute entry, NaN where one is NaN; 0 without any."""
    if 0 in x.shape:
        return 0.0
    xp, x = problem.xp, problem.backend.stop_gradient(x)
    # Without a copy of all absolute values.
    return float(xp.maximum(xp.max(x), -xp.min(x)))


def _shared(scale: float) -> tuple[float, float]:
    """Factors of query and key, evenly: ‖q + k‖², which the features' variance grows with, is least so."""
    root = math.sqrt(abs(scale))
    return math.copysign(root, scale), root


def _shape(x: Any) -> str:
    return str(tuple(x.shape))
