"""Where a result came from: date, commit and versions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def now() -> str:
    """Date and time to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str:
    """Return the commit of the checkout, with "-dirty" where files differ from it."""
    return first_line("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def first_line(*command: str) -> str:
    """First line that a command prints in this folder, or "unknown" where it fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of packages, those that are not installed included."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
