"""Helpers of the tests of the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from scatterbrain_core.cli import main

SHAPE = (4, 40, 8)
COMMAND = [sys.executable, "-m", "scatterbrain_core.cli"]
ATTEND = ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy"]


def arrays():
    return [np.load(f"{name}.npy") for name in "qkv"]


def attend(*more, output="out.npy"):
    return main(["attend", "q.npy", "k.npy", "v.npy", "-o", output, *more])


def listing():
    return sorted(path.name for path in Path().iterdir())


def mistake(capsys, arguments):
    """Run a command that must fail; return its one line after checking that it left nothing behind."""
    before = listing()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("scatterbrain: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert listing() == before
    return err.removeprefix("scatterbrain: error: ").rstrip("\n")


def shell(command, *arguments):
    """Run ``scatterbrain`` in a shell; "$@" in `command` stands for it and its arguments."""
    line = ["sh", "-c", command, "sh", *COMMAND, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
