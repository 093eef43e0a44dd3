"""What the system refuses: full and closed streams, circles of links, deleted folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ATTEND, listing, mistake, shell

on_posix = pytest.mark.skipif(os.name != "posix", reason="devices, links and closed streams of POSIX")
with_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@with_full
@pytest.mark.parametrize("arguments", [["methods"], ["--version"], ["attend", "--help"], ATTEND])
def test_full_standard_output_is_told_in_one_line(folder, arguments):
    before = listing()
    done = shell('"$@" >/dev/full', *arguments)
    told = "scatterbrain: error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, told)
    assert listing() == before


@on_posix
@pytest.mark.parametrize("arguments", [["methods"], ATTEND])
def test_closed_standard_output_is_told_in_one_line(folder, arguments):
    before = listing()
    done = shell('"$@" >&-', *arguments)
    told = "scatterbrain: error: standard output cannot be written: it is closed\n"
    assert (done.returncode, done.stderr) == (2, told)
    assert listing() == before


@with_full
@pytest.mark.parametrize("place", ["/dev/full", "&-"])
def test_mistake_that_nobody_hears_of_has_its_exit_code(place):
    done = shell(f'"$@" 2>{place}', "attend")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@on_posix
def test_progress_that_nobody_sees_is_no_error(folder):
    done = shell('"$@" 2>&-', "compare", "q.npy", "k.npy", "v.npy", "--seeds", "1", "--method", "exact")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nexact " in done.stdout


def make_loop():
    Path("loop1.npy").symlink_to("loop2.npy")
    Path("loop2.npy").symlink_to("loop1.npy")


@on_posix
def test_circle_of_links_is_told_in_one_line(folder, capsys):
    make_loop()
    told = mistake(capsys, ["attend", "loop1.npy", *ATTEND[2:]])
    assert told == "loop1.npy cannot be read as a .npy file: Too many levels of symbolic links"
    told = mistake(capsys, [*ATTEND[:-1], "loop1.npy"])
    assert told == "--output loop1.npy cannot be written: its symbolic links go round in a circle"


@on_posix
@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["attend", "{}/q.npy", "{}/k.npy", "{}/v.npy", "-o", "out.npy"], "--output out.npy"),
     (["attend", "q.npy", "{}/k.npy", "{}/v.npy", "-o", "{}/out.npy"], "q.npy"),
     (["demo", "--output", "x.png"], "--output x.png")],
)  # fmt: skip
def test_working_folder_that_was_deleted_is_told_in_one_line(folder, arguments, named):
    before = listing()
    done = shell('mkdir gone && cd gone && rmdir ../gone && "$@"', *(x.format(folder) for x in arguments))
    told = f"scatterbrain: error: {named} cannot be found: the working folder no longer exists\n"
    assert (done.returncode, done.stderr) == (2, told)
    assert listing() == before


def test_ctrl_c_while_the_modules_are_read_is_told_in_one_line():
    script = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'scatterbrain_core.cli.command':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from scatterbrain_core.cli import main\n"
        "sys.exit(main(['methods']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "scatterbrain: interrupted\n")
