"""Checks of plain arguments, shared by the parts and the public calls."""

from __future__ import annotations

import math
import operator
from dataclasses import fields
from numbers import Real
from typing import Any

# What a part does that is fitted to all rows of a head.
STATISTICS = "take statistics of all queries and keys"


def type_name(value: Any) -> str:
    """Name of the type of `value`, with its module where it is not a built-in."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def call_of(part: Any) -> str:
    """The call that makes a part, a dataclass, without what is left at its default."""
    stated = [f for f in fields(part) if getattr(part, f.name) != f.default]
    return f"{type(part).__name__}({', '.join(f'{f.name}={getattr(part, f.name)!r}' for f in stated)})"


def as_index(value: Any) -> int | None:
    """`value` as an int; None where it is no integer, as a bool is not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


# Sizes and rows are counted in integers that may have 32 bits.
LARGEST_COUNT = 2**31 - 1


def set_count(part: Any, name: str, at_least: int, at_most: int = LARGEST_COUNT) -> None:
    """Make the field of a part an int, of whatever type it came; raise unless it is None or in the range."""
    value = getattr(part, name)
    if value is not None:
        object.__setattr__(part, name, require_count(name, value, at_least, at_most))


def require_count(name: str, value: Any, at_least: int = 1, at_most: int = LARGEST_COUNT) -> int:
    """`value` as an int; raise unless it is one in the range, for an argument that may be None too."""
    expected = f"an int of at least {at_least} and at most {at_most}"
    number = as_index(value)
    if number is None:
        raise TypeError(f"{name} must be {expected} or None, got {type_name(value)}")
    if not at_least <= number <= at_most:
        raise ValueError(f"{name} must be {expected}, got {number}")
    return number


def set_at_least(part: Any, name: str, least: float, is_open: bool = False) -> None:
    """Make the field of a part a float; raise unless it is None or finite and not below `least`.

    Where `is_open` it must be above.
    """
    value = getattr(part, name)
    if value is None:
        return
    expected = f"a finite number {'above' if is_open else 'of at least'} {least:g} or None"
    number = require_real(name, value, expected)
    if not math.isfinite(number) or number < least or (is_open and number == least):
        raise ValueError(f"{name} must be {expected}, got {number}")
    object.__setattr__(part, name, number)


def require_bool(name: str, value: Any) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type_name(value)}")


def require_real(name: str, value: Any, expected: str) -> float:
    """`value` as a float, inf where it is too large for one; raise unless it is a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {expected}, got {type_name(value)}")
    try:
        return float(value)
    except OverflowError:
        return float("inf")
