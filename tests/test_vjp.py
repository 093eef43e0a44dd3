"""Gradients without autograd: against central differences, Torch's autograd and the formula of attention."""

from __future__ import annotations

import tracemalloc
from functools import cache

import numpy as np
import pytest
from libraries import make_library
from oracle import METHODS, relative_error
from problems import draw_problem, set_chunks
from scipy.special import softmax

import scatterbrain_core as sb
from scatterbrain_core import far_field, gradients
from scatterbrain_core.backend import backend_of
from scatterbrain_core.differentiation import TracingBackend
from scatterbrain_core.low_rank import kernels

# Largest relative error of a gradient, of rounding alone.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def with_vjp(library, arrays, cotangent, **kwargs):
    """Output and gradients as NumPy arrays, each checked to be of the library."""
    output, vjp = sb.attention_vjp(*library.arrays(*arrays), **kwargs)
    found = (output, *vjp(library.asarray(cotangent)))
    assert all(library.is_own(x) for x in found)
    return [library.to_numpy(x) for x in found]


def by_torch(arrays, cotangent, **kwargs):
    """The same by Torch's autograd through `attention`."""
    torch = pytest.importorskip("torch")
    tensors = [torch.asarray(x).requires_grad_() for x in arrays]
    if kwargs.get("attn_mask") is not None:
        kwargs["attn_mask"] = torch.asarray(kwargs["attn_mask"])
    output = sb.attention(*tensors, **kwargs)
    return [
        x.detach().numpy() for x in (output, *torch.autograd.grad(output, tensors, torch.asarray(cotangent)))
    ]


def assert_same(got, expected, dtype="float64"):
    for name, a, b in zip(("output", "query", "key", "value"), got, expected, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        error = relative_error(a, b)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.2e}"


@pytest.mark.parametrize("name", METHODS)
def test_central_differences(rng, is_causal, name):
    arrays = draw_problem(rng, 6, 7, dim=2, lead=(1,), columns=2)
    cotangent = rng.standard_normal((1, 6, 2))
    arguments = {"method": METHODS[name], "is_causal": is_causal, "seed": 1}
    _, *got = with_vjp(make_library("numpy"), arrays, cotangent, **arguments)
    step = 1e-6
    for x, d in zip(arrays, got, strict=True):
        for place in np.ndindex(x.shape):
            was, sides = x[place], []
            for moved in (was + step, was - step):
                x[place] = moved
                sides.append(np.sum(sb.attention(*arrays, **arguments) * cotangent))
            x[place] = was
            assert abs((sides[0] - sides[1]) / (2 * step) - d[place]) < 1e-7


@cache
def many_tiles(name, dtype, is_causal):
    rng = np.random.default_rng(5)
    arrays = draw_problem(rng, 150, 170, dim=6, dtype=dtype)
    cotangent = rng.standard_normal((2, 150, 3)).astype(dtype)
    arguments = {"method": METHODS[name], "is_causal": is_causal, "seed": 5}
    return arrays, cotangent, arguments, by_torch(arrays, cotangent, **arguments)


@pytest.mark.parametrize("name", METHODS)
def test_torchs_autograd_gives_the_same(library, dtype, is_causal, name):
    """Lengths of many tiles, Lq != Lk; the output is that of `attention` to the bit."""
    arrays, cotangent, arguments, expected = many_tiles(name, dtype, is_causal)
    got = with_vjp(library, arrays, cotangent, **arguments)
    assert_same(got, expected, dtype)
    output = sb.attention(*library.arrays(*arrays), **arguments)
    np.testing.assert_array_equal(got[0], library.to_numpy(output))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 50), (3, 40, 1), (1, 3, 40, 50)], ids=["keys", "rows", "dense"])
def test_masks(library, rng, name, shape):
    arrays = draw_problem(rng, 40, 50, lead=(2, 3))
    mask = rng.random(shape) < 0.6
    cotangent = rng.standard_normal((2, 3, 40, 3))
    arguments = {"method": METHODS[name], "scale": 0.7}
    expected = by_torch(arrays, cotangent, attn_mask=mask, **arguments)
    got = with_vjp(library, arrays, cotangent, attn_mask=library.asarray(mask), **arguments)
    assert_same(got, expected)


@pytest.mark.parametrize("name", ["exact", "scatterbrain"])
@pytest.mark.parametrize("scale", [-0.8, 0.0, 1.0])
def test_grouped_heads_and_scales(library, is_causal, rng, name, scale):
    query, _, _ = draw_problem(rng, 30, 0, lead=(2, 6))
    _, key, value = draw_problem(rng, 0, 40, lead=(2, 3))
    cotangent = rng.standard_normal((2, 6, 30, 3))
    arguments = {"method": METHODS[name], "is_causal": is_causal, "scale": scale, "enable_gqa": True}
    expected = by_torch((query, key, value), cotangent, **arguments)
    assert_same(with_vjp(library, (query, key, value), cotangent, **arguments), expected)


def of_softmax(q, k, v, g, is_causal):
    """Output and gradients of softmax attention: dV = Pᵀg, and of the logits P ∘ (gVᵀ - its mean under P)."""
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    logits = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if is_causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    weights = softmax(logits, axis=-1)
    moves = g @ np.swapaxes(v, -1, -2)
    d_logits = weights * (moves - (weights * moves).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    back = np.swapaxes(d_logits, -1, -2)
    return [weights @ v, d_logits @ k, back @ q, np.swapaxes(weights, -1, -2) @ g]


EVERYTHING = {
    "exact": "exact",
    "one bucket": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(0)),
    "one bucket, 3 tables": sb.Scatterbrain(sb.PositiveFeatures(4), sb.RandomHyperplanes(0, 3)),
}


@pytest.mark.parametrize("method", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_a_support_of_everything_has_the_gradient_of_softmax(library, dtype, is_causal, rng, method):
    arrays = draw_problem(rng, 130, 140, dtype=dtype)
    cotangent = rng.standard_normal((2, 130, 3)).astype(dtype)
    got = with_vjp(library, arrays, cotangent, method=method, is_causal=is_causal)
    assert_same(got, of_softmax(*arrays, cotangent, is_causal), dtype)


@pytest.mark.parametrize("name", METHODS)
def test_small_chunks_change_rounding_alone(is_causal, monkeypatch, name):
    """Many chunks of tiles, blocks of rows and groups of heads, each run again on the way back."""
    arrays, cotangent, arguments, expected = many_tiles(name, "float64", is_causal)
    set_chunks(monkeypatch, 2**12)
    monkeypatch.setattr(gradients, "RECORDED_GROUP_ELEMENTS", 1)
    assert_same(with_vjp(make_library("numpy"), arrays, cotangent, **arguments), expected)


def cancelling(rng):
    """Features that exceed all else by far on pairs of later tables: their rows are summed pair by pair."""
    hot = sb.random.Draws(0).feature_generator().standard_normal((2, 60))[0] / 2
    q, k, v = draw_problem(rng, 64, 64, dim=60, lead=(1,))
    return sb.Scatterbrain(sb.PositiveFeatures(2), sb.RandomHyperplanes(1, 6)), (
        hot + 0.3 * q,
        hot + 0.3 * k,
        v,
    )


@pytest.mark.parametrize("other", ["numpy", "array_api_strict"])
def test_rows_that_would_cancel(is_causal, rng, monkeypatch, other):
    reached = set()
    name = "_far_field_of_rows"
    monkeypatch.setattr(far_field, name, noted(reached, name, getattr(far_field, name)))
    method, arrays = cancelling(rng)
    arguments = {"method": method, "is_causal": is_causal, "scale": 1.0}
    cotangent = rng.standard_normal((1, 64, 3))
    got = with_vjp(make_library(other), arrays, cotangent, **arguments)
    assert reached == {name}
    for a, b in zip(got, by_torch(arrays, cotangent, **arguments), strict=True):
        assert relative_error(a, b) < 1e-9


def test_pairs_summed_feature_by_feature(library, rng):
    """Where their product would underflow; the gradient is that of the product."""
    log_query, log_key = rng.standard_normal((2, 7, 4)), rng.standard_normal((2, 9, 4))
    cotangent = library.asarray(rng.standard_normal((2, 7, 9)))
    visible = library.asarray(np.ones((2, 7, 9), dtype=bool))
    found = []
    for by_terms in (False, True):
        tracing = TracingBackend(backend_of(x=cotangent))
        watched = [tracing.watch(x) for x in library.arrays(log_query, log_key)]
        if by_terms:
            logs = kernels._log_kernel_by_terms(tracing, *watched)
        else:
            logs = kernels.log_kernel(tracing, *watched, visible)
        found.append([library.to_numpy(d) for d in tracing.gradients([(logs, cotangent)], *watched)])
    for a, b in zip(*found, strict=True):
        assert relative_error(a, b) < 1e-14


def noted(reached, name, function):
    def called(*args):
        reached.add(name)
        return function(*args)

    return called


@pytest.mark.parametrize("name", ["exact", "performer", "limited", "tables"])
def test_padding_has_gradient_zero_and_gives_none(library, rng, name):
    q, k, v = draw_problem(rng, 20, 30)
    cotangent = rng.standard_normal((2, 20, 3))
    mask = library.asarray(np.arange(30) < 21)
    clean = with_vjp(library, (q, k, v), cotangent, attn_mask=mask, method=METHODS[name])
    k[:, 21:], v[:, 21:] = np.nan, np.inf
    padded = with_vjp(library, (q, k, v), cotangent, attn_mask=mask, method=METHODS[name])
    for a, b in zip(clean, padded, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not padded[2][:, 21:].any()
    assert not padded[3][:, 21:].any()
    assert padded[3][:, :21].any()


@pytest.mark.parametrize("columns", [1, 30])
@pytest.mark.parametrize("name", ["exact", "performer", "limited"])
def test_hidden_queries_have_gradient_zero_and_give_none(library, rng, name, columns):
    """Neither what stands in them nor their cotangent counts."""
    q, k, v = draw_problem(rng, 20, 30)
    cotangent = rng.standard_normal((2, 20, 3))
    mask = np.ones((20, columns), dtype=bool)
    mask[13:] = False
    call = {"attn_mask": library.asarray(mask), "method": METHODS[name]}
    clean = with_vjp(library, (q, k, v), cotangent, **call)
    q[:, 13:] = cotangent[:, 13:] = np.nan
    padded = with_vjp(library, (q, k, v), cotangent, **call)
    for a, b in zip(clean, padded, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not padded[1][:, 13:].any()


@pytest.mark.parametrize("name", ["exact", "performer", "scatterbrain"])
@pytest.mark.parametrize(
    ("lead", "n_queries", "n_keys", "columns"),
    [((0,), 3, 4, 2), ((2,), 0, 4, 2), ((2,), 3, 0, 2), ((2,), 3, 4, 0), ((), 1, 1, 1)],
)
def test_empty_problems(library, name, lead, n_queries, n_keys, columns):
    arrays = draw_problem(np.random.default_rng(0), n_queries, n_keys, lead=lead, columns=columns)
    output, *got = with_vjp(library, arrays, np.ones((*lead, n_queries, columns)), method=METHODS[name])
    assert output.shape == (*lead, n_queries, columns)
    for x, d in zip(arrays, got, strict=True):
        assert d.shape == x.shape
    if lead != ():
        assert not any(d.any() for d in got)


def problem_of(**changes):
    q, k, v = draw_problem(np.random.default_rng(0), 6, 7, dim=4)
    return {"query": q, "key": k, "value": v} | changes


NUMBERS = np.ones((2, 6, 3))


@pytest.mark.parametrize(
    ("cotangent", "error", "message"),
    [
        (1.0, TypeError, r"cotangent must be an array of a library .*, got float"),
        (None, TypeError, r"cotangent must be an array of a library .*, got NoneType"),
        (NUMBERS.tolist(), TypeError, r"cotangent must be an array of a library .*, got list"),
        (NUMBERS.astype(np.float32), TypeError, r"the output, float64, got float32; nothing is cast"),
        (NUMBERS.astype(int), TypeError, r"cotangent must have the dtype of the output, float64, got int64"),
        (NUMBERS[0], ValueError, r"cotangent must have the shape of the output, \(2, 6, 3\), got \(6, 3\)"),
        (NUMBERS[..., :1], ValueError, r"shape of the output, \(2, 6, 3\), got \(2, 6, 1\)"),
        (NUMBERS * np.nan, ValueError, r"cotangent must be finite, got NaN or inf; check_finite=False"),
        (NUMBERS * np.inf, ValueError, r"cotangent must be finite, got NaN or inf; check_finite=False"),
    ],
)  # fmt: skip
def test_bad_cotangents(cotangent, error, message):
    output, vjp = sb.attention_vjp(**problem_of())
    with pytest.raises(error, match=message):
        vjp(cotangent)
    assert vjp(output)[0].shape == (2, 6, 4)  # the next call is none the worse


def test_cotangents_of_another_library_or_device():
    torch = pytest.importorskip("torch")
    _, vjp = sb.attention_vjp(**problem_of())
    with pytest.raises(TypeError, match="one library, got query from numpy, cotangent from torch"):
        vjp(torch.ones((2, 6, 3), dtype=torch.float64))
    _, vjp = sb.attention_vjp(**{name: torch.asarray(x) for name, x in problem_of().items()})
    with pytest.raises(ValueError, match="cotangent must be on the device of query, cpu, got meta"):
        vjp(torch.ones((2, 6, 3), dtype=torch.float64, device="meta"))


def test_what_is_not_finite_spreads_without_the_check():
    cotangent = NUMBERS.copy()
    cotangent[0, 2, 1] = np.nan
    _, vjp = sb.attention_vjp(**problem_of(), method="exact", check_finite=False)
    d_query, _, d_value = vjp(cotangent)
    assert np.isnan(d_query[0, 2]).all()
    assert np.isnan(d_value[0, :, 1]).all()
    assert np.isfinite(d_query[1]).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key": np.zeros((2, 7, 5))}, ValueError, "same last axis D"),
        ({"value": "v"}, TypeError, "value must be an array"),
        ({"method": "exakt"}, ValueError, "the nearest: 'exact'"),
        ({"budget": 2}, ValueError, r"budget must be in \(0, 1\]"),
        ({"is_causal": True, "attn_mask": np.ones((6, 7), dtype=bool)}, ValueError, "a mask of pairs"),
        ({"query": np.full((2, 6, 4), np.nan)}, ValueError, "query must be finite"),
        ({"seed": -1}, ValueError, "seed must not be negative"),
    ],
)
def test_the_arguments_are_checked_as_those_of_attention(changes, error, message):
    with pytest.raises(error, match=message):
        sb.attention_vjp(**problem_of(**changes))


def test_vjp_is_linear_and_may_be_called_again(library, rng):
    """With the draws of its call, even of a generator that has moved on."""
    seed = np.random.default_rng(3)
    arrays = library.arrays(*draw_problem(rng, 40, 50))
    _, vjp = sb.attention_vjp(*arrays, method=METHODS["tables"], seed=seed)
    one, two = rng.standard_normal((2, 2, 40, 3))
    first, second, again, both = (
        [library.to_numpy(d) for d in vjp(library.asarray(x))] for x in (one, two, one, 2 * one - two)
    )
    for a, b, c, d in zip(first, second, again, both, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_allclose(2 * a - b, d, atol=1e-12)


def test_torchs_autograd_records_nothing_of_it(rng):
    torch = pytest.importorskip("torch")
    arrays, cotangent = draw_problem(rng, 40, 50), rng.standard_normal((2, 40, 3))
    tensors = [torch.asarray(x).requires_grad_() for x in arrays]
    output, vjp = sb.attention_vjp(*tensors)
    found = (output, *vjp(torch.asarray(cotangent).requires_grad_()))
    assert not any(x.requires_grad for x in found)
    assert_same([x.numpy() for x in found], with_vjp(make_library("numpy"), arrays, cotangent))


# Parts of one size whatever the length, with the size of chunks: small for blocks of rows, so that there are
# many; large for tiles, so that one chunk holds all queries and streams all keys past them.
FIXED = {
    "exact": ("exact", 2**14),
    "performer": (sb.Scatterbrain(sb.PositiveFeatures(16)), 2**20),
    "scatterbrain": (sb.Scatterbrain(sb.PositiveFeatures(16), sb.RandomHyperplanes(5, 1, 64)), 2**14),
    "one bucket": (sb.Scatterbrain(None, sb.RandomHyperplanes(0)), 2**20),
}


@pytest.mark.parametrize("name", FIXED)
def test_memory_is_linear(is_causal, monkeypatch, name):
    """Twice the length takes about twice the memory."""
    method, chunk = FIXED[name]
    set_chunks(monkeypatch, chunk)

    def peak(n):
        arrays = np.random.default_rng(0).standard_normal((3, n, 16)).astype(np.float32)
        tracemalloc.start()
        output, vjp = sb.attention_vjp(*arrays, method=method, is_causal=is_causal)
        vjp(output)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(1024), peak(2048)
    assert large < 2.3 * small
    assert large < 4 * 2048**2  # a matrix of Lq x Lk in float32 is not among it


def test_memory_of_a_dense_mask_is_that_of_the_mask(monkeypatch):
    set_chunks(monkeypatch, 2**14)
    n = 1024
    arrays = np.random.default_rng(0).standard_normal((3, n, 16)).astype(np.float32)
    mask = np.tri(n, dtype=bool)
    tracemalloc.start()
    output, vjp = sb.attention_vjp(*arrays, method=FIXED["scatterbrain"][0], attn_mask=mask)
    vjp(output)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * n**2


def test_the_gradient_is_that_of_the_output_where_rows_are_sampled(library, is_causal):
    """The output is linear in the values: with them, their gradient gives it back."""
    rng = np.random.default_rng(0)
    q, k, v, cotangent = rng.standard_normal((4, 1, 2048, 16))
    arguments = {"method": sb.Scatterbrain(sparse=sb.RoutedClusters(128.0)), "is_causal": is_causal}
    output, *_, d_value = with_vjp(library, (1.5 * q, k, v), cotangent, **arguments)
    assert np.sum(d_value * v) == pytest.approx(np.sum(output * cotangent), rel=1e-10)
