"""Causal means causal: what comes later changes no bit of what came before."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import CAUSAL, METHODS, OF_ANY_LENGTH
from problems import draw_problem

import scatterbrain_core as sb

ALL = {name: METHODS[name] for name in CAUSAL} | {"auto": "auto", "small budget": "scatterbrain"}


@pytest.mark.parametrize("name", ALL)
def test_the_future_changes_no_bit_of_the_past(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 140, 140, dim=8, lead=(1,), dtype=dtype)
    arguments = {"method": ALL[name], "is_causal": True, "budget": 0.05 if name == "small budget" else 0.2}
    before = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    for edge in (1, 40, 64, 129):
        later = draw_problem(rng, 140 - edge, 140 - edge, dim=8, lead=(1,), dtype=dtype)
        changed = [x.copy() for x in (q, k, v)]
        for x, new in zip(changed, later, strict=True):
            x[:, edge:] = 30 * new
        after = library.to_numpy(sb.attention(*library.arrays(*changed), **arguments))
        np.testing.assert_array_equal(after[:, :edge], before[:, :edge])
        assert (after != before)[:, edge:].any()


@pytest.mark.parametrize("name", ["performer", "scatterbrain", "limited", "tables"])
def test_large_features_of_the_future_change_no_bit_of_the_past(library, dtype, rng, name):
    """Keys of the future on the rows of W: a reference over the whole sequence would be theirs."""
    q, k, v = draw_problem(rng, 200, 200, dim=8, lead=(1,), dtype=dtype)
    (W,) = METHODS[name].low_rank.draw(sb.random.Draws(0).feature_generator(), 8)
    arguments = {"method": METHODS[name], "is_causal": True, "scale": 1.0}
    before = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    for edge in (70, 150):
        changed = k.copy()
        changed[:, edge:] = np.resize(W, (200 - edge, 8))  # of log features ‖w‖²/2, the largest there are
        after = library.to_numpy(sb.attention(*library.arrays(q, changed, v), **arguments))
        np.testing.assert_array_equal(after[:, :edge], before[:, :edge])
        assert (after != before)[:, edge:].any()


@pytest.mark.parametrize("name", [name for name in CAUSAL if name in OF_ANY_LENGTH])
def test_a_longer_sequence_begins_with_the_shorter_one(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 150, 150, lead=(1,), dtype=dtype)
    arguments = {"method": METHODS[name], "is_causal": True}
    whole = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    start = library.to_numpy(sb.attention(*library.arrays(q[:, :99], k[:, :99], v[:, :99]), **arguments))
    np.testing.assert_allclose(
        start, whole[:, :99], rtol=200 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps
    )


def test_the_first_query_sees_the_first_key_alone(library, dtype, rng):
    q, k, v = draw_problem(rng, 20, 30, dtype=dtype)
    for name in ("exact", "performer", "scatterbrain"):
        out = sb.attention(*library.arrays(q, k, v), method=name, is_causal=True)
        np.testing.assert_allclose(library.to_numpy(out)[:, 0], v[:, 0], rtol=4 * np.finfo(dtype).eps)


def test_queries_behind_the_last_key_see_all_keys(library, dtype, rng):
    """Top-left alignment, as torch has it: with Lq > Lk the last queries are not causal any more."""
    q, k, v = draw_problem(rng, 60, 25, dtype=dtype)
    parts = sb.Scatterbrain(sb.PositiveFeatures(6), sb.RandomHyperplanes(2, 2))
    causal = sb.attention(*library.arrays(q, k, v), method=parts, is_causal=True)
    full = sb.attention(*library.arrays(q, k, v), method=parts)
    np.testing.assert_allclose(
        library.to_numpy(causal)[:, 24:],
        library.to_numpy(full)[:, 24:],
        rtol=300 * np.finfo(dtype).eps,
        atol=20 * np.finfo(dtype).eps,
    )


def test_causal_exact_is_torchs(rng):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.asarray(x) for x in draw_problem(rng, 30, 41, lead=(2, 3)))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(sb.attention(q, k, v, method="exact", is_causal=True), expected)
