"""What all layers of all models use: by an ordinary call, or by environment variables read at import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from scatterbrain_core import Scatterbrain
from scatterbrain_core._checks import as_index, type_name
from scatterbrain_core.planning import check_budget
from scatterbrain_core.presets import resolve_method


@dataclass(frozen=True)
class Settings:
    """How attention is computed.

    Attributes
    ----------
    method : str or Scatterbrain
        As `scatterbrain_core.attention` takes it.
    budget : float, in (0, 1]
        Entries kept a query, as a fraction of the keys.
    exact_below : int
        With fewer queries or fewer keys than this attention is exact.
    seed : int
        Of all draws; every layer and every call has the same.

    Raises
    ------
    TypeError, ValueError
        Naming the setting, what came and what was expected.
    """

    method: str | Scatterbrain = "auto"
    budget: float = 0.125
    exact_below: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        resolve_method(self.method)
        object.__setattr__(self, "budget", check_budget(self.budget))
        for name in ("exact_below", "seed"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))


def _count(name: str, value: Any) -> int:
    # No generator as seed: a layer that gradient checkpointing runs again must draw the same again.
    number = as_index(value)
    if number is None:
        raise TypeError(f"{name} must be an int, got {type_name(value)}")
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


# From the text of a variable to the setting.
_READERS: dict[str, Callable[[str], Any]] = {
    "method": str,
    "budget": lambda text: float(Fraction(text)),
    "exact_below": int,
    "seed": int,
}


def from_environment(environment: Mapping[str, str]) -> Settings:
    """The defaults, less what SCATTERBRAIN_METHOD, _BUDGET, _EXACT_BELOW and _SEED say.

    Raises
    ------
    ValueError
        Naming the variable and what it holds.
    """
    settings = Settings()
    for name, read in _READERS.items():
        variable = f"SCATTERBRAIN_{name.upper()}"
        if variable not in environment:
            continue
        try:
            settings = replace(settings, **{name: read(environment[variable])})
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{variable} is {environment[variable]!r}: {error}") from error
    return settings


_settings = from_environment(os.environ)


def current() -> Settings:
    """The settings now in force."""
    return _settings


def configure(
    *,
    method: str | Scatterbrain | None = None,
    budget: float | None = None,
    exact_below: int | None = None,
    seed: int | None = None,
) -> Configured:
    """Change settings, for all models, from now on or for the length of a ``with`` block.

    What is not given stays as it is. The environment variables SCATTERBRAIN_METHOD, SCATTERBRAIN_BUDGET (also
    as 1/8), SCATTERBRAIN_EXACT_BELOW and SCATTERBRAIN_SEED, read at import, say what they are at first.

    Parameters
    ----------
    method : str or Scatterbrain, optional
        A name of `scatterbrain_core.methods` or the parts themselves; "auto" at first.
    budget : float, in (0, 1], optional
        Entries kept a query, as a fraction of the keys; 1/8 at first.
    exact_below : int, optional
        With fewer queries or fewer keys than this attention is exact, by Torch; 512 at first.
    seed : int, optional
        Of all draws; 0 at first.

    Returns
    -------
    context manager
        Left, it brings back what was in force before the call. Without ``with`` the change stays.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was expected.

    Examples
    --------
    >>> from scatterbrain_backends.transformers import configure, current
    >>> with configure(budget=0.25, method="scatterbrain"):
    ...     current().budget
    0.25
    >>> current().budget
    0.125
    """
    given: dict[str, Any] = {"method": method, "budget": budget, "exact_below": exact_below, "seed": seed}
    before = current()
    _put(replace(before, **{name: value for name, value in given.items() if value is not None}))
    return Configured(before)


class Configured:
    """A change of settings; as a context manager it is undone at the end of the block."""

    def __init__(self, before: Settings) -> None:
        self._before = before

    def __enter__(self) -> Settings:
        return current()

    def __exit__(self, *exception: object) -> None:
        _put(self._before)


def _put(settings: Settings) -> None:
    global _settings
    _settings = settings
