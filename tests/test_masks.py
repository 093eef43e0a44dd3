"""Masks: key padding stays linear and changes nothing it hides; any other boolean mask is obeyed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    BY_CONTENT,
    CAUSAL,
    MASKED,
    METHODS,
    OF_ANY_LENGTH,
    least_keys,
    oracle,
    relative_error,
    tolerance,
)
from problems import draw_problem, eps

import scatterbrain_core as sb

SHAPES = {
    "padding": (2, 1, 1, 41),
    "one padding": (41,),
    "rows": (2, 1, 37, 1),
    "dense": (2, 3, 37, 41),
    "dense a batch": (2, 1, 37, 41),
    "one": (1, 1),
}
CAUSAL_SHAPES = {
    "padding": (2, 1, 1, 61),
    "padding a head": (2, 3, 1, 61),
    "one padding": (61,),
    "rows": (2, 1, 57, 1),
    "one": (1, 1),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_masks_of_any_shape_are_obeyed(library, dtype, rng, name, shape):
    q, k, v = draw_problem(rng, 37, 41, lead=(2, 3), dtype=dtype)
    mask = rng.random(shape) < 0.6
    if shape[-2:] == (37, 41):
        mask[..., 30:35] = False  # keys hidden from all
        mask[..., 11, :] = False  # a query that sees none
    est = sb.estimate(*library.arrays(q, k, v), method=METHODS[name], attn_mask=library.asarray(mask))
    output, lse = oracle(q, k, v, METHODS[name], mask=mask)
    assert relative_error(library.to_numpy(est.output), output) <= tolerance(dtype, q, k)
    np.testing.assert_array_equal(np.isneginf(library.to_numpy(est.lse)), np.isneginf(lse))


@pytest.mark.parametrize("name", BY_CONTENT)
def test_hidden_keys_are_as_good_as_absent(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 40, 60, dtype=dtype)
    kept = rng.permutation(60)[:37]
    mask = np.zeros((1, 60), dtype=bool)
    mask[0, kept] = True
    kept.sort()
    hidden = sb.estimate(*library.arrays(q, k, v), method=METHODS[name], attn_mask=library.asarray(mask))
    absent = sb.estimate(*library.arrays(q, k[:, kept], v[:, kept]), method=METHODS[name])
    error = relative_error(library.to_numpy(hidden.output), library.to_numpy(absent.output))
    assert error <= tolerance(dtype, q, k)
    assert hidden.cost.pairs == pytest.approx(absent.cost.pairs)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("shape", CAUSAL_SHAPES.values(), ids=CAUSAL_SHAPES.keys())
def test_masks_of_keys_or_queries_go_with_causality(library, dtype, rng, name, shape):
    q, k, v = draw_problem(rng, 57, 61, lead=(2, 3), dtype=dtype)
    mask = rng.random(shape) < 0.6
    arguments = {"method": METHODS[name], "attn_mask": library.asarray(mask), "is_causal": True}
    est = sb.estimate(*library.arrays(q, k, v), **arguments)
    output, lse = oracle(q, k, v, METHODS[name], mask=mask, is_causal=True)
    assert relative_error(library.to_numpy(est.output), output) <= tolerance(dtype, q, k)
    np.testing.assert_array_equal(np.isneginf(library.to_numpy(est.lse)), np.isneginf(lse))


@pytest.mark.parametrize("name", [name for name in BY_CONTENT if name in CAUSAL])
def test_padding_on_the_left_of_a_causal_sequence_is_as_good_as_absent(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 90, 90, dtype=dtype)
    mask = (np.arange(90) >= np.array([[31], [7]]))[:, None, :]
    arguments = {"method": METHODS[name], "is_causal": True}
    padded = sb.attention(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **arguments)
    for head, start in enumerate((31, 7)):
        alone = sb.attention(*library.arrays(*(x[head, start:] for x in (q, k, v))), **arguments)
        got = library.to_numpy(padded)[head]
        assert not got[:start].any()
        assert relative_error(got[start:], library.to_numpy(alone)) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("name", [name for name in CAUSAL if not name.startswith("clusters, ")])
def test_the_future_changes_no_bit_of_a_padded_past(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 140, 140, dim=8, lead=(1,), dtype=dtype)
    mask = (np.arange(140) >= 9) & (np.arange(140) % 7 > 0)
    arguments = {"method": METHODS[name], "is_causal": True, "attn_mask": library.asarray(mask)}
    before = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    for edge in (40, 64, 129):
        changed = [x.copy() for x in (q, k, v)]
        for x, new in zip(changed, draw_problem(rng, 140, 140, dim=8, lead=(1,), dtype=dtype), strict=True):
            x[:, edge:] = 30 * new[:, edge:]
        after = library.to_numpy(sb.attention(*library.arrays(*changed), **arguments))
        np.testing.assert_array_equal(after[:, :edge], before[:, :edge])
        assert (after != before)[:, edge:].any()


@given(data=st.data())
def test_any_padding_of_any_causal_problem(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    parts = METHODS[data.draw(st.sampled_from(CAUSAL))]
    n_queries, n_keys = data.draw(st.integers(1, 80)), data.draw(st.integers(least_keys(parts), 80))
    q, k, v = draw_problem(rng, n_queries, n_keys, lead=(2, 2))
    shape = data.draw(
        st.sampled_from([(n_keys,), (2, 1, 1, n_keys), (2, 2, 1, n_keys), (2, 1, n_queries, 1)])
    )
    mask = rng.random(shape) < data.draw(st.sampled_from([0.05, 0.5, 0.95]))
    got = sb.attention(q, k, v, method=parts, is_causal=True, attn_mask=mask)
    expected, _ = oracle(q, k, v, parts, is_causal=True, mask=mask)
    assert relative_error(got, expected) <= tolerance("float64", q, k)


@pytest.mark.parametrize("name", METHODS)
def test_what_stands_in_padding_changes_no_bit(library, dtype, is_causal, rng, name):
    q, k, v = draw_problem(rng, 50, 64, dtype=dtype)
    mask = np.arange(64) % 45 > 3
    arguments = {"method": METHODS[name], "attn_mask": library.asarray(mask), "is_causal": is_causal}
    clean = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    for garbage in (1e30, np.inf, np.nan):
        k[:, ~mask], v[:, ~mask] = garbage, -garbage
        dirty = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
        np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(1, 30), (20, 1), (20, 30)])
def test_a_query_that_sees_no_key_gets_zeros(library, dtype, rng, name, shape):
    q, k, v = draw_problem(rng, 20, 30, dtype=dtype)
    mask = library.asarray(np.zeros(shape, dtype=bool))
    est = sb.estimate(*library.arrays(q, k, v), method=METHODS[name], attn_mask=mask)
    assert not library.to_numpy(est.output).any()
    assert np.isneginf(library.to_numpy(est.lse)).all()
    assert est.cost.pairs == 0


def test_a_mask_of_true_is_no_mask(library, rng):
    q, k, v = draw_problem(rng, 33, 44)
    for name, parts in METHODS.items():
        plain = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=parts))
        for shape in [(1, 44), (33, 1), *([(33, 44)] if name in MASKED else [])]:
            mask = library.asarray(np.ones(shape, dtype=bool))
            masked = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=parts, attn_mask=mask))
            assert relative_error(masked, plain) <= 64 * eps("float64")


@pytest.mark.parametrize("name", MASKED)
def test_padding_is_padding_however_it_is_written(library, dtype, rng, name):
    q, k, v = draw_problem(rng, 40, 50, dtype=dtype)
    mask = np.arange(50) % 3 > 0
    arguments = {"method": METHODS[name]}
    padding = sb.estimate(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **arguments)
    k[:, ~mask] = np.nan
    dense = library.asarray(np.broadcast_to(mask, (40, 50)).copy())
    written_out = sb.estimate(*library.arrays(q, k, v), attn_mask=dense, **arguments)
    error = relative_error(library.to_numpy(written_out.output), library.to_numpy(padding.output))
    assert error <= tolerance(dtype, q, np.nan_to_num(k))
    assert written_out.cost.pairs == pytest.approx(padding.cost.pairs)


@pytest.mark.parametrize("name", MASKED)
def test_what_a_dense_mask_hides_does_not_change_a_row(library, dtype, rng, name):
    """Causality by a mask: no row depends on keys, values or queries that the mask hides from it."""
    q, k, v = draw_problem(rng, 60, 60, lead=(1,), dtype=dtype)
    arguments = {"method": METHODS[name], "attn_mask": library.asarray(np.tri(60, dtype=bool))}
    before = library.to_numpy(sb.attention(*library.arrays(q, k, v), **arguments))
    changed = [
        np.concatenate([x[:, :40], 5 * rng.standard_normal(x[:, 40:].shape)], axis=1) for x in (q, k, v)
    ]
    changed = [x.astype(dtype) for x in changed]
    after = library.to_numpy(sb.attention(*library.arrays(*changed), **arguments))
    assert relative_error(after[:, :40], before[:, :40]) <= tolerance(dtype, *changed[:2])
    assert relative_error(after[:, 40:], before[:, 40:]) > 0.1


@pytest.mark.parametrize("name", OF_ANY_LENGTH)
def test_hidden_keys_are_as_good_as_absent_at_large_norms(library, rng, name):
    """A hidden key's features (of a zero vector: 1) would dwarf those of keys of norm 68."""
    q, k, v = (x.astype(np.float32) for x in draw_problem(rng, 30, 50, dim=8))
    q, k = 24 * q, 24 * k
    mask = np.arange(50) < 45
    hidden = sb.attention(*library.arrays(q, k, v), method=METHODS[name], attn_mask=library.asarray(mask))
    absent = sb.attention(*library.arrays(q, k[:, :45], v[:, :45]), method=METHODS[name])
    assert relative_error(library.to_numpy(hidden), library.to_numpy(absent)) <= tolerance("float32", q, k)
    assert np.abs(library.to_numpy(hidden)).max() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_hidden_keys_weigh_nothing_beside_the_smallest_weights(library, rng, name):
    """A hidden key, zero, has logit 0, and those that are seen have -200: it must not be the reference."""
    q, k, v = (x.astype(np.float32) for x in draw_problem(rng, 45, 50, dim=8))
    q, k = 24 + q / 2, -24 + k / 2
    mask = rng.random(50) < 0.6
    arguments = {"method": METHODS[name], "scale": 0.05}
    est = sb.estimate(*library.arrays(q, k, v), attn_mask=library.asarray(mask), **arguments)
    output, lse = oracle(q, k, v, METHODS[name], mask=mask, scale=0.05)
    bound = tolerance("float32", q, k, 0.05)
    assert relative_error(library.to_numpy(est.output), output) <= bound
    seen = ~np.isneginf(lse)
    np.testing.assert_array_equal(np.isfinite(library.to_numpy(est.lse)), seen)
    assert np.abs(library.to_numpy(est.lse)[seen] - lse[seen]).max(initial=0.0) <= bound


@pytest.mark.parametrize(
    ("n_queries", "n_keys", "shape"),
    [(4, 0, (2, 1, 0)), (4, 0, (4, 0)), (0, 6, (2, 0, 1)), (0, 6, (0, 6)), (0, 6, (1, 6)), (0, 0, (0, 0))],
)
def test_empty_arrays_may_have_a_mask(library, n_queries, n_keys, shape):
    q, k, v = draw_problem(np.random.default_rng(0), n_queries, n_keys)
    mask = library.asarray(np.ones(shape, dtype=bool))
    out = sb.attention(*library.arrays(q, k, v), attn_mask=mask)
    assert out.shape == (2, n_queries, 3)
    assert not library.to_numpy(out).any()


def test_the_masks_of_exact_are_torchs(rng):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.asarray(x) for x in draw_problem(rng, 30, 41, lead=(2, 3)))
    mask = torch.asarray(rng.random((2, 1, 30, 41)) < 0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(sb.attention(q, k, v, method="exact", attn_mask=mask), expected)
