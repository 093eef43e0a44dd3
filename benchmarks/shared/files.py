"""Results as JSON, and which of them belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scatterbrain_core.cli.files import write_whole

DIGITS = 6


def write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """Write a file whole or not at all, its folder too where it is missing."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({str(path): lambda file: file.write(f"{text}\n".encode())})


def rounded(value: Any) -> Any:
    """The same with all floats rounded to so many digits; JSON needs no more."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return value


def check_same(one: Mapping[str, Any], other: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Raise where results with these settings must not stand in one table."""
    for name in sorted({*one, *other} - set(free)):
        if one.get(name) != other.get(name):
            raise ValueError(
                f"{name} must be the same in all results, got {one.get(name)} and {other.get(name)}"
            )
