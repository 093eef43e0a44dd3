"""The results as a file: read again to go on where a run stopped, and to show it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu.cases import Case, Result
from benchmarks.shared.files import rounded, write_json
from benchmarks.shared.provenance import commit, now, versions

PACKAGES = ("scatterbrain-core", "numpy", "numba", "torch", "threadpoolctl", "array-api-compat", "einops")


@dataclass
class Record:
    """All that is known of a run.

    Attributes
    ----------
    header : dict
        Date, command, commit, versions and machine.
    settings : dict
        What every result depends on beside its case.
    methods : dict
        From a method's name to what it is.
    absent : dict
        From the name of a method that was not run at all to the reason.
    results : dict
        From a case to what was found of it.
    """

    header: dict[str, Any]
    settings: dict[str, Any]
    methods: dict[str, str]
    absent: dict[str, str]
    results: dict[Case, Result] = field(default_factory=dict)

    def earlier(self, case: Case) -> list[Result]:
        """Results of the same method and data at shorter lengths, the shortest first."""
        same = [x for x in self.results if (x.data, x.method) == (case.data, case.method)]
        return [self.results[x] for x in sorted(same, key=lambda x: x.length) if x.length < case.length]

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        content = vars(self) | {"results": [rounded(asdict(x)) for x in self.results.values()]}
        write_json(path, content, indent=1)


def load(path: Path) -> Record:
    """Read what `Record.save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = [Result(**(row | {"case": Case(**row["case"])})) for row in content.pop("results")]
    return Record(**content, results={x.case: x for x in found})


def header(machine: dict[str, Any], packages: tuple[str, ...]) -> dict[str, Any]:
    """Date, command, commit, versions and the machine as a child saw it."""
    return {
        "date": now(),
        "command": shlex.join(["python", "-m", "benchmarks.cpu", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(PACKAGES + packages),
        "machine": machine,
    }
