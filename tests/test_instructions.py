"""What benchmarks/instructions.py makes of counts; the counts themselves take valgrind and half a minute."""

import pytest

from benchmarks import instructions

FOUND = {"versions": {"numpy": "2"}, "shape": [2, 1024, 32], "instructions": {"exact": 1000, "auto": 500}}


def reviewed(**counts):
    return FOUND | {"instructions": counts}


def test_more_than_the_tolerance_is_a_failure_and_less_is_not():
    lines, is_worse = instructions.compared(FOUND, reviewed(exact=990, auto=600), 0.02)
    assert not is_worse
    assert lines[0] == "exact: 1,000 instructions, 1.010 of the reviewed"
    assert lines[1] == "auto: 500 instructions, 0.833 of the reviewed: fewer, to be accepted"
    lines, is_worse = instructions.compared(FOUND, reviewed(exact=970, auto=500), 0.02)
    assert is_worse
    assert lines[0].endswith(": MORE")


@pytest.mark.parametrize("other", [{}, FOUND | {"versions": {"numpy": "3"}}, FOUND | {"shape": [1, 1, 1]}])
def test_counts_with_other_versions_or_none_are_not_compared(other):
    lines, is_worse = instructions.compared(FOUND, other, 0.02)
    assert not is_worse
    assert lines[-1].startswith("not compared")


def test_the_total_of_a_part_is_read(tmp_path):
    part = tmp_path / "counts.2"
    part.write_text("version: 1\nfn=(1) x\n1 20\nsummary: 20\ntotals: 12345\n")
    assert instructions.total(part) == 12345


def test_without_valgrind_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(instructions.shutil, "which", lambda _: None)
    assert instructions.main([]) == 0
    assert "valgrind is not installed" in capsys.readouterr().out


def test_the_calls_run_between_their_marks(monkeypatch):
    steps, attention = [], instructions.sb.attention

    def spy(*arrays, **arguments):
        steps.append(arguments)
        return attention(*arrays, **arguments)

    monkeypatch.setattr(instructions.os, "getpgid", lambda _: steps.append("mark"))
    monkeypatch.setattr(instructions.sb, "attention", spy)
    instructions.make_calls()
    calls = instructions.CALLS.values()
    assert steps == [step for call in calls for step in (call, "mark", call, "mark")]
