"""Arrays that record what is done to them, and the namespace that takes them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from array_api_compat import device

from scatterbrain_core._typing import Namespace
from scatterbrain_core.differentiation.rules import (
    CONSTANT,
    RULES,
    RULES_OF_LISTS,
    Rule,
    get_item,
    rules_of_list,
)
from scatterbrain_core.differentiation.tape import Node, Tape, leaf


class Traced:
    """An array, and the node of its value on a tape.

    Parameters
    ----------
    value : array
    tape : Tape
    node : Node or None
        None for a constant.
    """

    __slots__ = ("node", "tape", "value")
    __array_ufunc__ = None  # leaves NumPy's operators to the methods below

    def __init__(self, value: Any, tape: Tape, node: Node | None) -> None:
        self.value, self.tape, self.node = value, tape, node

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.value.shape)

    @property
    def ndim(self) -> int:
        """Number of its axes."""
        return int(self.value.ndim)

    @property
    def dtype(self) -> Any:
        """Its dtype."""
        return self.value.dtype

    @property
    def device(self) -> Any:
        """Its device."""
        return device(self.value)

    def __getitem__(self, key: Any) -> Any:
        return recorded("indexing", operator.getitem, (get_item,), (self, key))

    def __add__(self, other: Any) -> Any:
        return _operator("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return _operator("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return _operator("subtract", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _operator("subtract", other, self)

    def __mul__(self, other: Any) -> Any:
        return _operator("multiply", self, other)

    def __rmul__(self, other: Any) -> Any:
        return _operator("multiply", other, self)

    def __truediv__(self, other: Any) -> Any:
        return _operator("divide", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _operator("divide", other, self)

    def __pow__(self, other: Any) -> Any:
        return _operator("pow", self, other)

    def __neg__(self) -> Any:
        return _operator("negative", self)

    # Comparisons are constants.
    def __lt__(self, other: Any) -> Any:
        return self.value < untraced(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= untraced(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > untraced(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= untraced(other)

    def __eq__(self, other: object) -> Any:
        return self.value == untraced(other)

    def __ne__(self, other: object) -> Any:
        return self.value != untraced(other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("a traced array has no truth value; take stop_gradient first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a traced array met a function of NumPy that is not of its traced namespace")


UNRECORDED = leaf(())
"""The node of every variable computed while the tape is paused."""


def is_variable(x: Any) -> bool:
    """Whether something is differentiated with respect to `x`."""
    return isinstance(x, Traced) and x.node is not None


def constant(x: Any) -> Any:
    """`x` without its node."""
    return Traced(x.value, x.tape, None) if isinstance(x, Traced) else x


def untraced(x: Any) -> Any:
    """The array behind a traced one; anything else as it is."""
    return x.value if isinstance(x, Traced) else x


class TracedNamespace:
    """An array-API namespace whose functions take traced arrays too, and record what they do to them.

    A function without any traced argument is that of the namespace itself.

    Parameters
    ----------
    xp : namespace
    prefix : str
        What stands before the names of its functions: "linalg." in that extension.
    """

    def __init__(self, xp: Namespace, prefix: str = "") -> None:
        self._xp, self._prefix = xp, prefix

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._xp, name)
        if isinstance(member, ModuleType):
            member = TracedNamespace(member, f"{self._prefix}{name}.")
        elif callable(member) and not isinstance(member, type):  # dtypes of NumPy are types
            member = _function(self._prefix + name, member)
        setattr(self, name, member)
        return member


@cache
def traced_namespace(xp: Namespace) -> TracedNamespace:
    """The one traced namespace of a namespace."""
    return TracedNamespace(xp)


def _function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def of_list(arrays: Sequence[Any], /, **keywords: Any) -> Any:
        def spread(*arrays: Any, **keywords: Any) -> Any:
            return function(list(arrays), **keywords)

        return recorded(name, spread, rules_of_list(name, len(arrays)), arrays, keywords)

    def of_arrays(*arguments: Any, **keywords: Any) -> Any:
        if name in CONSTANT:
            arguments = tuple(map(constant, arguments))
        return recorded(name, function, RULES.get(name, ()), arguments, keywords)

    return of_list if name in RULES_OF_LISTS else of_arrays


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "pow": operator.pow,
    "negative": operator.neg,
}


def _operator(name: str, *arguments: Any) -> Any:
    return recorded(name, _OPERATORS[name], RULES[name], arguments)


def recorded(
    name: str,
    function: Callable[..., Any],
    rules: Sequence[Rule | None],
    arguments: Sequence[Any],
    keywords: dict[str, Any] | None = None,
) -> Any:
    """The result of an operation, recorded where an argument is traced."""
    keywords = keywords or {}
    inputs = (*arguments, *keywords.values())
    tapes = [x.tape for x in inputs if isinstance(x, Traced)]
    if not tapes:
        return function(*arguments, **keywords)
    tape, raw = tapes[0], [untraced(x) for x in arguments]
    value = function(*raw, **{word: untraced(x) for word, x in keywords.items()})
    if isinstance(value, tuple) and not any(is_variable(x) for x in inputs):
        return tuple(Traced(x, tape, None) for x in value)  # as eigh gives, of constants
    if not tape.backend.xp.isdtype(value.dtype, "real floating"):
        return value
    if not any(is_variable(x) for x in inputs):
        return Traced(value, tape, None)
    places = [k for k, x in enumerate(arguments) if is_variable(x)]
    _require_rules(name, rules, places, sum(map(is_variable, inputs)))
    if tape.is_paused:
        return Traced(value, tape, UNRECORDED)
    pullbacks = [(arguments[k].node, rules[k](tape.backend.xp, value, *raw, **keywords)) for k in places]  # type: ignore[misc]
    return Traced(value, tape, tape.record(value, pullbacks))


def _require_rules(name: str, rules: Sequence[Rule | None], places: Sequence[int], n_variable: int) -> None:
    """Raise where a variable is no positional argument, or one without a rule."""
    n_known = sum(k < len(rules) and rules[k] is not None for k in places)
    if n_known < n_variable:
        raise NotImplementedError(
            f"{name} has no rule of differentiation for this argument; "
            "take stop_gradient of it where it is a constant"
        )
