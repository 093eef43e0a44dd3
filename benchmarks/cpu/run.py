"""Case after case, each in a process of its own, into the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu.cases import Case, Result, Workload
from benchmarks.cpu.exact import PLAIN
from benchmarks.cpu.methods import SDPA, Method, own_methods
from benchmarks.cpu.peers import NOT_RUN, PEERS
from benchmarks.cpu.processes import ChildError, run_child
from benchmarks.cpu.record import Record
from benchmarks.cpu.stopping import Limits, reason_to_stop

# What a process may take beside its calls, which have limits of their own: draws, imports, exact rows.
SETUP_SECONDS, MOST_CALLS = 900.0, 10


@dataclass(frozen=True)
class Settings:
    """What every result depends on beside its case."""

    heads: int
    dim: int
    entries: int
    is_causal: bool
    seed: int
    threads: int
    n_pairs: int
    n_rows: int
    count_up_to: int
    most_seconds: float
    reference_seconds: float
    most_bytes: float

    def load(self, case: Case) -> Workload:
        """The inputs of a case."""
        return Workload(case.data, self.heads, case.length, self.dim, self.entries, self.is_causal, self.seed)

    def limits(self, method: str) -> Limits:
        """Of a method; Torch's own attention runs beside every other one, and so has less."""
        return Limits(self.reference_seconds if method == SDPA else self.most_seconds, self.most_bytes)


def choose(
    names: Sequence[str] | None, libraries: Sequence[str], is_causal: bool, missing: dict[str, str]
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods to run, Torch's own first and always, and why others are not."""
    known = own_methods(libraries) | {name: peer.method for name, peer in PEERS.items()}
    unknown = sorted({*(names or ())} - {*known})
    if unknown:
        raise ValueError(f"methods must be some of {', '.join(known)}, got {', '.join(unknown)}")
    wanted = {name: x for name, x in known.items() if names is None or name in {SDPA, *names}}
    absent = {name: why for name, why in missing.items() if name in wanted}
    if is_causal:
        reasons = {name: x.reason_not_causal for name, x in wanted.items()}
        absent |= {name: why for name, why in reasons.items() if why is not None}
    methods = {name: x for name, x in wanted.items() if name not in absent}
    return methods, absent | (NOT_RUN if names is None else {})


def cases(data: Sequence[str], lengths: Sequence[int], methods: Sequence[str]) -> list[Case]:
    """All cases, the shortest lengths of each kind of data first."""
    return [Case(d, n, name) for d in data for n in sorted(set(lengths)) for name in methods]


@dataclass(frozen=True)
class Run:
    """A run under way.

    Attributes
    ----------
    settings : Settings
    methods : dict
    record : Record
    folder : Path
        For exact outputs, which the processes share.
    """

    settings: Settings
    methods: dict[str, Method]
    record: Record
    folder: Path

    def measure(self, case: Case) -> Result:
        """Measure a case, or say why not."""
        limits = self.settings.limits(case.method)
        reason = reason_to_stop(self.record.earlier(case), case.length, limits)
        if reason is not None:
            return Result(case, reason)
        try:
            return Result(case, **self._child("measure", self._arguments(case)))
        except ChildError as error:
            return Result(case, f"failed at n = {case.length}: {error}")

    def _arguments(self, case: Case) -> dict[str, Any]:
        own = self.settings
        reference = self.record.results.get(Case(case.data, case.length, SDPA))
        return {
            "load": asdict(own.load(case)),
            "method": case.method,
            "threads": own.threads,
            "is_paired": case.method == SDPA or (reference is not None and reference.reason is None),
            "is_counted": case.length <= own.count_up_to,
            "n_pairs": own.n_pairs,
            "most_seconds": own.most_seconds,
            "exact_path": str(self._exact(case, self.methods[case.method].target)),
        }

    def _exact(self, case: Case, target: str) -> Path:
        """The file with exact outputs, made where it is missing."""
        path = self.folder / f"{case.data}-{case.length}-{'plain' if target == PLAIN else 'shared'}.npy"
        if not path.exists():
            load = asdict(self.settings.load(case))
            self._child(
                "exact", {"load": load, "target": target, "n_rows": self.settings.n_rows, "path": str(path)}
            )
        return path

    def _child(self, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
        patience = SETUP_SECONDS + MOST_CALLS * self.settings.most_seconds
        return run_child(kind, arguments, self.settings.threads, patience)
