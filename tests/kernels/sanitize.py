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
# Kernel and number of the bug: whether ThreadSanitizer is to see a race, of threads of a block; where
# these share nothing, of blocks.
RACES = {
    ("tile_partial", 0): False,
    **{("tile_partial", bug): True for bug in (1, 2, 3)},
    ("tile_partial_half", 0): False,
    **{("tile_partial_half", bug): True for bug in (1, 2)},
    ("running_merge", 0): False,
    ("running_merge", 5): True,
    ("half_rows", 0): False,
    ("sort_numbers", 0): False,
    ("bucket_intervals", 0): False,
    ("hyperplane_codes", 0): False,
    **{("hyperplane_codes", bug): True for bug in (1, 2, 5)},
    ("segment_sum", 0): False,
    ("segment_sum", 1): True,
}
BETWEEN_BLOCKS = {"half_rows", "running_merge", "sort_numbers", "bucket_intervals"}
RACE_CODE, RACE_OPTIONS = 66, "ignore_noninstrumented_modules=1 halt_on_error=1 history_size=4"


def main() -> int:
    """Run all; print a line each."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [("address", name, 0, False) for name, bug in RACES if bug == 0]
        runs += [("thread", *which, is_race) for which, is_race in RACES.items()]
        results = [_is_as_expected(*run, folder) for run in runs]
    return 0 if all(results) else 1


def _is_as_expected(kind: str, name: str, bug: int, is_race: bool, folder: str) -> bool:
    command = [sys.executable, __file__, kind, name, str(bug), folder]
    if kind == "thread":  # its shadow memory stands at fixed addresses
        command = ["setarch", platform.machine(), "-R", *command]
    done = subprocess.run(command, env=_environment(kind, name), capture_output=True, text=True)
    is_good = done.returncode == (RACE_CODE if is_race else 0)
    said = "as expected" if is_good else f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
    print(f"{name}, {kind}, planted bug {bug}: {said}", flush=True)
    return is_good


def _environment(kind: str, name: str) -> dict[str, str]:
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
        "SHIM_TSAN_BLOCKS": str(int(name in BETWEEN_BLOCKS)),
    }
    return {**os.environ, **options}


def run_cases(kind: str, name: str, bug: int, folder: str) -> None:
    """Run some cases of a kernel in this process, which the sanitizer watches."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from kernels.host import HostKernels
    from scatterbrain_backends.cupy_.forms import HalfTile, Tile

    form = {
        "tile_partial": ("float32", Tile(32, 4, 16, 4)),
        "tile_partial_half": ("float16", HalfTile(32, 4, 16)),
    }
    dtype, tile = form.get(name, ("float32", None))
    # No compiler under the sanitizer's own library.
    preloaded = os.environ.pop("LD_PRELOAD")
    plain = INSTANTIATIONS.get(name, f"{name}<float>")
    kernel = plain if tile is None else tile.kernel(dtype)
    kernels = HostKernels(name, [kernel], Path(folder), ADDRESS if kind == "address" else THREAD)
    os.environ["LD_PRELOAD"] = preloaded
    if tile is None:
        WITHOUT_FORM[name](kernels, bug)
    else:
        _run_tiles(kernels, tile, dtype, bug)


def _run_tiles(kernels, tile, dtype: str, bug: int) -> None:
    import numpy as np

    from kernels.cases import Case, error, make_visits, prepare

    odd = Case(n_queries=20, n_keys=30, dim=7, columns=6, n_visits=3, dtype=dtype)
    for case in (Case(n_excluded=1, dtype=dtype), odd):
        for order in ("forwards", "random"):
            visits = make_visits(np.random.default_rng(1), case)
            launch, ref, acc = prepare(visits, tile)
            kernels.run(launch, order=order, bug=bug)
            assert bug or error(visits, ref, acc) < 1e-4


def _run_sums(kernels, bug: int) -> None:
    import numpy as np

    from scatterbrain_backends.cupy_.launches import segment_sum

    ends = np.asarray([0, 3, 40, 70])
    rows, total = np.ones((70, 5), np.float32), np.zeros((3, 5), np.float32)
    kernels.run(segment_sum(rows, np.arange(70), ends[:-1], ends[1:], total), bug=bug)
    assert bug or (total[:, 0] == np.diff(ends)).all()


def _run_merges(kernels, bug: int) -> None:
    import numpy as np

    from kernels.merges import by_definition, error, make_states, prepare

    states = make_states(np.random.default_rng(1))
    launch, *merged = prepare(*states)
    kernels.run(launch, bug=bug)
    assert bug or error(*merged, *by_definition(*states)) < 1e-4


def _run_numbers(kernels, bug: int) -> None:
    import numpy as np

    from scatterbrain_backends.cupy_.launches import sort_numbers

    bucket, rank = np.arange(300) // 7, np.linspace(-3, 5, 300, dtype=np.float32)
    number = np.zeros(300, np.int64)
    kernels.run(sort_numbers(bucket, rank, number), bug=bug)
    assert (np.diff(number) > 0).all()


def _run_intervals(kernels, bug: int) -> None:
    import numpy as np

    from scatterbrain_backends.cupy_.launches import bucket_intervals

    keys, queries = np.arange(300) // 7 << 32, np.arange(410)[::-1] // 9 << 32
    found = np.zeros((3, len(queries)), np.int64)
    kernels.run(bucket_intervals(keys, queries, *found), bug=bug)
    np.testing.assert_array_equal(found[0], np.searchsorted(keys, queries))
    np.testing.assert_array_equal(found[1], np.searchsorted(keys, queries, "right"))


def _run_codes(kernels, bug: int) -> None:
    import numpy as np

    from scatterbrain_backends.cupy_.launches import hyperplane_codes

    rng = np.random.default_rng(1)
    x, directions = (rng.standard_normal((n, 70)).astype(np.float32) for n in (70, 10))
    code, projection = np.zeros(70, np.int64), np.zeros(70, np.float32)
    kernels.run(hyperplane_codes(x, directions, code, projection, n_bits=9), bug=bug)
    np.testing.assert_array_equal(code, (x @ directions[:9].T >= 0) @ 2 ** np.arange(9)[::-1])


def _run_halves(kernels, bug: int) -> None:
    import numpy as np

    from kernels.cases import bits_of
    from scatterbrain_backends.cupy_.launches import half_rows

    x = np.random.default_rng(1).standard_normal((70, 8)).astype(np.float32)
    rows = np.zeros((70, 8), np.int16)
    kernels.run(half_rows(x, rows, dtype="float16", width=7, factor=1.0), bug=bug)
    np.testing.assert_array_equal(rows, bits_of(x[:, :7], "float16"))


INSTANTIATIONS = {"half_rows": "half_rows<Float16>", "bucket_intervals": "bucket_intervals"}
WITHOUT_FORM = {
    "half_rows": _run_halves,
    "segment_sum": _run_sums,
    "running_merge": _run_merges,
    "sort_numbers": _run_numbers,
    "bucket_intervals": _run_intervals,
    "hyperplane_codes": _run_codes,
}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    run_cases(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
