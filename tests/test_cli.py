"""The commands attend, compare, methods and doctor, and how every mistake ends."""

import os
import stat
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import scatterbrain_core as sb
from scatterbrain_core._version import __version__
from scatterbrain_core.cli import attend as attend_command
from scatterbrain_core.cli import compare as compare_command
from scatterbrain_core.cli import doctor, files, main, measure
from scatterbrain_core.cli.libraries import LIBRARIES, Library

SHAPE = (4, 40, 8)
COMMAND = [sys.executable, "-m", "scatterbrain_core.cli"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with q.npy, k.npy, v.npy and some files that are no such thing."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(7)
    for name in "qkv":
        np.save(f"{name}.npy", draw.standard_normal(SHAPE).astype(np.float32))
    return tmp_path


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


# attend


@pytest.mark.parametrize("method", ["exact", "performer", "lsh", "scatterbrain"])
def test_attend_writes_what_the_library_returns(folder, capsys, method):
    assert attend("--method", method, "--budget", "1/4", "--seed", "3") == 0
    expected = sb.attention(*arrays(), method=method, budget=0.25, seed=3)
    written = np.load("out.npy")
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, expected)
    out, err = capsys.readouterr()
    assert "out.npy: float32 (4, 40, 8)" in out
    assert method in out
    assert err == ""


def test_attend_defaults_are_those_of_the_library(folder):
    assert attend() == 0
    np.testing.assert_array_equal(np.load("out.npy"), sb.attention(*arrays()))


def test_attend_passes_causal_and_scale_on(folder):
    assert attend("--method", "exact", "--causal", "--scale", "0.5") == 0
    expected = sb.attention(*arrays(), method="exact", is_causal=True, scale=0.5)
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_attend_passes_the_mask_on(folder):
    mask = np.arange(40) < 25
    np.save("mask.npy", mask[None])
    assert attend("--method", "exact", "--mask", "mask.npy") == 0
    query, key, value = arrays()
    expected = sb.attention(query, key[:, :25], value[:, :25], method="exact")
    np.testing.assert_allclose(np.load("out.npy"), expected, rtol=1e-5, atol=1e-6)


def test_attend_passes_grouped_heads_on(folder):
    query, key, value = arrays()
    np.save("k.npy", key[:2])
    np.save("v.npy", value[:2])
    assert attend("--method", "exact", "--gqa") == 0
    expected = sb.attention(query, key[:2], value[:2], method="exact", enable_gqa=True)
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_attend_writes_the_normaliser_and_the_standard_error(folder):
    assert attend("--method", "performer", "--lse", "lse.npy", "--stderr", "se.npy") == 0
    expected = sb.estimate(*arrays(), method="performer")
    np.testing.assert_array_equal(np.load("lse.npy"), expected.lse)
    np.testing.assert_array_equal(np.load("se.npy"), expected.stderr)


def test_attend_reads_the_other_byte_order(folder):
    for name, array in zip("qkv", arrays(), strict=True):
        np.save(f"{name}.npy", array.astype(array.dtype.newbyteorder()))
    assert attend() == 0
    np.testing.assert_array_equal(np.load("out.npy"), sb.attention(*(x.astype("f4") for x in arrays())))


def test_attend_takes_float64(folder):
    for name, array in zip("qkv", arrays(), strict=True):
        np.save(f"{name}.npy", array.astype(np.float64))
    assert attend("--method", "exact") == 0
    np.testing.assert_allclose(np.load("out.npy"), measure.dense_attention(*arrays()), rtol=1e-12)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_output_has_the_permissions_of_any_new_file(folder):
    Path("usual").touch()
    assert attend() == 0
    assert stat.S_IMODE(Path("out.npy").stat().st_mode) == stat.S_IMODE(Path("usual").stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="a link needs no privilege on POSIX alone")
def test_output_through_a_link_goes_where_the_link_points(folder):
    Path("deep").mkdir()
    Path("out.npy").symlink_to(Path("deep") / "real.npy")
    assert attend() == 0
    assert Path("out.npy").is_symlink()
    assert np.load(Path("deep") / "real.npy").shape == SHAPE


# mistakes


def write_mistakes():
    """Make the files that the mistakes below name."""
    query = np.load("q.npy")
    Path("text.npy").write_text("not an array")
    Path("cut.npy").write_bytes(Path("q.npy").read_bytes()[:500])
    Path("head.npy").write_bytes(Path("q.npy").read_bytes()[:20])
    Path("sub").mkdir()
    np.save("object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez("several.npz", q=query)
    np.save("int.npy", np.ones(SHAPE, dtype=np.int64))
    np.save("complex.npy", np.ones(SHAPE, dtype=np.complex64))
    np.save("flat.npy", query[0, 0])
    np.save("narrow.npy", query[..., :5])
    np.save("short.npy", query[:, :30])
    np.save("double.npy", query.astype(np.float64))
    np.save("nan.npy", np.where(query > 2, np.nan, query))
    np.save("float_mask.npy", np.ones((40, 40), dtype=np.float32))
    np.save("small_mask.npy", np.ones((40, 30), dtype=bool))


FLOATS = "{}.npy must hold floating-point numbers such as float32, got dtype {}"
INPUT_MISTAKES = {
    "missing": (["absent.npy", "k.npy", "v.npy"], "absent.npy cannot be read as a .npy file: No such file"),
    "folder": (["sub", "k.npy", "v.npy"], "sub cannot be read as a .npy file: Is a directory"),
    "text": (["text.npy", "k.npy", "v.npy"], "text.npy must be a .npy file"),
    "npz": (["several.npz", "k.npy", "v.npy"], "several.npz must be a .npy file"),
    "cut": (["cut.npy", "k.npy", "v.npy"], "cut.npy cannot be read as a .npy file: "),
    "cut head": (["head.npy", "k.npy", "v.npy"], "head.npy cannot be read as a .npy file: "),
    "pickle": (["object.npy", "k.npy", "v.npy"], "object.npy cannot be read as a .npy file: Object arrays"),
    "integers": (["int.npy", "k.npy", "v.npy"], FLOATS.format("int", "int64")),
    "complex": (["q.npy", "complex.npy", "v.npy"], FLOATS.format("complex", "complex64")),
    "one axis": (["q.npy", "k.npy", "flat.npy"], "flat.npy must have the shape (..., L, D), got (8,)"),
    "other D": (["q.npy", "narrow.npy", "v.npy"], "key is narrow.npy"),
    "other Lk": (["q.npy", "k.npy", "short.npy"], "value is short.npy"),
    "other dtype": (["q.npy", "k.npy", "double.npy"], "value is double.npy"),
    "NaN": (["q.npy", "nan.npy", "v.npy"], "key is nan.npy"),
    "mask dtype": (["q.npy", "k.npy", "v.npy", "--mask", "float_mask.npy"], "_mask.npy must hold booleans"),
    "mask shape": (["q.npy", "k.npy", "v.npy", "--mask", "small_mask.npy"], "(--mask is small_mask.npy)"),
}  # fmt: skip


@pytest.mark.parametrize("case", INPUT_MISTAKES)
@pytest.mark.parametrize("command", [["attend", "-o", "out.npy"], ["compare", "--seeds", "1"]])
def test_wrong_input_is_told_in_one_line(folder, capsys, command, case):
    write_mistakes()
    arguments, expected = INPUT_MISTAKES[case]
    assert expected in mistake(capsys, [command[0], *arguments, *command[1:]])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("sub", "--output sub must be a file, got a folder"),
        ("no/such/out.npy", "--output no/such/out.npy cannot be written: No such file or directory"),
        ("text.npy/out.npy", "--output text.npy/out.npy cannot be written: Not a directory"),
        ("q.npy", "--output q.npy must be a file of its own, got the one of query"),
        ("sub/../k.npy", "--output sub/../k.npy must be a file of its own, got the one of key"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_output_that_cannot_be_is_refused_before_the_work(folder, capsys, monkeypatch, output, expected):
    write_mistakes()
    monkeypatch.setattr(attend_command, "read_operands", lambda _: pytest.fail("the work began"))
    assert expected in mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", output])


@pytest.mark.skipif(os.name != "posix", reason="a device file of POSIX")
def test_device_is_not_replaced_by_a_file(folder, capsys):
    told = mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", os.devnull])
    assert "must be a regular file, got a device" in told
    assert not Path(os.devnull).is_file()


def test_two_outputs_in_one_file_are_refused(folder, capsys):
    told = mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy", "--lse", "./out.npy"])
    assert "--lse ./out.npy must be a file of its own, got the one of --output" in told


def test_folder_that_takes_no_file_is_named(folder, capsys, monkeypatch):
    Path("sub").mkdir()
    arguments = ["attend", "q.npy", "k.npy", "v.npy", "-o", str(Path("sub") / "out.npy")]
    with monkeypatch.context() as patched:
        patched.setattr(files, "_beside", lambda target: _Refusing(target))
        told = mistake(capsys, arguments)
    assert "cannot be written: Permission denied" in told
    assert str(Path("sub").resolve()) in told


class _Refusing:
    """A path where nobody may make a file, the superuser included."""

    def __init__(self, path):
        self.path = path

    def open(self, _mode):
        raise PermissionError(13, "Permission denied", str(self.path))


def test_write_protected_file_is_kept(folder, capsys):
    Path("out.npy").write_text("precious")
    Path("out.npy").chmod(0o400)
    if os.access("out.npy", os.W_OK):
        pytest.skip("this user may write everywhere")
    told = mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy"])
    assert "the file is write-protected" in told


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--budget", "0"], "--budget must be a number in (0, 1] such as 0.125 or 1/8, got '0'"),
        (["--budget", "-0.5"], "--budget must be a number in (0, 1] such as 0.125 or 1/8, got '-0.5'"),
        (["--budget", "2"], "got '2'"),
        (["--budget", "1/0"], "got '1/0'"),
        (["--budget", "nan"], "got 'nan'"),
        (["--budget", "much"], "got 'much'"),
        (["--seed", "-1"], "--seed must be a non-negative integer, got '-1'"),
        (["--seed", "1.5"], "--seed must be a non-negative integer, got '1.5'"),
        (["--scale", "inf"], "--scale must be a finite number, got 'inf'"),
        (["--scale", "wide"], "--scale must be a finite number, got 'wide'"),
        (["--method", "scaterbrain"], "'scatterbrain'"),
        (["--metod", "exact"], "unrecognized arguments: --metod exact"),
    ],
)
@pytest.mark.parametrize("command", [["attend", "-o", "out.npy"], ["compare"]])
def test_wrong_option_is_told_in_one_line(folder, capsys, command, option, expected):
    assert expected in mistake(capsys, [command[0], "q.npy", "k.npy", "v.npy", *command[1:], *option])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: command"),
        (["atend"], "invalid choice: 'atend'"),
        (["attend", "q.npy", "k.npy"], "required: V.npy, -o/--output"),
        (["compare", "q.npy", "k.npy", "v.npy", "--seeds", "0"], "--seeds must be a positive integer"),
    ],
)
def test_wrong_command_line_is_told_in_one_line(folder, capsys, arguments, expected):
    assert expected in mistake(capsys, arguments)


def test_method_without_a_standard_error_says_so(folder, capsys):
    arguments = [
        "attend",
        "q.npy",
        "k.npy",
        "v.npy",
        "-o",
        "out.npy",
        "--method",
        "exact",
        "--stderr",
        "se.npy",
    ]
    assert "--stderr: the method exact has no standard error" in mistake(capsys, arguments)


def test_failure_halfway_leaves_the_old_file_and_nothing_else(folder, capsys, monkeypatch):
    Path("out.npy").write_text("old")
    whole = np.save

    def full_disk(file, array, **options):
        if array.ndim == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        whole(file, array, **options)

    monkeypatch.setattr(np, "save", full_disk)
    told = mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy", "--lse", "lse.npy"])
    assert "out.npy, lse.npy cannot be written: No space left on device" in told
    assert Path("out.npy").read_text() == "old"


def test_ctrl_c_ends_without_a_traceback_or_a_file(folder, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sb, "attention", interrupted)
    assert attend() == 130
    assert capsys.readouterr().err == "scatterbrain: interrupted\n"
    assert listing() == ["k.npy", "q.npy", "v.npy"]


@pytest.mark.parametrize("where", ["reading", "attention"])
def test_lack_of_memory_is_told_in_one_line(folder, capsys, monkeypatch, where):
    def too_large(*arguments, **options):
        raise MemoryError("Unable to allocate 9 TiB")

    target = (np, "load") if where == "reading" else (sb, "attention")
    monkeypatch.setattr(*target, too_large)
    assert "Unable to allocate 9 TiB" in mistake(
        capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy"]
    )


@pytest.mark.skipif(os.name != "posix", reason="pipes are closed so on POSIX")
def test_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, "methods"], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


# what the system refuses

ATTEND = ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy"]
on_posix = pytest.mark.skipif(os.name != "posix", reason="devices, links and closed streams of POSIX")
with_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def shell(command, *arguments):
    """Run ``scatterbrain`` in a shell; "$@" in `command` stands for it and its arguments."""
    line = ["sh", "-c", command, "sh", *COMMAND, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


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


# what was typed


@pytest.mark.parametrize("budget", ["1e-99999999", "1e99999999", "1/" + "9" * 5000])
def test_budget_that_would_take_for_ever_is_refused_at_once(folder, capsys, budget):
    told = mistake(capsys, [*ATTEND, f"--budget={budget}"])
    assert told.startswith("--budget must be a number in (0, 1] such as 0.125 or 1/8, got '1")
    assert len(told) < 120


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--seed=" + "1" * 5000, "--seed must be a non-negative integer of at most 100 digits, got '111"),
        ("--seed=" + "x" * 5000, "--seed must be a non-negative integer, got 'xxx"),
        ("--scale=" + "x" * 5000, "--scale must be a finite number, got 'xxx"),
        ("--budget=" + "1" * 5000, "--budget must be a number in (0, 1] such as 0.125 or 1/8, got '111"),
    ],
)
def test_what_was_typed_is_cut_where_it_is_long(folder, capsys, option, expected):
    told = mistake(capsys, [*ATTEND, option])
    assert told.startswith(expected)
    assert told.endswith("…'")
    assert len(told) < 120


def test_library_is_quoted_in_the_options_of_the_command(folder, capsys):
    write_mistakes()
    np.save("half.npy", np.load("k.npy")[:2])
    told = mistake(capsys, ["attend", "q.npy", "nan.npy", *ATTEND[3:]])
    assert told == "key must be finite, got NaN or inf (key is nan.npy)"
    assert "need --gqa (" in mistake(capsys, ["attend", "q.npy", "half.npy", "half.npy", "-o", "out.npy"])
    told = mistake(capsys, [*ATTEND, "--mask", "small_mask.npy"])
    assert told.startswith("--mask must be broadcastable")
    told = mistake(capsys, [*ATTEND, "--mask", "small_mask.npy", "--causal"])
    assert told == "argument --causal: not allowed with argument --mask"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*ATTEND[:-1], ""], "-o/--output"),
        ([*ATTEND, "--lse", ""], "--lse"),
        ([*ATTEND, "--stderr", ""], "--stderr"),
        ([*ATTEND, "--mask", ""], "--mask"),
        (["attend", "", *ATTEND[2:]], "Q.npy"),
        (["compare", *ATTEND[1:4], "--output", ""], "--output"),
    ],
)
def test_empty_name_is_refused_by_name(folder, capsys, arguments, named):
    assert mistake(capsys, arguments) == f"{named} must name a file, got an empty name"


@pytest.mark.parametrize("command", ["demo", "attend", "compare"])
def test_help_names_one_budget_and_one_method(capsys, command):
    assert main([command, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--budget B " in told
    assert "--method M " in told
    if command != "attend":
        assert "all but `exact`, which is the reference row of every table, and `auto`" in told


@pytest.mark.parametrize("command", [ATTEND, ["compare", *ATTEND[1:4], "--seeds", "1"]])
def test_entries_too_large_are_one_line_and_no_warning(folder, command):
    np.save("q.npy", np.load("q.npy") * np.float32(1e25))
    np.save("k.npy", np.load("k.npy") * np.float32(1e25))
    before = listing()
    done = shell('"$@"', *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("scatterbrain: error: ")
    assert done.stderr.count("\n") == 1
    assert listing() == before


def test_warning_does_not_reach_the_terminal(folder, capsys, monkeypatch):
    whole = sb.attention

    def warning(*arguments, **options):
        warnings.warn("overflow encountered in matmul", RuntimeWarning, stacklevel=2)
        return whole(*arguments, **options)

    monkeypatch.setattr(sb, "attention", warning)
    assert attend() == 0
    assert capsys.readouterr().err == ""


def test_output_that_is_not_finite_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(attend_command, "_attend", lambda *_: {"out.npy": arrays()[0] * np.inf})
    told = mistake(capsys, ATTEND)
    assert told == "the attention output is not finite: the entries are too large for float32"


# compare


def test_compare_of_exact_alone_says_why_there_is_no_plot(folder, capsys):
    before = listing()
    assert main(["compare", *ATTEND[1:4], "--method", "exact", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("plot: none (scatterbrain-compare.png is not")
    assert listing() == before


def test_compare_writes_a_tiny_budget_short_and_warns_of_nothing(folder):
    tiny = ["--budget", "1e-300", "--budget", "5e-324", "--method", "lsh", "--seeds", "1"]
    done = shell('"$@"', "compare", *ATTEND[1:4], *tiny)
    assert done.returncode == 0
    assert done.stderr == "[1/3] exact\n[2/3] lsh at 4.94e-324\n[3/3] lsh at 1e-300\n"
    assert max(map(len, done.stdout.splitlines()[:5])) < 80


def test_compare_holds_the_linear_algebra_to_one_thread(folder, monkeypatch):
    held = []
    monkeypatch.setattr(compare_command, "one_thread", lambda: held.append("held") or nullcontext())
    assert main(["compare", *ATTEND[1:4], "--method", "exact", "--seeds", "1"]) == 0
    assert held == ["held"]


def test_compare_prints_a_row_a_method_and_budget_and_writes_the_plot(folder, capsys):
    arguments = ["compare", "q.npy", "k.npy", "v.npy", "--budget", "1/4", "--budget", "1/2", "--seeds", "2"]
    assert main([*arguments, "--output", "plot.png"]) == 0
    out, err = capsys.readouterr()
    cells = [line.split() for line in out.splitlines()[2:]]
    rows = cells[: cells.index([])]
    methods = [name for name in sb.methods() if name not in ("auto", "exact")]
    wanted = [["exact", "-"], *([method, budget] for method in methods for budget in ("1/4", "1/2"))]
    assert [row[:2] for row in rows] == wanted
    assert float(rows[0][3]) < 1e-6
    assert all(float(row[-2]) > 0 for row in rows)
    assert out.endswith("plot: plot.png\n")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert err.count("\n") == len(rows)


def test_compare_measures_the_errors_of_the_library(folder, capsys):
    options = ["--causal", "--scale", "0.3", "--seeds", "1", "--seed", "5", "--output", "plot.svg"]
    arguments = ["compare", "q.npy", "k.npy", "v.npy", "--method", "lsh", "--budget", "1/2"]
    assert main([*arguments, *options]) == 0
    asked = {"is_causal": True, "scale": 0.3}
    exactly = sb.attention(*(x.astype(np.float64) for x in arrays()), method="exact", **asked)
    output = sb.attention(*arrays(), method="lsh", budget=0.5, seed=np.random.default_rng((5, 0)), **asked)
    error = np.linalg.norm(output - exactly) / np.linalg.norm(exactly)
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("lsh"))
    assert row[3] == f"{error:.2g}"
    assert b"<svg" in Path("plot.svg").read_bytes()


def test_arrays_without_a_row_are_no_mistake(folder, capsys):
    for name in "qkv":
        np.save(f"{name}.npy", np.ones((2, 0, 8), dtype=np.float32))
    assert attend() == 0
    assert np.load("out.npy").shape == (2, 0, 8)
    assert main(["compare", "q.npy", "k.npy", "v.npy", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.endswith("plot: scatterbrain-compare.png\n")


def test_compare_refuses_a_picture_format_it_does_not_know(folder, capsys):
    told = mistake(capsys, ["compare", "q.npy", "k.npy", "v.npy", "--output", "plot.bmp"])
    assert told == "--output must end in .png, .pdf, .svg, got plot.bmp"


def test_peak_memory_counts_what_a_call_holds_at_once():
    def call():
        for _ in range(3):
            np.ones(10**6)

    assert 8e6 <= measure.peak_memory(call) < 8.2e6


def test_relative_error_of_nothing_is_nothing():
    zeros = np.zeros((2, 3))
    assert measure.relative_error(zeros, zeros) == 0
    assert measure.relative_error(zeros + 1, zeros) == np.inf
    assert measure.relative_error(np.array([3.0, 0]), np.array([0.0, 4])) == 1.25


# methods, doctor and the rest


def test_methods_lists_every_method_with_its_line(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(sb.methods())
    assert all(line.endswith(told) for line, told in zip(lines, sb.methods().values(), strict=True))


def test_methods_needs_the_core_alone():
    script = (
        "import sys; from scatterbrain_core.cli import main; main(['methods']); "
        "sys.exit(sorted({'rich', 'matplotlib', 'scipy', 'torch', 'tokenizers'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scatterbrain {__version__}\n"
    for command in ([], ["demo"], ["attend"], ["compare"], ["methods"], ["doctor"]):
        assert main([*command, "--help"]) == 0
        assert capsys.readouterr().out.startswith("usage: scatterbrain")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_doctor_goes_to_every_device_of_a_library_and_back(library):
    module = pytest.importorskip(
        library.module, reason=f"{library.name} is not installed", exc_type=ImportError
    )
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for device in library.devices(module):
        there = library.make(module, array, device)
        assert type(there).__module__.partition(".")[0] in (library.name, "jaxlib")
        np.testing.assert_array_equal(np.asarray(library.to_numpy(there)), array)


def test_doctor_leaves_out_the_device_that_cannot_sort():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    library = next(library for library in LIBRARIES if library.name == "array_api_strict")
    assert [device for device in library.devices(strict) if "no_x64" in str(device)] == []


def test_doctor_names_every_library_and_none_gives_a_wrong_answer(capsys, monkeypatch):
    # JAX compiles each operation of the run, a quarter of a minute of it.
    monkeypatch.setattr(doctor, "LIBRARIES", [library for library in LIBRARIES if library.name != "jax"])
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "[1/5] numpy"
    assert f"scatterbrain-core {__version__}" in out
    for name in ("numpy", "torch", "cupy", "array_api_strict", "dask"):
        assert f"\n{name} " in out
    numpy = next(line for line in out.splitlines() if line.startswith("numpy"))
    assert numpy.count("ok, error") == 2
    assert "WRONG" not in out


def test_doctor_tells_a_missing_library_from_a_broken_one(monkeypatch, tmp_path, capsys):
    (tmp_path / "crooked_arrays.py").write_text("raise OSError('libcrooked.so:\\n no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    crooked, absent = (
        Library(name, name, LIBRARIES[0].devices, LIBRARIES[0].make, LIBRARIES[0].to_numpy)
        for name in ("crooked_arrays", "absent_arrays")
    )
    monkeypatch.setattr(doctor, "LIBRARIES", (LIBRARIES[0], crooked, absent))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "crooked_arrays is broken: OSError: libcrooked.so: no such library" in lines
    assert ["absent_arrays", "not", "installed"] in [line.split() for line in lines]


def test_doctor_says_why_a_device_fails_and_which_answer_is_wrong(monkeypatch, capsys):
    def lost(array):
        raise RuntimeError("the device is lost")

    numpy = LIBRARIES[0]
    failing = Library("numpy", "numpy", lambda _module: ["far"], numpy.make, lost)
    lying = Library("numpy", "numpy", lambda _module: ["lying"], numpy.make, lambda x: x + 1)
    monkeypatch.setattr(doctor, "LIBRARIES", (lying, failing))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "numpy on far, exact: RuntimeError: the device is lost" in out
    assert next(line for line in out.splitlines() if "lying" in line).count("WRONG") == 2
