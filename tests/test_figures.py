"""What docs/figures draws is what it says: a small run of the computation meets the closed forms."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import alarms
import moments
import numpy as np
import pytest
from alarms import MISS, Sum
from scipy import stats

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FIGURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The squares' tails are too heavy for a small sample where ‖q + k‖² = 2 + 2 q·k is larger.
COSINES = {"sparse": [-0.5, 0.0, 0.5], "low-rank": [-0.9], "both": [-0.9]}


@pytest.mark.statistics
@pytest.mark.parametrize("name", COSINES)
def test_measured_errors_of_theorem_2_meet_their_closed_form(name):
    theorem2 = script("theorem2")
    cosines = COSINES[name]
    errors = np.concatenate(list(theorem2.squared_errors(name, cosines, alarms.seeds(100))))
    n, m = len(errors), theorem2.FEATURES.n_features
    assert n == 100 * theorem2.HEADS
    off = theorem2.closed_form("sparse", cosines) / np.exp(2 * np.asarray(cosines))
    off = off if name != "low-rank" else np.ones(len(cosines))
    for error, cosine, share in zip(errors.T, cosines, off, strict=True):
        case = f"{name} at {cosine}"
        if name == "sparse":  # all of the weight is lost, or nothing
            hits = int((error > 0.5 * np.exp(2 * cosine)).sum())
            np.testing.assert_allclose(error.sum(), hits * np.exp(2 * cosine), rtol=1e-9)
            alarms.compare_count("figure of theorem 2", case, hits, n, share)
            continue
        law = moments.mixture(moments.mean_of_features(2 + 2 * cosine, m), share)
        mean, variance, third = moments.of_square(law)
        np.testing.assert_allclose(theorem2.closed_form(name, [cosine]), mean * np.exp(2 * cosine), rtol=1e-9)
        sd = theorem2.sampling_error(name, [cosine], n) / np.exp(2 * cosine)
        np.testing.assert_allclose(sd, np.sqrt(variance / n), rtol=1e-9)
        root = np.sqrt(2 + 2 * cosine)

        def single(x, root=root, share=share):
            return n * m * share * stats.norm.sf(np.log1p(m * np.sqrt(x)) / root + root / 2)

        squares = Sum(n * variance, n * third, n, single)
        accepted = alarms.compare_sum(
            "figure of theorem 2", case, error.sum() / np.exp(2 * cosine) - n * mean, squares
        )
        assert alarms.miss(n * mean, accepted, 2 * np.sqrt(n * variance)) <= MISS  # twice the error


def test_the_figure_is_drawn(tmp_path, monkeypatch, capsys):
    theorem2 = script("theorem2")
    monkeypatch.setattr("sys.argv", ["theorem2.py", "--seeds", "2", "-o", str(tmp_path / "figure.png")])
    theorem2.main()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert capsys.readouterr().out.count("measured / closed form") == 3
