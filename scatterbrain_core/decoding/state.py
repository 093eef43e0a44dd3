"""The state of decoding as a plain dict of arrays: what it must hold, and what is checked of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from array_api_compat import array_namespace, device

from scatterbrain_core._checks import type_name
from scatterbrain_core._typing import Array
from scatterbrain_core.backend import Backend, library_name
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem, dtype_name
from scatterbrain_core.sparse import AllPairs, Hashing

State: TypeAlias = dict[str, Array]
CONFIGURATION = "configuration"
FORMAT = 1


@dataclass(frozen=True)
class Configuration:
    """What a state was made with; it travels in the state as JSON.

    Attributes
    ----------
    method : str
        repr of the method whose state it is.
    low_rank, sparse : dict or None
        Fields of its planned parts, and the "type" of each.
    scale : float
    seed : int
    enable_gqa : bool
    query_lead, key_lead : list of int
        Leading axes.
    dim, columns : int
        D and Dv.
    dtype : str
        Of the arrays that came.
    """

    method: str
    low_rank: dict[str, Any] | None
    sparse: dict[str, Any] | None
    scale: float
    seed: int
    enable_gqa: bool
    query_lead: list[int]
    key_lead: list[int]
    dim: int
    columns: int
    dtype: str

    def parts(self, method: Scatterbrain) -> Scatterbrain:
        """The planned parts of `method`, which keep all that it states itself."""
        kinds = {type(part).__name__: type(part) for part in (method.low_rank, method.sparse)}
        # A budget of all keys plans every pair, whatever the parts.
        fields = (self.low_rank, self.sparse)
        low_rank, sparse = (_part({"AllPairs": AllPairs} | kinds, x) for x in fields)
        for stated, part in ((method.low_rank, low_rank), (method.sparse, sparse)):
            if type(part) is type(stated) and _stated(stated).items() - _stated(part).items():
                raise ValueError
        return Scatterbrain(low_rank, sparse)


def configure(
    method: Scatterbrain, parts: Scatterbrain, query: Any, key: Any, value: Any, **facts: Any
) -> Configuration:
    """Configuration of a first call, from its arguments and planned parts."""
    fields = [_fields(part) for part in (parts.low_rank, parts.sparse)]
    return Configuration(
        method=repr(method),
        low_rank=fields[0],
        sparse=fields[1],
        query_lead=list(query.shape[:-2]),
        key_lead=list(key.shape[:-2]),
        dim=query.shape[-1],
        columns=value.shape[-1],
        dtype=dtype_name(query),
        **facts,
    )


def _fields(part: Any) -> dict[str, Any] | None:
    return None if part is None else {"type": type(part).__name__} | asdict(part)


def _stated(part: Any) -> dict[str, Any]:
    return {} if part is None else {name: x for name, x in asdict(part).items() if x is not None}


def _part(kinds: dict[str, Any], fields: dict[str, Any] | None) -> Any:
    if fields is None:
        return None
    stated = dict(fields)
    return kinds[stated.pop("type")](**stated)


def pack(configuration: Configuration, backend: Backend, like: Array) -> Array:
    """The configuration as an array of bytes."""
    text = json.dumps({"format": FORMAT} | asdict(configuration))
    xp = backend.xp
    return xp.asarray(list(text.encode()), dtype=xp.uint8, device=device(like))


def restore(
    method: Scatterbrain, state: Any, backend: Backend, query: Any
) -> tuple[Configuration, Scatterbrain, State]:
    """Configuration, planned parts and arrays of a state, in the library and on the device of `query`.

    A state that was loaded by NumPy is moved there.

    Raises
    ------
    TypeError, ValueError
        It is no state, or not one of this method.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dict of arrays, as prefill gives it, got {type_name(state)}")
    if CONFIGURATION not in state:
        raise ValueError(f"state must hold {CONFIGURATION!r}, got {sorted(map(str, state))}")
    arrays = {str(name): _moved(backend, str(name), x, query) for name, x in state.items()}
    try:
        configuration = _unpack(arrays.pop(CONFIGURATION))
        if configuration.method != repr(method):
            raise _ForeignStateError
        return configuration, configuration.parts(method), arrays
    except _ForeignStateError:
        raise ValueError(f"state must come from {method!r}, got one of {configuration.method}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        raise ValueError(
            f"state[{CONFIGURATION!r}] must be what prefill wrote in format {FORMAT}, got something else"
        ) from None


class _ForeignStateError(Exception):
    pass


def _moved(backend: Backend, name: str, x: Any, query: Any) -> Array:
    try:
        library = library_name(array_namespace(x))
    except TypeError:
        raise TypeError(f"state[{name!r}] must be an array, got {type_name(x)}") from None
    if library == library_name(backend.xp):
        if device(x) != device(query):
            raise ValueError(
                f"state[{name!r}] must be on the device of query, {device(query)}, got {device(x)}"
            )
        return x
    if library != "numpy":
        raise TypeError(
            f"state[{name!r}] must come from NumPy or the library of query, "
            f"{library_name(backend.xp)}, got {library}"
        )
    return backend.xp.asarray(x, device=device(query))


def _unpack(packed: Array) -> Configuration:
    """The configuration in an array of bytes; any of several errors where it is none."""
    fields = json.loads(bytes(_numbers(packed)))
    if fields.pop("format") != FORMAT:
        raise ValueError
    configuration = Configuration(**fields)
    kinds = {"method": str, "scale": float, "seed": int, "enable_gqa": bool, "dim": int, "columns": int}
    if not all(isinstance(fields[name], kind) for name, kind in kinds.items()):
        raise TypeError
    for lead in (configuration.query_lead, configuration.key_lead):
        if not all(isinstance(n, int) for n in lead):
            raise TypeError
    return configuration


def _numbers(packed: Array) -> list[int]:
    # One copy to the host where the library has it: an entry at a time would wait for a GPU at each.
    as_list = getattr(packed, "tolist", None)
    return as_list() if as_list else [int(packed[i]) for i in range(packed.shape[0])]


def check_step(configuration: Configuration, query: Any, key: Any, value: Any) -> None:
    """Raise where new tokens do not fit a state."""
    expected = {
        "query": (*configuration.query_lead, "t", configuration.dim),
        "key": (*configuration.key_lead, "t", configuration.dim),
        "value": (*configuration.key_lead, "t", configuration.columns),
    }
    for (name, shape), x in zip(expected.items(), (query, key, value), strict=True):
        got = tuple(x.shape)
        if got != (*shape[:-2], query.shape[-2], shape[-1]):
            shown = ", ".join(map(str, shape))
            raise ValueError(f"{name} must have the shape ({shown}) of the state, got {got}")
        if dtype_name(x) != configuration.dtype:
            raise TypeError(f"{name} must have the dtype {configuration.dtype} of the state, got {x.dtype}")


def check_arrays(
    state: State,
    expected: dict[str, tuple[Any, ...]],
    problem: Problem,
    parts: Scatterbrain,
    check_finite: bool,
) -> int:
    """Number of keys of a state whose arrays have the expected shapes, "n" standing for that number.

    Raises
    ------
    ValueError
        An array is missing, of another shape or dtype, out of range, or not finite.
    """
    if set(state) != set(expected):
        raise ValueError(f"state must hold {sorted(expected)}, got {sorted(state)}")
    xp = problem.xp
    length = _length(xp, state["length"])
    for name, shape in expected.items():
        x = state[name]
        wanted = tuple(length if size == "n" else size for size in shape)
        if tuple(x.shape) != wanted:
            raise ValueError(f"state[{name!r}] must have shape {wanted}, got {tuple(x.shape)}")
        if name == "code":
            _check_codes(xp, x, parts)
        elif name != "length" and x.dtype != problem.query.dtype:
            raise ValueError(f"state[{name!r}] must have dtype {problem.query.dtype}, got {x.dtype}")
        elif name != "length" and check_finite and not _is_sound(xp, name, x):
            raise ValueError(f"state[{name!r}] must be finite, got NaN or inf")
    return length


def _length(xp: Any, x: Array) -> int:
    if x.ndim == 0 and xp.isdtype(x.dtype, "integral") and int(x) >= 0:
        return int(x)
    shown = f"{x.dtype} {x}" if x.ndim == 0 else f"shape {tuple(x.shape)}"
    raise ValueError(f"state['length'] must be one integer, the number of keys, got {shown}")


def _check_codes(xp: Any, x: Array, parts: Scatterbrain) -> None:
    assert isinstance(parts.sparse, Hashing)
    if not xp.isdtype(x.dtype, "signed integer"):
        raise ValueError(f"state['code'] must be of signed integers, got {x.dtype}")
    if math.prod(x.shape) and (int(xp.min(x)) < 0 or int(xp.max(x)) >= parts.sparse.n_buckets):
        least, most = int(xp.min(x)), int(xp.max(x))
        raise ValueError(f"state['code'] must be in [0, {parts.sparse.n_buckets}), got {least} to {most}")


def _is_sound(xp: Any, name: str, x: Array) -> bool:
    # References are -inf where no key was seen.
    if name.endswith("ref"):
        return not bool(xp.any(xp.isnan(x) | (x == float("inf"))))
    return bool(xp.all(xp.isfinite(x)))
