"""What benchmarks/accuracy measures, on a model of two small layers."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the encoder needs SciPy (extra demo)")
pytest.importorskip("rich", reason="the benchmark shows its progress by rich (extra demo)")
pytest.importorskip("matplotlib", reason="the benchmark draws by matplotlib (extra plot)")

import scatterbrain_core as sb
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import measure, models, record, report
from benchmarks.accuracy.measure import Case
from benchmarks.accuracy.places import NUMPY, place
from minilm_numpy.pretrained import ModelMissingError as MiniLMMissing
from smollm2_numpy import ModelMissingError as SmolLM2Missing

RNG = np.random.default_rng(0)
LAYERS = [tuple(0.7 * RNG.standard_normal((heads, 40, 8)) for heads in (4, 2, 2)) for _ in range(2)]
OPTIONS = {"is_causal": True, "enable_gqa": True}
HERE = place(NUMPY)


def exact(query, key, value):
    """By the definition, every head on its own."""
    heads = []
    for head, q in enumerate(query):
        logits = np.where(np.tri(len(q)) > 0, q @ key[head // 2].T / np.sqrt(q.shape[-1]), -np.inf)
        weights = np.exp(logits)
        heads.append(weights @ value[head // 2] / weights.sum(axis=-1, keepdims=True))
    return np.stack(heads)


def tiny(tokens=40, text=None, where=HERE):
    def run(attention):
        outputs = [where.to_numpy(attention(*where.arrays(*layer))) for layer in LAYERS]
        return 10 + float(sum(np.square(x).sum() for x in outputs))

    def exact_there(*arrays):
        return where.make(exact(*map(where.to_numpy, arrays)))

    told = f"tiny over {text or 'noise'}"
    return models.Model("tiny", told, 40, 2, run, exact_there, "perplexity", OPTIONS)


def measured(method, budget, parts=("errors", "quality"), kept=(0, 1), where=NUMPY):
    model = tiny(where=place(where))
    quality, layers = models.exact_run(model, kept)
    taken = []
    call = measure.Call(place(where), 3, lambda: taken.append(1))
    result = measure.measure(model, layers, Case("tiny", method, budget), parts, call)
    if result.refused is None:
        assert len(taken) == measure.steps(model, len(layers), parts)
    return result, quality


def test_exact_attention_has_no_error_and_its_cost_is_the_past():
    result, quality = measured("exact", None)
    np.testing.assert_allclose(result.errors, np.zeros((2, 4)), atol=1e-12)
    np.testing.assert_allclose(result.costs, np.full((2, 4), 41 / 80))
    assert result.quality == pytest.approx(quality, rel=1e-12)


def test_errors_and_costs_are_those_of_each_head():
    result, _ = measured("scatterbrain", 0.25)
    for number, (query, key, value) in enumerate(LAYERS):
        options = {"method": "scatterbrain", "budget": 0.25, "is_causal": True}
        for head in range(4):
            rng = np.random.default_rng((3, number))
            arrays = (x[at : at + 1] for x, at in ((query, head), (key, head // 2), (value, head // 2)))
            est = sb.estimate(*arrays, **options, seed=rng)
            expected = exact(query, key, value)[head]
            error = np.linalg.norm(est.output[0] - expected) / np.linalg.norm(expected)
            assert result.errors[number][head] == pytest.approx(error, rel=1e-9)
            assert result.costs[number][head] == pytest.approx(est.cost.fraction, rel=1e-9)
    assert len({error for row in result.errors for error in row}) == 8


def test_quality_is_of_the_model_with_every_layer_replaced():
    result, quality = measured("lsh", 0.25)
    outputs = [
        sb.attention(*layer, method="lsh", budget=0.25, seed=np.random.default_rng((3, number)), **OPTIONS)
        for number, layer in enumerate(LAYERS)
    ]
    assert result.quality == 10 + sum(np.square(x).sum() for x in outputs)
    assert result.quality != pytest.approx(quality, rel=1e-3)


def test_only_what_is_asked_for_is_measured():
    result, _ = measured("lsh", 0.25, parts=("errors",), kept=(1,))
    assert result.quality is None
    assert np.shape(result.errors) == np.shape(result.costs) == (1, 4)
    result, _ = measured("lsh", 0.25, parts=("quality",))
    assert (result.errors, result.costs) == ([], [])


def test_another_library_measures_the_same():
    pytest.importorskip("array_api_strict")
    one, other = (measured("scatterbrain", 0.25, where=name)[0] for name in (NUMPY, "array_api_strict:cpu"))
    np.testing.assert_allclose(other.errors, one.errors, rtol=1e-9)
    assert (other.costs, other.quality) == (one.costs, pytest.approx(one.quality, rel=1e-9))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pandas:cpu", "library must be one of numpy, .*, got 'pandas'"),
        ("numpy:gpu", "device must be part of one of cpu for numpy, got 'gpu'"),
    ],
)
def test_an_unknown_place_says_which_there_are(name, message):
    with pytest.raises(ValueError, match=message):
        place(name)


def test_what_the_library_refuses_is_a_result_with_its_reason():
    result, _ = measured("nothing of the kind", 0.25)
    assert result.refused.startswith("method 'nothing of the kind' is unknown")
    assert (result.errors, result.costs, result.quality) == ([], [], None)


def test_spread_is_over_all_layers_and_heads():
    told = measure.spread([[1.0, 2.0], [3.0, 10.0]])
    assert told == {"median": 2.5, "mean": 4.0, "p95": pytest.approx(8.95), "max": 10.0}


@pytest.mark.parametrize(
    ("name", "needs"), [("minilm", ("safetensors", "tokenizers")), ("smollm2", ("gguf", "tokenizers"))]
)
def test_layers_of_the_real_models_are_those_the_library_is_given(name, needs):
    for package in needs:
        pytest.importorskip(package, reason=f"{name} needs {package} (extras demo, smollm2)")
    try:
        model = models.MODELS[name](48, None, HERE)
    except (MiniLMMissing, SmolLM2Missing) as missing:
        pytest.skip(str(missing))
    quality, layers = models.exact_run(model, [1, 4])
    assert [layer.number for layer in layers] == [1, 4]
    assert model.tokens == 48
    call = measure.Call(HERE, 0, lambda: None)
    result = measure.measure(model, layers, Case(name, "exact", None), ("errors", "quality"), call)
    assert np.max(result.errors) < 1e-5
    assert result.quality == pytest.approx(quality, rel=1e-4)


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command on the tiny model, from a folder of its own."""
    monkeypatch.setattr(command, "MODELS", {"tiny": tiny})
    runs = []

    def counted(*arguments):
        runs.append(arguments[2])
        return measure.measure(*arguments)

    monkeypatch.setattr(command, "measure", counted)

    def call(*arguments, output="results.json"):
        runs.clear()
        command.main(["--models", "tiny", "--output", str(tmp_path / output), *arguments])
        return list(runs)

    return call


def test_the_command_writes_tables_numbers_and_plot(main, tmp_path, capsys):
    cases = main("--methods", "performer", "exact", "lsh", "--budgets", "1/8", "1/4")
    assert cases == [
        Case("tiny", "exact", None),
        *(Case("tiny", method, budget) for method in ("performer", "lsh") for budget in (0.25, 0.125)),
    ]
    out = capsys.readouterr().out
    assert "tiny over noise: 40 tokens, errors over 2 layers of 4 heads; seed 0" in out
    assert [line.split()[:2] for line in out.splitlines() if " 1/" in line] == [
        ["performer", "1/4"],
        ["performer", "1/8"],
        ["lsh", "1/4"],
        ["lsh", "1/8"],
    ]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.png"}
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content["header"]) >= {"date", "command", "commit", "versions", "machine"}
    assert [row["case"]["method"] for row in content["results"]] == [
        "exact",
        *["performer"] * 2,
        *["lsh"] * 2,
    ]


def test_what_was_written_is_read_again(main, tmp_path):
    main("--methods", "lsh", "--budgets", "1/3", "--seed", "3")
    read = record.load(tmp_path / "results.json")
    expected, quality = measured("lsh", 1 / 3)
    result = read.results[Case("tiny", "lsh", 1 / 3)]
    assert read.models["tiny"]["exact"] == quality
    np.testing.assert_allclose(result.costs, expected.costs, rtol=1e-5)
    assert np.shape(result.errors) == (2, 4)


def test_a_run_that_stopped_goes_on_where_it_was(main, tmp_path):
    whole = main("--methods", "lsh", "exact", "performer", "--budgets", "1/4", output="whole.json")
    assert len(main("--methods", "exact", "lsh", "--budgets", "1/4")) == 2
    assert main("--methods", "lsh", "performer", "--budgets", "1/4", "--resume") == whole[2:]
    assert main("--methods", "lsh", "performer", "--budgets", "1/4", "--resume") == []
    read = [record.load(tmp_path / name) for name in ("whole.json", "results.json")]
    assert list(read[0].results) == list(read[1].results)
    for case in read[0].results:
        assert read[0].results[case].errors == read[1].results[case].errors


def test_runs_with_other_settings_are_not_mixed(main):
    main("--methods", "lsh", "--budgets", "1/4")
    with pytest.raises(ValueError, match="seed must be the same in all results, got 1 and 0"):
        main("--methods", "lsh", "--budgets", "1/4", "--resume", "--seed", "1")


def test_several_runs_show_as_one_table(main, tmp_path, capsys):
    for method, where in (("lsh", NUMPY), ("performer", "array_api_strict:cpu")):
        main("--methods", method, "--budgets", "1/4", "--place", where, output=f"{method}.json")
    capsys.readouterr()
    shown = [str(tmp_path / f"{method}.json") for method in ("lsh", "performer")]
    assert main("--show", *shown, output="both.json") == []
    out = capsys.readouterr().out
    assert [out.count(f"\n{method} ") for method in ("exact", "lsh", "performer")] == [0, 1, 1]
    assert "methods on numpy, array_api_strict:cpu, at commit" in out
    assert (tmp_path / "both.png").exists()
    assert not (tmp_path / "both.json").exists()


def test_a_refused_method_stands_in_the_table_with_a_footnote(tmp_path):
    rows = [measured(method, 0.25)[0] for method in ("lsh", "unheard of", "performer")]
    models_ = {"tiny": {"told": "tiny", "tokens": 40, "quality": "perplexity", "exact": 12.0}}
    lines = report.report(
        record.Record(
            {"commit": "c"}, {"seed": 0, "place": "numpy"}, models_, {row.case: row for row in rows}
        )
    )
    assert any(line.split() == ["unheard", "of", "1/4", "[1]"] for line in lines)
    assert lines[-1].startswith("[1] refused: method 'unheard of' is unknown")


ROOT = Path(command.__file__).parents[2]


def committed():
    files = sorted((ROOT / "benchmarks" / "results" / "accuracy").glob("*.json"))
    return record.joined([record.load(file) for file in files])


def test_the_documentation_has_the_committed_results():
    stored = committed()
    lines = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8").splitlines()
    assert set(stored.models) == {"minilm", "smollm2"}
    for name in stored.models:
        assert not set(report.summary(stored, name)) - set(lines)


def test_committed_results_show_what_is_claimed_of_auto():
    stored = committed()
    for case, result in stored.results.items():
        if case.method in ("auto", "exact") or result.refused is not None:
            continue
        ours = stored.results[Case(case.model, "auto", case.budget)]
        assert measure.spread(ours.errors)["mean"] < measure.spread(result.errors)["mean"], case
        assert max(max(row) for row in ours.costs) <= 1.05 * case.budget


def test_quick_sets_only_what_was_not_said():
    options = command.parse(["--quick", "--tokens", "2048"])
    assert (options.tokens, options.budgets, options.layers) == (2048, [0.125], [0, 5, 10, 15, 20, 25])
    options = command.parse([])
    assert (options.tokens, options.budgets) == (4096, [1 / 4, 1 / 8, 1 / 16, 1 / 32])
    assert options.methods == list(sb.methods())
