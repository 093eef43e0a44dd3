"""The demonstration: on the model where it is installed, on the bundled sample everywhere."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the model's code needs SciPy (extra demo)")

import scatterbrain_core as sb
from minilm_numpy import pretrained
from scatterbrain_core.cli import console, main, material, plot
from scatterbrain_core.cli import measure as measuring
from scatterbrain_core.cli.demo import COSINE, ERROR
from scatterbrain_core.cli.measure import Row, dense_attention, one_thread
from scatterbrain_core.cli.reading import reading
from scatterbrain_core.cli.sweep import Problem, measure, sweep

ONE_ROW = ["--budget", "1/8", "--method", "performer", "--seeds", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")


@pytest.fixture
def model(folder):
    try:
        pretrained.load()
    except (ImportError, pretrained.ModelMissingError) as missing:
        pytest.skip(str(missing))
    (folder / "text.txt").write_text("Nothing is so painful to the human mind as a great and sudden change.")


def body(out):
    """The cells of the table's rows."""
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("---")) + 1
    return [line.split() for line in lines[first : lines.index("", first)]]


def mistake(capsys, *options):
    before = sorted(path.name for path in Path().iterdir())
    assert main(["demo", *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("scatterbrain: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path.name for path in Path().iterdir()) == before
    return err


def test_without_the_model_the_demo_runs_on_the_bundled_sample_and_says_so(folder, no_model, capsys):
    assert main(["demo", "--budget", "1/8", "--budget", "1/2", "--seeds", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("the bundled sample, 3 heads of 3 layers of all-MiniLM-L6-v2 on: Charles Darwin")
    assert "(no model: the package no_such_package is not installed" in out.splitlines()[0]
    assert "cosine" not in out
    rows = body(out)
    methods = ("auto", "scatterbrain", "performer", "lsh")
    wanted = [["exact", "-"], *([method, budget] for method in methods for budget in ("1/8", "1/2"))]
    assert [row[:2] for row in rows] == wanted
    assert float(rows[0][3]) < 1e-5
    assert all(float(row[3]) > 0.001 for row in rows[1:])
    assert all(0 < float(row[2]) <= {"1/8": 0.131, "1/2": 0.525}[row[1]] for row in rows[1:])
    assert out.endswith("plot: scatterbrain-demo.png\n")
    assert Path("scatterbrain-demo.png").read_bytes().startswith(b"\x89PNG")
    assert [line.partition("]")[0] for line in err.splitlines()] == [
        f"[{i}/{len(rows)}" for i in range(1, len(rows) + 1)
    ]


def test_without_the_extra_the_demo_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minilm_numpy", None)
    monkeypatch.setattr(material, "find_spec", lambda name: None if name == "tokenizers" else name)
    told = material.find_material(None).told
    assert "minilm_numpy" in told
    assert told.endswith("python -m pip install tokenizers)")


def test_with_the_model_the_demo_tells_the_cosine_of_the_embedding(model, capsys):
    options = ["--text", "text.txt", "--budget", "1/2", "--seeds", "2", "--output", "plot.pdf"]
    assert main(["demo", *options]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("all-MiniLM-L6-v2 over text.txt: its 17 tokens\n")
    exact, *others = body(out)
    assert float(exact[4]) == 1
    assert all(-1 <= float(row[4]) < 1 for row in others if row[0] != "auto")  # exact up to 64 keys
    assert Path("plot.pdf").read_bytes().startswith(b"%PDF")


def test_long_text_is_cut_and_the_demo_says_so(model):
    Path("text.txt").write_text("cat " * 600)
    found = material.find_material("text.txt")
    assert found.told == "all-MiniLM-L6-v2 over text.txt: the first 512 of 602 tokens"
    assert {array.shape for layer in found.layers for array in layer} == {(12, 512, 32)}


def test_same_seed_gives_the_same_figures(folder, no_model, capsys):
    tables = []
    for seed in ("1", "1", "2"):
        assert main(["demo", *ONE_ROW, "--seed", seed]) == 0
        tables.append([row[:4] for row in body(capsys.readouterr().out)])
    assert tables[0] == tables[1] != tables[2]


def test_measured_error_is_the_mean_over_layers_and_the_median_over_seeds():
    draw = np.random.default_rng(0)
    layers = [tuple(draw.standard_normal((2, 60, 8)) for _ in range(3)) for _ in range(2)]
    exactly = [dense_attention(*layer) for layer in layers]
    row = measure(Problem(layers, exactly), "lsh", 0.25, range(3, 6))
    errors = [
        np.mean(
            [
                np.linalg.norm(sb.attention(*layer, method="lsh", budget=0.25, seed=generator) - true)
                / np.linalg.norm(true)
                for number, (layer, true) in enumerate(zip(layers, exactly, strict=True))
                for generator in [np.random.default_rng((seed, number))]
            ]
        )
        for seed in (3, 4, 5)
    ]
    np.testing.assert_allclose(row.errors, errors, rtol=1e-12)
    assert row.error == np.median(row.errors)
    costs = [
        sb.estimate(*layer, method="lsh", budget=0.25, seed=np.random.default_rng((3, number))).cost.fraction
        for number, layer in enumerate(layers)
    ]
    assert row.fraction == pytest.approx(np.mean(costs))


def test_yardstick_agrees_with_the_library():
    draw = np.random.default_rng(0)
    layer = [draw.standard_normal((2, 30, 8)) for _ in range(3)]
    np.testing.assert_allclose(
        dense_attention(*layer), sb.attention(*layer, method="exact"), rtol=1e-12, atol=1e-14
    )


def test_sweep_starts_with_exact_and_measures_nothing_twice(capsys):
    one = np.ones((4, 2))
    problem = Problem([(one, one, one)], [one])
    rows = sweep(problem, ["lsh", "exact", "lsh"], [1.0, 0.5, 1.0], [0])
    assert [row.name for row in rows] == ["exact", "lsh at 1/2", "lsh at 1"]
    assert capsys.readouterr().err.count("\n") == 3


def rows_of(figures, exact_seconds=1.0):
    """Rows from (method, budget, error, seconds, cosine)."""
    exact = Row("exact", None, (0.0,), exact_seconds, 1.0, (1.0,))
    return [exact, *(Row(m, b, (e,), s, b, () if c is None else (c,)) for m, b, e, s, c in figures)]


def test_reading_tells_a_bad_table_as_it_is():
    rows = rows_of([("a", 0.125, 1.2, 2, 0.3), ("b", 0.125, 1.1, 2, 0.2), ("a", 0.5, 0.8, 2, 0.1)])
    first, second = reading(rows)
    assert first == "Smallest output error: b at 1/8 (1.1); a at 1/2 (0.8)."
    assert second == (
        "The best of all, a at 1/2, is far from exact (error 0.8); "
        "2 of 3 rows are no better than an output of zeros (error 1); "
        "the closest embedding, a at 1/8, has cosine 0.300; none of 3 rows is faster than exact."
    )


def test_reading_tells_a_good_table_as_it_is():
    rows = rows_of([("a", 0.125, 0.05, 0.5, None), ("a", 0.5, 0.01, 0.6, None), ("b", 0.5, 0.2, 3, None)])
    assert reading(rows) == [
        "Smallest output error: a at 1/8 (0.05), 1/2 (0.01).",
        "The best of all, a at 1/2, is close to exact (error 0.01); 2 of 3 rows are faster than exact.",
    ]


@pytest.mark.parametrize(
    ("error", "words"), [(0.019, "close to"), (0.09, "a fair"), (0.29, "a rough"), (0.31, "far from")]
)
def test_reading_weighs_the_best_error(error, words):
    assert words in reading(rows_of([("a", 0.5, error, 2, None)]))[1]


def test_reading_needs_the_exact_row_first():
    rows = rows_of([("a", 0.5, 0.1, 1, None)])
    assert reading(rows[:1]) == []
    with pytest.raises(ValueError, match="rows must start with 'exact'"):
        reading(rows[1:])


def test_picture_has_a_line_a_method_labelled_axes_and_a_legend():
    rows = rows_of([(m, b, 0.5, 1, 0.9) for m in ("a", "b") for b in (0.125, 0.25)])
    figure = plot.draw(rows, (ERROR, COSINE), "title")
    error, cosine = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "exact"]
    assert len(error.get_lines()) == 2
    assert len(cosine.get_lines()) == 3
    assert error.get_yscale() == "log"
    assert all(
        axis.get_xlabel() == "budget (fraction of the keys)" and axis.get_ylabel() for axis in figure.axes
    )
    assert [text.get_text() for text in error.get_xticklabels()] == ["1/8", "1/4"]


def test_picture_of_errors_that_are_all_zero_has_a_plain_axis():
    figure = plot.draw(rows_of([("a", b, 0.0, 1, None) for b in (0.125, 0.25)]), (ERROR,), "title")
    assert figure.axes[0].get_yscale() == "linear"


def test_without_matplotlib_the_plot_is_left_out_and_said(folder, no_model, capsys, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    assert main(["demo", *ONE_ROW]) == 0
    out, err = capsys.readouterr()
    said = "matplotlib is not installed, the plot is left out: python -m pip install matplotlib"
    assert said in err.splitlines()
    assert "plot:" not in out
    assert list(Path().iterdir()) == []


def test_exact_alone_has_no_plot_and_the_demo_says_so(folder, no_model, capsys):
    assert main(["demo", "--method", "exact", "--seeds", "1", "--output", "x.png"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("plot: none (x.png is not written), as exact attention alone has no budget")
    assert list(Path().iterdir()) == []


def test_plot_that_was_asked_for_needs_matplotlib(folder, capsys, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    told = mistake(capsys, "--output", "plot.png")
    assert "--output needs matplotlib, which is not installed: python -m pip install" in told


def test_text_needs_the_model(folder, no_model, capsys):
    Path("text.txt").write_text("A text.")
    told = mistake(capsys, "--text", "text.txt")
    assert "--text text.txt needs the MiniLM model: the package no_such_package is not installed" in told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "text.txt cannot be read as text: No such file or directory"),
        (b"", "text.txt must hold a text, got an empty one"),
        (b" \n", "text.txt must hold a text, got an empty one"),
        (b"\xff\xfe\x00", "text.txt must be text in UTF-8"),
    ],
)
def test_wrong_text_is_told_in_one_line(folder, capsys, content, expected):
    if content is not None:
        Path("text.txt").write_bytes(content)
    assert expected in mistake(capsys, "--text", "text.txt")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "perfomer"], "'performer'"),
        (["--budget", "0"], "--budget must be a number in (0, 1]"),
        (["--seeds", "none"], "--seeds must be a positive integer"),
        (["--text", ""], "--text must name a file, got an empty name"),
        (["--output", ""], "--output must name a file, got an empty name"),
        (["--output", "no/plot.png"], "--output no/plot.png cannot be written: No such file or directory"),
        (["--output", "plot.txt"], "--output must end in .png, .pdf, .svg, got plot.txt"),
        (["--output", "full.png"], "--output full.png must be a file, got a folder"),
    ],
)
def test_wrong_option_is_told_before_the_work(folder, capsys, monkeypatch, options, expected):
    Path("full.png").mkdir()
    monkeypatch.setattr(material, "from_sample", lambda _why: pytest.fail("the work began"))
    assert expected in mistake(capsys, *options)


def test_linear_algebra_is_held_to_one_thread_where_that_can_be_done(monkeypatch, tmp_path):
    stand_in = "import contextlib\ndef threadpool_limits(*asked):\n    return contextlib.nullcontext(asked)\n"
    (tmp_path / "threadpoolctl.py").write_text(stand_in)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "threadpoolctl", raising=False)
    with one_thread() as asked:
        assert asked == (1, "blas")
    monkeypatch.setattr(measuring, "find_spec", lambda _name: None)
    with one_thread() as asked:
        assert asked is None


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich", reason="the bar is drawn by rich (extra demo)")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with console.progress(2) as step:
        step("first")
        step("second")
    err = capsys.readouterr().err
    assert "second" in err
    assert re.search(r"\d/2", err)
    assert os.linesep + "[1/2]" not in err


def test_letters_a_terminal_lacks_are_replaced(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console.say("Nyström")
    assert (tmp_path / "out").read_text() == "Nystr?m\n"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.125, "1/8"),
        (1 / 3, "1/3"),
        (1.0, "1"),
        (0.3, "0.3"),
        (0.05, "1/20"),
        (1e-300, "1e-300"),
        (5e-324, "4.94e-324"),
    ],
)
def test_budget_is_written_as_a_fraction_where_it_is_one(value, written):
    assert console.share(value) == written


@pytest.mark.parametrize(("seconds", "written"), [(0.0123, "12.3 ms"), (2.5, "2.50 s")])
def test_time_is_written_in_its_unit(seconds, written):
    assert console.duration(seconds) == written
