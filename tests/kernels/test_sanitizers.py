"""The kernels are clean under the sanitizers, and ThreadSanitizer sees the barriers that are left out."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from kernels import sanitize


def _libraries():
    """Whether g++ and its sanitizers are here, and addresses may be fixed, as ThreadSanitizer needs."""
    if shutil.which("g++") is None or shutil.which("setarch") is None:
        return False
    command = ["g++", "-x", "c++", "-", "-o", "/dev/null"]
    program = "int main() { return 0; }"
    flags = [["-fsanitize=address,undefined"], ["-fsanitize=thread"]]
    commands = [*([*command, *more] for more in flags), ["setarch", platform.machine(), "-R", "true"]]
    done = [subprocess.run(x, input=program, text=True, capture_output=True) for x in commands]
    return all(x.returncode == 0 for x in done)


def test_sanitizers_see_the_planted_races_and_nothing_else(capfd):
    if not _libraries():
        pytest.skip("g++ with its sanitizers, and setarch, are needed")
    code = sanitize.main()
    assert code == 0, capfd.readouterr().out
