"""Every mistake ends in one line, exit code 2, and leaves nothing behind."""

import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from commands import ATTEND, COMMAND, SHAPE, arrays, attend, listing, mistake, shell

import scatterbrain_core as sb
from scatterbrain_core.cli import attend as attend_command
from scatterbrain_core.cli import files, main


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
    np.save("pairs.npy", np.ones((40, 40), dtype=bool))
    told = mistake(capsys, [*ATTEND, "--mask", "pairs.npy", "--causal"])
    assert told.startswith("--mask must be of keys (..., 1, Lk) or of queries (..., Lq, 1) where --causal, ")


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
        assert "`exact` is the reference row of every table" in told


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
