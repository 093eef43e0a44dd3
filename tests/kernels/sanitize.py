"""The kernels on the CPU under sanitizers: ``python tests/kernels/sanitize.py``; exit code 0 where clean.

AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer, which sees a missing barrier whether
or not it spoils a sum: planted ones are to be seen too. It needs g++, and takes some seconds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent.parent
CHECKS = "-fsanitize=address,undefined,bounds-strict"
ADDRESS = ("-O1", CHECKS, "-fno-sanitize-recover=all", "-fno-sanitize=vptr")
THREAD = ("-O1", "-fsanitize=thread")
# Number of the bug: whether ThreadSanitizer is to see a race.
RACES = {0: False, 1: True, 2: True, 3: True}
RACE_CODE, RACE_OPTIONS = 66, "ignore_noninstrumented_modules=1 halt_on_error=1 history_size=4"


def main() -> int:
    """Run all; print a line each."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [("address", 0, False), *(("thread", bug, is_race) for bug, is_race in RACES.items())]
        results = [_is_as_expected(*run, folder) for run in runs]
    return 0 if all(results) else 1


def _is_as_expected(kind: str, bug: int, is_race: bool, folder: str) -> bool:
    command = [sys.executable, __file__, kind, str(bug), folder]
    if kind == "thread":  # its shadow memory stands at fixed addresses
        command = ["setarch", platform.machine(), "-R", *command]
    done = subprocess.run(command, env=_environment(kind), capture_output=True, text=True)
    is_good = done.returncode == (RACE_CODE if is_race else 0)
    said = "as expected" if is_good else f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
    print(f"{kind}, planted bug {bug}: {said}", flush=True)
    return is_good


def _environment(kind: str) -> dict[str, str]:
    names = ("libasan.so", "libubsan.so") if kind == "address" else ("libtsan.so",)
    paths = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in names
    ]
    options = {
        "LD_PRELOAD": " ".join(path.strip() for path in paths),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": f"{RACE_OPTIONS} exitcode={RACE_CODE}",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return {**os.environ, **options}


def run_cases(kind: str, bug: int, folder: str) -> None:
    """Run some cases in this process, which the sanitizer watches."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import numpy as np

    from kernels.cases import Case, error, make_visits, prepare
    from kernels.host import HostKernels
    from scatterbrain_backends.cupy_.launches import Tile, segment_sum

    tile = Tile(32, 4, 16, 4)
    flags = ADDRESS if kind == "address" else THREAD
    # No compiler under the sanitizer's own library.
    preloaded = os.environ.pop("LD_PRELOAD")
    kernels = HostKernels("tile_partial", [tile.kernel("float32")], Path(folder), flags)
    sums = HostKernels("segment_sum", ["segment_sum<float>"], Path(folder), flags)
    os.environ["LD_PRELOAD"] = preloaded
    for case in (Case(n_excluded=1), Case(n_queries=20, n_keys=30, dim=7, columns=6, n_visits=3)):
        for order in ("forwards", "random"):
            visits = make_visits(np.random.default_rng(1), case)
            launch, ref, acc = prepare(visits, tile)
            kernels.run(launch, order=order, bug=bug)
            assert bug or error(visits, ref, acc) < 1e-4
    ends = np.asarray([0, 3, 40, 70])
    rows, total = np.ones((70, 5), np.float32), np.zeros((3, 5), np.float32)
    sums.run(segment_sum(rows, np.arange(70), ends[:-1], ends[1:], total))
    assert (total[:, 0] == np.diff(ends)).all()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    run_cases(sys.argv[1], int(sys.argv[2]), sys.argv[3])
