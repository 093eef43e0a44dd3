"""What benchmarks/cpu computes around its timings; nothing here asserts a time."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich", reason="the benchmark shows its progress by rich (extra demo)")
pytest.importorskip("matplotlib", reason="the benchmark draws by matplotlib (extra plot)")
pytest.importorskip("threadpoolctl", reason="the benchmark tells its threads by threadpoolctl (extra demo)")

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import (
    child,
    exact,
    machine,
    memory,
    methods,
    pairs,
    peers,
    processes,
    report,
    run,
    stopping,
)
from benchmarks.cpu.cases import DATA, Case, Result, Workload
from benchmarks.cpu.record import Record, load
from benchmarks.shared.arrays import normal, sampled_rows, topical

ROOT = Path(command.__file__).parents[2]
GIB = 2**30
LIMITS = stopping.Limits(seconds=10.0, bytes=4 * GIB)


def result(length, seconds=1.0, held=GIB, reason=None, method="auto", ratio=None):
    case = Case("topics", length, method)
    if reason is not None:
        return Result(case, reason)
    reference = [] if ratio is None else [ratio * seconds] * 2
    return Result(case, None, [seconds] * 2, reference, held // 2, held // 2, error=0.1, pairs=128, rank=64)


def clock(seconds):
    """Times of start and end of calls that take so long."""
    times = iter([x for second in seconds for x in (0.0, second)])
    return lambda: next(times)


def test_pairs_are_timed_in_turn():
    calls = []
    found = pairs.in_turn(lambda: calls.append("a"), lambda: calls.append("b"), 2, 99, clock([4, 1, 6, 2]))
    assert calls == ["a", "b"] * 2
    assert found == ([4, 6], [1, 2])


def test_pairs_end_where_they_take_too_long_but_there_is_one():
    nothing = lambda: None  # noqa: E731
    assert pairs.in_turn(nothing, nothing, 5, 10, clock([4, 1, 4, 2])) == ([4, 4], [1, 2])
    assert pairs.in_turn(nothing, nothing, 5, 0, clock([4, 1])) == ([4], [1])
    assert pairs.in_turn(None, nothing, 2, 99, clock([1, 3])) == ([], [1, 3])


def test_the_ratio_is_the_median_over_pairs_and_not_the_ratio_of_medians():
    assert pairs.median_ratio([10, 40, 30], [1, 2, 10]) == 10
    assert pairs.median_ratio([], [1, 2]) is None


def test_growth_is_predicted_from_the_last_two_lengths_between_linear_and_quadratic():
    assert stopping.predicted([(1000, 3.0)], 2000) == 6
    assert stopping.predicted([(500, 9.0), (1000, 3.0)], 2000) == 6
    assert stopping.predicted([(500, 1.0), (1000, 3.0)], 2000) == pytest.approx(9)
    assert stopping.predicted([(500, 1.0), (1000, 9.0)], 2000) == pytest.approx(36)


def test_a_method_stops_by_its_time_or_memory_and_says_why():
    assert stopping.reason_to_stop([], 2048, LIMITS) is None
    assert stopping.reason_to_stop([result(1024, 4.9)], 2048, LIMITS) is None
    long = stopping.reason_to_stop([result(1024, 5.1)], 2048, LIMITS)
    assert long == (
        "stopped from n = 2048 on: by its growth so far a call would take 10.20 s, the limit is 10.00 s"
    )
    large = stopping.reason_to_stop([result(1024, held=3 * GIB)], 2048, LIMITS)
    assert large == (
        "stopped from n = 2048 on: by its growth so far it would hold 6.00 GiB, the limit is 4.00 GiB"
    )
    stopped = [result(1024), result(2048, reason=long)]
    assert stopping.reason_to_stop(stopped, 4096, LIMITS) == long


@pytest.mark.parametrize("is_causal", [False, True])
def test_exact_rows_are_those_of_the_dense_definition(is_causal, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 7)
    arrays, rows = topical(2, 40, 8, seed=3), sampled_rows(40, 9)
    assert rows[[0, -1]].tolist() == [0, 39]
    query, key, value = (x.astype(np.float64) for x in arrays)
    hidden = np.triu(np.ones((40, 40), dtype=bool), 1) & is_causal

    def dense(key, own):
        logits = query @ key.swapaxes(1, 2) / math.sqrt(8)
        if own is not None:
            logits[:, np.arange(40), np.arange(40)] = own
        logits = np.where(hidden, -np.inf, logits)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (weights @ value / weights.sum(axis=-1, keepdims=True))[:, rows]

    plain = exact.exact_rows(arrays, rows, is_causal)
    np.testing.assert_allclose(plain, dense(key, None), rtol=1e-12)
    unit = query / np.linalg.norm(query, axis=-1, keepdims=True)
    shared = exact.exact_rows(arrays, rows, is_causal, exact.SHARED)
    np.testing.assert_allclose(shared, dense(unit, exact.OWN_LOGIT), rtol=1e-12)
    assert exact.relative_error(2 * plain, plain) == pytest.approx(1)


def test_data_are_the_same_for_a_seed_and_others_for_another():
    for draw in DATA.values():
        one, same, other = (draw(2, 30, 4, seed) for seed in (0, 0, 1))
        assert all(x.dtype == np.float32 and x.shape == (2, 30, 4) for x in one)
        assert all((x == y).all() and not (x == z).any() for x, y, z in zip(one, same, other, strict=True))
    assert normal(1, 4000, 4)[0].std() == pytest.approx(0.5, rel=0.05)


def test_the_peak_is_that_of_what_a_call_held_for_a_while():
    size = 2**26
    output, before, more, is_lower_bound = memory.peak_of(lambda: np.ones(size, dtype=np.uint8).sum())
    assert output == size
    assert before > 0
    if not is_lower_bound:
        assert 0.9 * size < more < 1.5 * size  # the kernel counts pages in batches


def record(*results):
    machine_ = {"processor": "P", "cores": 2, "load_average": 0, "backends": {"numpy": "NumpyBackend"}}
    header = {"date": "2026-01-01", "commit": "abc", "machine": machine_}
    load_ = Workload("topics", 8, 1024, 64, 192, False, 0)
    settings = vars(load_) | {"threads": 2}
    told = {"torch sdpa": "all pairs", "auto": "ours", "performer-pytorch": "features"}
    return Record(header, settings, told, {"xformers": "no CPU"}, {x.case: x for x in results})


FOUND = (
    result(1024, 0.5, method="torch sdpa", ratio=1.0),
    result(1024, 0.25, ratio=2.0),
    result(2048, reason="stopped from n = 2048 on: x", method="torch sdpa"),
    replace(result(2048, 0.625), is_counted=True),
)


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "folder" / "cpu.json"
    record(*FOUND).save(path)
    assert load(path) == record(*FOUND)
    assert [x.name for x in path.parent.iterdir()] == ["cpu.json"]


def test_results_at_shorter_lengths_of_the_same_method_and_data():
    elsewhere = replace(FOUND[1], case=Case("normal", 512, "auto"))
    own = record(*FOUND[::-1], elsewhere)
    assert [x.case.length for x in own.earlier(Case("topics", 4096, "auto"))] == [1024, 2048]
    assert own.earlier(Case("topics", 1024, "auto")) == []


def test_the_tables_have_every_figure_or_the_reason_why_not():
    lines = report.report(record(*FOUND))
    assert lines[1].endswith("192 entries a query, seed 0; ours by NumpyBackend")
    rows = [line.split() for line in lines]
    assert ["torch", "sdpa", "500", "[1]"] in rows
    assert ["auto", "250", "625"] in rows
    assert ["auto", "2"] in rows
    assert ["auto", "2.50"] in rows
    assert ["auto", "~128+64", "128+64"] in rows
    assert "[1] torch sdpa: stopped from n = 2048 on: x" in lines
    assert "xformers: not run, no CPU" in lines


def test_lengths_are_short_and_growth_is_that_of_a_doubling():
    assert [report.short(n) for n in (1000, 1024, 2**20)] == ["1000", "1k", "1M"]
    assert report.growth([1.0, 9.0], 4) == pytest.approx(3)


def test_nothing_is_dropped_silently():
    missing = {"performer-pytorch": "not installed"}
    chosen, absent = run.choose(None, ["numpy"], True, missing)
    assert list(chosen)[:4] == ["torch sdpa", "exact", "scatterbrain", "auto"]
    assert absent["performer-pytorch"] == "not installed"
    assert absent["nystrom-attention"] == "it has no causal form"
    assert not {*chosen} & {*absent}
    assert {*chosen, *absent} == {*methods.own_methods(["numpy"]), *peers.PEERS, *peers.NOT_RUN}
    chosen, absent = run.choose(["auto (torch)"], ["torch"], False, missing)
    assert (list(chosen), absent) == (["torch sdpa", "auto (torch)"], {})
    with pytest.raises(ValueError, match=r"methods must be some of torch sdpa, .*, got autp"):
        run.choose(["autp"], ["numpy"], False, {})


def test_peers_are_pinned_as_they_are_told():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {extras[name][0] for name in extras if name.startswith("peer-")}
    assert pins == {f"{peer.distribution}=={peer.version}" for peer in peers.PEERS.values()}


def test_a_peer_that_is_not_installed_says_so():
    peer = replace(peers.PEERS["performer-pytorch"], module="no_such_module")
    assert peers.missing(peer) == (
        "performer-pytorch 1.1.4 cannot be imported: No module named 'no_such_module'"
    )


def test_a_child_that_fails_or_takes_too_long_leaves_a_reason_and_no_process():
    with pytest.raises(processes.ChildError, match="KeyError: 'no such job'"):
        processes.run_child("no such job", {}, 1, 60)
    with pytest.raises(processes.ChildError, match="killed after 0 s"):
        processes.run_child("machine", {"threads": 1}, 1, 0.01)


def test_quick_sets_only_what_was_not_said():
    options = command.parse(["--quick", "--pairs", "7"])
    assert (options.lengths, options.n_pairs) == ([1024, 4096], 7)
    options = command.parse([])
    assert (options.lengths[0], options.lengths[-1], options.n_pairs) == (1024, 2**20, 5)


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command, its jobs in this very process, at a small size."""
    pytest.importorskip("torch", reason="the benchmark runs beside Torch")
    monkeypatch.setattr(child, "set_threads", lambda _: None)
    monkeypatch.setattr(command, "end_as_interrupted", lambda: None)
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 16)
    jobs = []

    def here(kind, arguments, threads, most_seconds):
        jobs.append((kind, arguments.get("method")))
        return json.loads(json.dumps(child.JOBS[kind](**arguments)))

    monkeypatch.setattr(command, "run_child", here)
    monkeypatch.setattr(run, "run_child", here)

    def call(*arguments):
        jobs.clear()
        small = ["--heads", "2", "--dim", "8", "--entries", "12", "--rows", "5", "--pairs", "1"]
        output = ["--output", str(tmp_path / "cpu.json")]
        assert command.main([*small, *output, "--data", "topics", *arguments]) == 0
        return [method for kind, method in jobs if kind == "measure"]

    return call


def test_the_command_writes_tables_numbers_and_plots(main, tmp_path, capsys):
    wanted = ["--methods", "exact", "scatterbrain", "auto", "--lengths", "48", "96"]
    measured = main(*wanted)
    assert measured == ["torch sdpa", "exact", "scatterbrain", "auto"] * 2
    assert {x.name for x in tmp_path.iterdir()} == {"cpu.json", "cpu-topics.png"}
    found = load(tmp_path / "cpu.json")
    assert {"processor", "cores", "pools", "operations_a_second"} <= set(found.header["machine"])
    errors = {case.method: x.error for case, x in found.results.items() if case.length == 96}
    assert max(errors["torch sdpa"], errors["exact"]) < 1e-5 < errors["auto"]
    assert all(
        x.reason is None and len(x.times) == len(x.reference_times) == 1 for x in found.results.values()
    )
    out = capsys.readouterr().out
    assert "2 heads, d = 8, float32, 12 entries a query" in out
    assert main(*wanted, "--resume") == []
    assert command.main(["--show", str(tmp_path / "cpu.json"), "--output", str(tmp_path / "again.json")]) == 0
    assert {x.name for x in tmp_path.iterdir()} == {"cpu.json", "cpu-topics.png", "again-topics.png"}


def test_a_method_that_takes_too_long_is_not_run_at_the_next_length(main, tmp_path):
    measured = main("--methods", "auto", "--lengths", "48", "96", "--most-seconds", "1e-9")
    assert measured == ["torch sdpa", "auto", "torch sdpa"]
    reason = load(tmp_path / "cpu.json").results[Case("topics", 96, "auto")].reason
    assert reason.startswith("stopped from n = 96 on: by its growth so far a call would take")


def test_on_torch_ours_is_what_it_is_on_numpy():
    pytest.importorskip("torch")
    own = Workload("topics", 2, 64, 8, 12, True, 0)
    arrays, rows = own.draw(), np.arange(64)
    outputs = {}
    for name, method in methods.own_methods(methods.LIBRARIES).items():
        prepared = method.prepare(arrays, own)
        outputs[name] = prepared.rows(prepared.call(), rows)
    for name in ("exact", "scatterbrain", "auto"):
        np.testing.assert_allclose(outputs[f"{name} (torch)"], outputs[name], atol=1e-4)
    np.testing.assert_allclose(outputs["torch sdpa"], outputs["exact"], atol=1e-5)


# Of 128 keys, all of which have entries; those that are no estimates of softmax attention have a loose bound.
LARGEST_ERRORS = {
    "performer-pytorch": 0.9,
    "reformer-pytorch": 1e-5,
    "linear-attention-transformer": 0.9,
    "nystrom-attention": 0.2,
    "fast-transformers": 0.5,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_estimate_what_their_error_is_against(name, is_causal):
    peer = peers.PEERS[name]
    if (why := peers.missing(peer)) is not None:
        pytest.skip(why)
    if is_causal and peer.method.reason_not_causal:
        pytest.skip(peer.method.reason_not_causal)
    own = Workload("normal", 2, 128, 16, 128, is_causal, 0)
    arrays, rows = own.draw(), np.arange(64, 128, 3)
    prepared = peer.method.prepare(arrays, own)
    assert prepared.target == peer.method.target
    found = prepared.rows(prepared.call(), rows)
    exact_output = exact.exact_rows(arrays, rows, is_causal, prepared.target)
    assert exact.relative_error(found, exact_output) < LARGEST_ERRORS[name]
