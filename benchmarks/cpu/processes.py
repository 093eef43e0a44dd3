"""Children that measure: none is left behind, however this process ends but by SIGKILL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks.cpu.machine import environment

ROOT = Path(__file__).parents[2]


class ChildError(Exception):
    """A measurement that has no result, and why."""


def run_child(kind: str, arguments: dict[str, Any], threads: int, most_seconds: float) -> dict[str, Any]:
    """Run a job of `benchmarks.cpu.child` in a fresh process and return what it found.

    Raises
    ------
    ChildError
        It failed, was killed, or took longer than `most_seconds`.
    """
    command = [sys.executable, "-m", "benchmarks.cpu.child", json.dumps([kind, arguments])]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            out, err = child.communicate(timeout=most_seconds)
        except subprocess.TimeoutExpired:
            raise ChildError(f"killed after {most_seconds:.0f} s") from None
        finally:
            child.kill()  # where it has ended already, this does nothing
            child.wait()
    if child.returncode != 0:
        raise ChildError(_told(child.returncode, err))
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def _told(code: int, err: str) -> str:
    """Why a process ended so: the signal that killed it, or the last line of its traceback."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", for its memory perhaps" if name == "SIGKILL" else "")
    lines = err.strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {code}"


def end_as_interrupted() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that the child and the temporary files go."""

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, interrupt)
