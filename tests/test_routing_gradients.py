"""Gradients of routed clusters: Torch's autograd, and differences of the estimate with its choice fixed."""

from __future__ import annotations

import numpy as np
import pytest
from libraries import make_library
from problems import draw_problem
from routed_choices import library_choices
from routed_oracle import routed
from test_routing import layout, method
from test_vjp import assert_same, by_torch, with_vjp


@pytest.mark.parametrize(("n_queries", "n_keys"), [(150, 170), (90, 90)])
def test_torchs_autograd_gives_the_same(library, dtype, is_causal, rng, n_queries, n_keys):
    arrays = draw_problem(rng, n_queries, n_keys, dim=6, dtype=dtype)
    cotangent = rng.standard_normal((2, n_queries, 3)).astype(dtype)
    options = {"method": method(24), "is_causal": is_causal}
    got = with_vjp(library, arrays, cotangent, **options)
    assert_same(got, by_torch(arrays, cotangent, **options), dtype)


@pytest.mark.parametrize("axis", ["keys", "rows"])
def test_masks(library, rng, axis):
    arrays = draw_problem(rng, 90, 100)
    mask = rng.random((2, 1, 100) if axis == "keys" else (2, 90, 1)) < 0.7
    cotangent = rng.standard_normal((2, 90, 3))
    expected = by_torch(arrays, cotangent, attn_mask=mask, method=method(20))
    got = with_vjp(library, arrays, cotangent, attn_mask=library.asarray(mask), method=method(20))
    assert_same(got, expected)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_differences_of_the_estimate_with_its_choice_fixed(rng, is_causal, part):
    """What a gradient leaves out is the choice: labels, groups, axes of the variances, what is opened."""
    arrays = draw_problem(rng, 90, 100, lead=(1,))
    plan = layout(24, *arrays[:2], is_causal)
    like = library_choices(np.asarray, arrays, plan, is_causal=is_causal)
    cotangent = rng.standard_normal((1, 90, 3))
    options = {"method": method(24), "is_causal": is_causal}
    _, *gradients = with_vjp(make_library("numpy"), arrays, cotangent, **options)
    for _ in range(3):
        direction, sides = rng.standard_normal(arrays[part].shape), []
        for step in (1e-5, -1e-5):
            moved = [x + step * direction if i == part else x for i, x in enumerate(arrays)]
            sides.append(np.sum(routed(*moved, plan, is_causal=is_causal, like=like).output * cotangent))
        expected = (sides[0] - sides[1]) / 2e-5
        assert np.sum(gradients[part] * direction) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("factor", [1, 60])
@pytest.mark.parametrize("masked", ["no", "keys", "rows"])
def test_differences_through_groups_that_a_tile_sees_as_one(rng, few_looked, part, factor, masked):
    """Their logits and values, which depend on the mean query of the tile."""
    arrays = list(draw_problem(rng, 150, 400, lead=(1,)))
    arrays[0] = arrays[0] * factor
    keys, rows = rng.random((1, 400)) < 0.7, rng.random((1, 150)) < 0.7
    mask = {"no": None, "keys": keys[:, None], "rows": rows[..., None]}[masked]
    masks = {"no": {}, "keys": {"key_mask": keys}, "rows": {"row_mask": rows}}[masked]
    plan = layout(24, *arrays[:2])
    like = library_choices(np.asarray, arrays, plan, is_causal=False, attn_mask=mask)
    cotangent = rng.standard_normal((1, 150, 3))
    _, *gradients = with_vjp(make_library("numpy"), arrays, cotangent, method=method(24), attn_mask=mask)
    direction, step, sides = rng.standard_normal(arrays[part].shape), 1e-6 / factor, []
    for signed in (step, -step):
        moved = [x + signed * direction if i == part else x for i, x in enumerate(arrays)]
        result = routed(*moved, plan, like=like, **masks)
        assert any(tile.wholes for head in result.heads for tile in head.tiles)
        sides.append(np.sum(result.output * cotangent))
    expected = (sides[0] - sides[1]) / (2 * step)
    assert np.sum(gradients[part] * direction) == pytest.approx(expected, rel=1e-5, abs=1e-5)
