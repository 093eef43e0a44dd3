"""Checks of plain arguments, shared by the parts and the public calls."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any


def type_name(value: Any) -> str:
    """Name of the type of `value`, with its module where it is not a built-in."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def as_index(value: Any) -> int | None:
    """`value` as an int; None where it is no integer, as a bool is not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def require_count(name: str, value: Any, at_least: int, at_most: int | None = None) -> None:
    """Raise unless `value` is None or an int in the stated range."""
    if value is None:
        return
    expected = f"an int of at least {at_least}" + ("" if at_most is None else f" and at most {at_most}")
    number = as_index(value)
    if number is None:
        raise TypeError(f"{name} must be {expected} or None, got {type_name(value)}")
    if number < at_least or (at_most is not None and number > at_most):
        raise ValueError(f"{name} must be {expected}, got {number}")


def require_at_least(name: str, value: Any, least: float, is_open: bool = False) -> None:
    """Raise unless `value` is None or a finite number not below `least`, nor at it where `is_open`."""
    if value is None:
        return
    expected = f"a finite number {'above' if is_open else 'of at least'} {least:g} or None"
    number = require_real(name, value, expected)
    if not math.isfinite(number) or number < least or (is_open and number == least):
        raise ValueError(f"{name} must be {expected}, got {number}")


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
