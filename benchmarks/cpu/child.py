"""One measurement in a process of its own: ``python -m benchmarks.cpu.child JOB``, a line of JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.cases import Workload
from benchmarks.cpu.exact import exact_rows, relative_error
from benchmarks.cpu.machine import describe, set_threads
from benchmarks.cpu.memory import peak_of
from benchmarks.cpu.methods import LIBRARIES, Method, own_methods, sdpa
from benchmarks.cpu.pairs import in_turn
from benchmarks.cpu.peers import PEERS, missing
from benchmarks.shared.arrays import sampled_rows

# Keys of the call that warms up: more than entries, so that nothing falls back to all pairs.
WARM_LENGTH = 512


def all_methods() -> dict[str, Method]:
    """Every method by its name, those whose package is not installed included."""
    return own_methods(LIBRARIES) | {name: peer.method for name, peer in PEERS.items()}


def machine(threads: int) -> dict[str, Any]:
    """What the machine is, and which peers cannot be imported."""
    set_threads(threads)
    absent = {name: missing(peer) for name, peer in PEERS.items()}
    return {"machine": describe(), "absent": {name: why for name, why in absent.items() if why}}


def exact(load: dict[str, Any], target: str, n_rows: int, path: str) -> dict[str, Any]:
    """Write exact attention of the sampled rows to a .npy file."""
    own = Workload(**load)
    rows = sampled_rows(own.length, n_rows)
    np.save(path, exact_rows(own.draw(), rows, own.is_causal, target))
    return {}


def measure(
    load: dict[str, Any],
    method: str,
    threads: int,
    *,
    is_paired: bool,
    is_counted: bool,
    n_pairs: int,
    most_seconds: float,
    exact_path: str,
) -> dict[str, Any]:
    """Memory and error of a first call, times of further ones in turn with Torch's own, and the cost."""
    set_threads(threads)
    own, chosen = Workload(**load), all_methods()[method]
    warm_up(chosen, own, is_paired)
    arrays = own.draw()
    prepared = chosen.prepare(arrays, own)
    output, resident, peak, is_lower_bound = peak_of(prepared.call)
    exact_output = np.load(Path(exact_path))
    rows = sampled_rows(own.length, exact_output.shape[1])
    error = relative_error(prepared.rows(output, rows), exact_output)
    del output
    cost = chosen.cost(arrays if is_counted else None, own)
    reference = sdpa(arrays, own).call if is_paired else None
    if not is_paired:
        del arrays
    reference_times, times = in_turn(reference, prepared.call, n_pairs, most_seconds)
    return {
        "times": times,
        "reference_times": reference_times,
        "peak_bytes": peak,
        "resident_bytes": resident,
        "is_lower_bound": is_lower_bound,
        "error": error,
        **vars(cost),
    }


def warm_up(method: Method, load: Workload, is_paired: bool) -> None:
    """Call everything once at a small length: imports, pools of threads, tables of plans."""
    small = replace(load, length=min(WARM_LENGTH, load.length))
    arrays = small.draw()
    method.prepare(arrays, small).call()
    if is_paired:
        sdpa(arrays, small).call()


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"machine": machine, "exact": exact, "measure": measure}


def main() -> None:
    """Do the job; what packages print goes to standard error."""
    kind, arguments = json.loads(sys.argv[1])
    with redirect_stdout(sys.stderr):
        found = JOBS[kind](**arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
