"""The drop-in for transformers: its masks against a definition, and the method against calls by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scatterbrain_core as sb

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import PARTS, definition, forward, problem  # noqa: E402
from transformers import masking_utils  # noqa: E402

import scatterbrain_backends.transformers as drop_in  # noqa: E402
from scatterbrain_backends.transformers import masks  # noqa: E402
from scatterbrain_backends.transformers.intervals import Intervals  # noqa: E402

pytestmark = pytest.mark.usefixtures("exact_drop_in")
KINDS = ["causal", "sliding", "chunked", "packed", "blocks", "bidirectional", "bidirectional sliding"]


def mask_function(kind, size, batch, n_keys, rng):
    """A mask function of transformers, over keys at the places 0, ..., n_keys - 1."""
    causal = masking_utils.causal_mask_function
    if kind == "sliding":
        return masking_utils.sliding_window_causal_mask_function(size)
    if kind == "chunked":
        left = torch.asarray(rng.integers(0, n_keys, batch))
        return masking_utils.chunked_causal_mask_function(size, left)
    if kind in ("blocks", "scattered blocks"):
        blocks = np.broadcast_to(np.arange(n_keys // size + 1), (batch, n_keys // size + 1))
        blocks = np.where(rng.random(blocks.shape) < 0.3, -1, blocks if kind == "blocks" else blocks % 2)
        blocks = np.repeat(blocks, size, axis=1)[:, :n_keys]
        return masking_utils.or_masks(causal, masking_utils.blockwise_overlay(torch.asarray(blocks)))
    if kind == "bidirectional":
        return masking_utils.bidirectional_mask_function
    if kind == "bidirectional sliding":
        return masking_utils.sliding_window_bidirectional_mask_function(size)
    if kind == "packed":
        return packed(np.broadcast_to(np.arange(n_keys) // size, (batch, n_keys)))
    return causal


def packed(numbers):
    """The mask function of causal sequences that are packed into rows, from the sequence of each token."""
    own = masking_utils.packed_sequence_mask_function(torch.asarray(np.array(numbers)))
    return masking_utils.and_masks(masking_utils.causal_mask_function, own)


def mask_arguments(data, kind, batch, n_queries, rng):
    """Arguments of a mask function, as transformers gives them, of some model."""
    past = 0 if kind == "packed" else data.draw(st.sampled_from([0, 0, 1, 33]))
    room = data.draw(st.sampled_from([0, 4])) if kind == "causal" else 0  # of a static cache
    dropped = data.draw(st.sampled_from([0, 7])) if kind == "sliding" and past else 0  # by a sliding cache
    n_keys = past + n_queries + room
    size = data.draw(st.integers(1, n_keys))
    lengths = rng.integers(0, dropped + n_keys + 1, (batch, 1))
    places = np.arange(dropped + n_keys)
    shown = {
        "none": None,
        "left": places >= lengths,
        "right": places < lengths,
        "any": rng.random((batch, dropped + n_keys)) < 0.7,
    }[data.draw(st.sampled_from(["none", "left", "right", "any"]))]
    return {
        "batch_size": batch,
        "q_length": n_queries,
        "kv_length": n_keys,
        "q_offset": dropped + past,
        "kv_offset": dropped,
        "mask_function": mask_function(kind, size, batch, n_keys, rng),
        "attention_mask": None if shown is None else torch.asarray(shown),
        "local_size": size if "sliding" in kind or kind == "chunked" else None,
        "allow_is_causal_skip": kind in ("causal", "sliding", "chunked") and not (room and n_queries == 1),
        "allow_is_bidirectional_skip": kind.startswith("bidirectional"),
    }


def all_pairs(arguments):
    """The mask of all pairs that transformers makes of them."""
    plain = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return masking_utils.sdpa_mask(**arguments | plain).numpy()


@pytest.mark.parametrize("kind", [*KINDS, "scattered blocks"])
@given(data=st.data())
def test_whatever_a_mask_says_is_obeyed(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, heads, group = (data.draw(st.integers(1, n)) for n in (3, 2, 3))
    arguments = mask_arguments(data, kind, batch, data.draw(st.integers(1, 60)), rng)
    n_queries, n_keys = arguments["q_length"], arguments["kv_length"]
    query = rng.standard_normal((batch, heads * group, n_queries, 5))
    key, value = (
        rng.standard_normal((batch, heads, n_keys, 5)),
        rng.standard_normal((batch, heads, n_keys, 3)),
    )
    sinks = rng.standard_normal(heads * group) if data.draw(st.booleans()) else None
    softcap = data.draw(st.sampled_from([None, None, 1.5]))
    with drop_in.configure(exact_below=data.draw(st.sampled_from([0, 20, 1000]))):
        mask = drop_in.scatterbrain_mask(**arguments)
        asked = {"scaling": 0.7, "softcap": softcap, "s_aux": None if sinks is None else torch.asarray(sinks)}
        got = forward((query, key, value), mask, arguments, **asked)
    seen = all_pairs(arguments)
    expected = definition(query, key, value, seen, 0.7, softcap, sinks)
    sees = np.broadcast_to(seen.any(-1)[:, 0, :, None, None], got.shape)
    np.testing.assert_allclose(got[sees], expected[sees], rtol=1e-11, atol=1e-12)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_linear_in_the_length(kind, rng, monkeypatch):
    """Nothing of Lq × Lk is handed on, and only so many pairs are looked at together."""
    n, asked = 600, []
    arguments = {
        "batch_size": 2,
        "q_length": n,
        "kv_length": n,
        "mask_function": mask_function(kind, 50, 2, n, rng),
        "attention_mask": torch.asarray(np.arange(n) >= np.array([[0], [9]])),
        "allow_is_bidirectional_skip": True,
    }
    inner = arguments["mask_function"]
    if kind not in ("causal", "bidirectional"):

        def counted(*indices):
            asked.append(np.prod(np.broadcast_shapes(*(x.shape for x in indices))))
            return inner(*indices)

        arguments["mask_function"] = counted
    monkeypatch.setattr(masks, "CHUNK_ELEMENTS", 16 * 2 * n)
    mask = drop_in.scatterbrain_mask(**arguments)
    assert mask.shape in [(2, 1, 3, n), (2, 1, 1, n)]
    assert asked == ([] if kind in ("causal", "bidirectional") else [16 * 2 * n] * 37 + [8 * 2 * n])
    if kind != "bidirectional":
        found = Intervals.unpack(mask, n).dense().numpy()
        np.testing.assert_array_equal(found, all_pairs(arguments | {"mask_function": inner}))


def test_a_mask_that_is_no_interval_stays_one_of_all_pairs(rng):
    holes = masking_utils.and_masks(masking_utils.causal_mask_function, lambda _b, _h, q, k: (k - q) % 3 != 1)
    arguments = {"batch_size": 1, "q_length": 40, "kv_length": 40, "mask_function": holes}
    arguments["allow_is_causal_skip"] = False
    mask = drop_in.scatterbrain_mask(**arguments)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), all_pairs(arguments))
    arrays = [rng.standard_normal((1, 2, 40, 4)) for _ in range(3)]
    expected = definition(*arrays, mask.numpy(), 0.5)
    with drop_in.configure(method=PARTS):
        np.testing.assert_allclose(forward(arrays, mask, scaling=0.5), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "is_none"),
    [
        ({}, True),
        ({"allow_is_causal_skip": False}, False),
        ({"use_vmap": True, "allow_is_causal_skip": False}, False),
        ({"q_length": 1, "q_offset": 39}, True),
    ],
)
def test_where_a_model_wants_a_mask_of_all_pairs_it_gets_one(changes, is_none):
    arguments = {"batch_size": 2, "q_length": 40, "kv_length": 40} | changes
    mask = drop_in.scatterbrain_mask(**arguments)
    if is_none:
        assert mask is None
    else:
        np.testing.assert_array_equal(mask.numpy(), all_pairs(arguments))


def test_places_may_come_as_before_transformers_5_4():
    arguments = {
        "batch_size": 2,
        "kv_length": 100,
        "attention_mask": torch.asarray(np.arange(100) >= [[0], [9]]),
    }
    old = drop_in.scatterbrain_mask(**arguments, cache_position=torch.arange(60, 100))
    new = drop_in.scatterbrain_mask(**arguments, q_length=40, q_offset=60)
    torch.testing.assert_close(old, new, rtol=0, atol=0)


# The method, against calls of the library by hand.


def by_hand(arrays, **arguments):
    defaults = {"method": PARTS, "scale": 0.3, "enable_gqa": True, "seed": 5}
    return sb.estimate(*arrays, **defaults | arguments)


def with_the_method(arrays, arguments, **asked):
    with drop_in.configure(method=PARTS, seed=5):
        mask = None if arguments is None else drop_in.scatterbrain_mask(**arguments)
        return np.swapaxes(forward(arrays, mask, arguments, scaling=0.3, **asked), 1, 2)


def lengths_of(query, key, past=0, **others):
    return {
        "batch_size": len(query),
        "q_length": query.shape[2],
        "kv_length": key.shape[2],
        "q_offset": past,
        **others,
    }


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
def test_prefill_is_the_method(rng, side, is_causal):
    arrays = problem(rng, 90, 90)
    shown = {"none": np.ones((2, 90), bool), "left": np.arange(90) >= [[0], [31]]}
    shown["right"] = shown["left"][:, ::-1].copy()
    function = masking_utils.causal_mask_function if is_causal else masking_utils.bidirectional_mask_function
    arguments = lengths_of(*arrays[:2], mask_function=function, allow_is_bidirectional_skip=not is_causal)
    got = with_the_method(arrays, arguments | {"attention_mask": torch.asarray(shown[side])})
    found = by_hand(arrays, attn_mask=shown[side][:, None, None, :], is_causal=is_causal)
    np.testing.assert_allclose(got, found.output, rtol=1e-11, atol=1e-13)
    exact = by_hand(arrays, method="exact", attn_mask=shown[side][:, None, None, :], is_causal=is_causal)
    assert np.abs(got - exact.output).max() > 0.1


def test_a_chunk_after_a_past_is_two_estimates_merged(rng):
    arrays = problem(rng, 40, 100)
    got = with_the_method(arrays, lengths_of(*arrays[:2], past=60))
    query, key, value = arrays
    parts = [
        by_hand((query, key[:, :, :60], value[:, :, :60])),
        by_hand((query, key[:, :, 60:], value[:, :, 60:]), is_causal=True),
    ]
    np.testing.assert_allclose(got, sb.merge(parts).output, rtol=1e-11, atol=1e-13)


def test_a_short_past_is_exact(rng):
    arrays = problem(rng, 40, 50)
    query, key, value = arrays
    with drop_in.configure(exact_below=20):
        got = with_the_method(arrays, lengths_of(*arrays[:2], past=10))
    past = by_hand((query, key[:, :, :10], value[:, :, :10]), method="exact")
    own = by_hand((query, key[:, :, 10:], value[:, :, 10:]), is_causal=True)
    lse = np.logaddexp(past.lse, own.lse)[..., None]
    shares = [np.exp(part.lse[..., None] - lse) * part.output for part in (past, own)]
    np.testing.assert_allclose(got, shares[0] + shares[1], rtol=1e-11, atol=1e-13)


def test_packed_sequences_are_calls_of_their_own(rng):
    arrays = problem(rng, 120, 120)
    edges = [[0, 50, 57, 120], [0, 120]]
    numbers = np.stack([np.searchsorted(row, np.arange(120), side="right") for row in edges])
    arguments = lengths_of(*arrays[:2], mask_function=packed(numbers), allow_is_causal_skip=False)
    with drop_in.configure(exact_below=20):
        got = with_the_method(arrays, arguments)
    for row, row_edges in enumerate(edges):
        for start, stop in pairwise(row_edges):
            method = PARTS if stop - start >= 20 else "exact"
            own = by_hand([x[row, :, start:stop] for x in arrays], method=method, is_causal=True)
            np.testing.assert_allclose(got[row, :, start:stop], own.output, rtol=1e-11, atol=1e-13)


def test_sinks_take_their_share_of_the_estimate(rng):
    arrays, sinks = problem(rng, 70, 70), rng.standard_normal(4)
    got = with_the_method(arrays, None, s_aux=torch.asarray(sinks))
    found = by_hand(arrays, is_causal=True)
    share = 1 / (1 + np.exp(sinks[:, None] - found.lse))
    np.testing.assert_allclose(got, found.output * share[..., None], rtol=1e-11, atol=1e-13)


def test_a_window_is_exact_with_any_method(rng):
    arrays = problem(rng, 90, 90)
    function = masking_utils.sliding_window_causal_mask_function(20)
    arguments = lengths_of(*arrays[:2], mask_function=function, local_size=20)
    expected = definition(*arrays, all_pairs(arguments), 0.3)
    got = with_the_method(arrays, arguments)
    np.testing.assert_allclose(np.swapaxes(got, 1, 2), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 90), (29, 90), (90, 29)])
def test_few_queries_or_keys_are_exact_with_any_method(rng, n_queries, n_keys):
    arrays = problem(rng, n_queries, n_keys)
    with drop_in.configure(method=PARTS, exact_below=30):
        got = forward(arrays, None, {"allow_is_bidirectional_skip": True}, scaling=0.3)
    seen = np.ones((2, 1, n_queries, n_keys), bool)
    np.testing.assert_allclose(got, definition(*arrays, seen, 0.3), rtol=1e-11, atol=1e-13)


def test_a_budget_of_all_keys_is_exact(rng):
    arrays = problem(rng, 60, 60)
    with drop_in.configure(method="scatterbrain", budget=1):
        got = forward(arrays, None, scaling=0.3)
    expected = definition(*arrays, np.tri(60, dtype=bool)[None, None], 0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)
