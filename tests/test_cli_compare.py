"""The command compare."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from commands import ATTEND, arrays, attend, listing, mistake, shell

import scatterbrain_core as sb
from scatterbrain_core.cli import compare as compare_command
from scatterbrain_core.cli import main, measure


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
    methods = [name for name in sb.methods() if name != "exact"]
    wanted = [["exact", "-"], *([method, budget] for method in methods for budget in ("1/4", "1/2"))]
    assert [row[:2] for row in rows] == wanted
    assert float(rows[0][3]) < 1e-6
    assert all(float(row[-2]) > 0 for row in rows)
    assert out.endswith("plot: plot.png\n")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert err.count("\n") == len(rows)


def test_compare_tells_what_a_budget_is_too_small_for(folder, capsys):
    """Of methods that were not asked for; of those that were it is a mistake."""
    arguments = ["compare", *ATTEND[1:4], "--budget", "1/20", "--seeds", "1"]
    assert main([*arguments, "--output", "plot.png"]) == 0
    out = capsys.readouterr().out
    told = [
        line for line in out.splitlines() if line.startswith("Not measured: bigbird at 1/20, budget must")
    ]
    assert len(told) == 1
    assert any(line.startswith("lsh ") for line in out.splitlines())
    assert not any(line.startswith("bigbird ") for line in out.splitlines())
    assert main([*arguments, "--method", "bigbird"]) == 2
    assert "scatterbrain: error: budget must be at least" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("mask", "options", "left_out"),
    [
        (None, ["--causal"], "not with --causal: "),
        (np.tri(40, dtype=bool), ["--mask", "mask.npy"], "not with this --mask: "),
        (np.ones((1, 40), dtype=bool), ["--mask", "mask.npy"], ""),
    ],
)
def test_compare_leaves_out_what_cannot_take_the_call(folder, capsys, mask, options, left_out):
    if mask is not None:
        np.save("mask.npy", mask)
    arguments = ["compare", "q.npy", "k.npy", "v.npy", "--budget", "1/2", "--seeds", "1", *options]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith(left_out)
    rows = [line.split()[0] for line in out.splitlines() if " 1/2 " in line]
    assert ("smyrf" in rows) == (not left_out)
    assert ("reformer" in rows) == (mask is None or len(mask) == 1)


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
