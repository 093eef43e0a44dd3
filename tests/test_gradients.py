"""Torch's autograd through every method: against finite differences, and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import CAUSAL, MASKED, METHODS
from problems import draw_problem

import scatterbrain_core as sb

torch = pytest.importorskip("torch")


def tensors(rng, *sizes, **kwargs):
    return tuple(torch.asarray(x).requires_grad_() for x in draw_problem(rng, *sizes, **kwargs))


def assert_gradient(function, arguments):
    """Along random directions: test_vjp compares Torch's gradient entry by entry."""
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(function, arguments, eps=1e-7, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", METHODS)
def test_gradcheck(rng, is_causal, name):
    q, k, v = tensors(rng, 6, 7, dim=2, lead=(1,), columns=2)
    assert_gradient(
        lambda q, k, v: sb.attention(q, k, v, method=METHODS[name], is_causal=is_causal, seed=1),
        (q, k, v),
    )


@pytest.mark.parametrize("name", ["exact", "performer", "scatterbrain"])
def test_gradcheck_of_lse(rng, is_causal, name):
    q, k, v = tensors(rng, 5, 6, dim=2, lead=(1,), columns=1)
    assert_gradient(
        lambda q, k: sb.estimate(q, k, v, method=METHODS[name], is_causal=is_causal).lse,
        (q, k),
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(1, 7), (6, 1), (6, 7)])
def test_gradcheck_with_a_mask(rng, name, shape):
    q, k, v = tensors(rng, 6, 7, dim=2, lead=(1,), columns=2)
    mask = torch.asarray(rng.random(shape) < 0.6)
    assert_gradient(
        lambda q, k, v: sb.attention(q, k, v, method=METHODS[name], attn_mask=mask),
        (q, k, v),
    )


@pytest.mark.parametrize("name", METHODS)
def test_tiles_have_the_gradient_of_the_definition(rng, is_causal, name):
    """Long enough for many tiles: the gradient of attention_matrix @ value is the reference."""
    q, k, v = tensors(rng, 150, 170, dim=6)
    arguments = {"method": METHODS[name], "is_causal": is_causal, "seed": 5}
    cotangent = torch.asarray(rng.standard_normal((2, 150, 3)))
    got = torch.autograd.grad(sb.attention(q, k, v, **arguments), (q, k, v), cotangent)
    dense = sb.attention_matrix(q, k, **arguments) @ v
    expected = torch.autograd.grad(dense, (q, k, v), cotangent)
    for name_of, a, b in zip(("query", "key", "value"), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, n=name_of: f"{n}: {text}")


def test_exact_has_torchs_gradient(rng, is_causal):
    q, k, v = tensors(rng, 20, 31, lead=(2, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    got = sb.attention(q, k, v, method="exact", is_causal=is_causal)
    cotangent = torch.ones_like(expected).cumsum(-1)
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), cotangent),
        torch.autograd.grad(expected, (q, k, v), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_padding_has_no_gradient_and_gives_none(rng, is_causal, name):
    q, k, v = tensors(rng, 30, 30)
    mask = torch.arange(30) % 21 > 2
    with torch.no_grad():
        k[:, ~mask] = np.nan
        v[:, ~mask] = np.inf
    sb.attention(q, k, v, method=METHODS[name], attn_mask=mask, is_causal=is_causal).sum().backward()
    for x in (q, k, v):
        assert torch.isfinite(x.grad).all()
    assert not k.grad[:, ~mask].any()
    assert not v.grad[:, ~mask].any()
    assert v.grad[:, mask].any()


@pytest.mark.parametrize("name", CAUSAL)
def test_gradcheck_of_a_padded_causal_call(rng, name):
    q, k, v = tensors(rng, 7, 7, dim=2, lead=(1,), columns=2)
    mask = torch.tensor([False, False, True, True, False, True, True])
    assert_gradient(
        lambda q, k, v: sb.attention(q, k, v, method=METHODS[name], attn_mask=mask, is_causal=True),
        (q, k, v),
    )


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("columns", [1, 30])
def test_hidden_queries_have_no_gradient_and_give_none(rng, name, columns):
    q, k, v = tensors(rng, 20, 30)
    mask = torch.ones((20, columns), dtype=torch.bool)
    mask[13:] = False
    with torch.no_grad():
        q[:, 13:] = np.nan
    sb.attention(q, k, v, method=METHODS[name], attn_mask=mask).sum().backward()
    for x in (q, k, v):
        assert torch.isfinite(x.grad).all()
    assert not q.grad[:, 13:].any()


def test_what_needs_no_gradient_gets_none(rng):
    q, k, v = (x.detach() for x in tensors(rng, 20, 30))
    assert not sb.attention(q, k, v).requires_grad
    assert sb.attention(q, k, v.requires_grad_()).requires_grad
    with torch.no_grad():
        assert not sb.attention(q, k, v).requires_grad


def test_standard_errors_have_finite_gradients(rng, is_causal):
    """The first row of a causal call sees one key: its error is 0, where a root has no derivative."""
    q, k, v = tensors(rng, 20, 20)
    est = sb.estimate(q, k, v, method=sb.Scatterbrain(sb.PositiveFeatures(16)), is_causal=is_causal)
    for x in torch.autograd.grad(est.stderr.sum() + est.lse_stderr.sum(), (q, k, v)):
        assert torch.isfinite(x).all()
        assert x.any()


@pytest.mark.parametrize("name", ["exact", "performer", "tables"])
def test_autocast_takes_no_digits(rng, name):
    q, k, v = (x.detach().float() for x in tensors(rng, 30, 30))
    parts = METHODS[name]
    plain = sb.estimate(q, k, v, method=parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        est = sb.estimate(q, k, v, method=parts)
        out = sb.attention(q, k, v, method=parts)
        decoded, state = parts.prefill(q, k, v)
        decoded, _ = parts.step(q, k, v, state)
        _, vjp = sb.attention_vjp(q, k, v, method=parts)
        d_query, _, _ = vjp(v)
    for x in (est.output, out, decoded, d_query):
        assert x.dtype == torch.float32
    torch.testing.assert_close(est.output, plain.output, rtol=0, atol=0)
    torch.testing.assert_close(out, sb.attention(q, k, v, method=parts), rtol=0, atol=0)
    torch.testing.assert_close(d_query, sb.attention_vjp(q, k, v, method=parts)[1](v)[0], rtol=0, atol=0)
