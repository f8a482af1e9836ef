"""Attention's derivatives against those of torch's plain implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import bif
from bif.curvature.attention import DifferentiableAttention, attention
from bif.curvature.products import CurvatureProduct
from language_cases import model
from small_problems import integers, normal

ITEMS, HEADS, TOKENS, WIDTH, ROWS = 2, 4, 5, 3, 6
Q, K, V = (normal(ITEMS, HEADS, TOKENS, WIDTH, seed=s) for s in (1, 2, 3))
SEEN = torch.ones(ITEMS, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
SEEN[0, ..., :2] = False  # of a row that is padded on the left: the first two tokens see nothing
MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "padded": {"attn_mask": SEEN},
    "bias": {"attn_mask": normal(ITEMS, 1, TOKENS, TOKENS, seed=4)},
    "scale": {"scale": 0.3},
}


def derivatives(of: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Values, both first derivatives of many rows, and second ones in both modes."""
    rows = [normal(ROWS, *x.shape, seed=s) for s, x in enumerate((Q, K, V), 10)]
    ends = normal(ROWS, ITEMS, HEADS, TOKENS, WIDTH, seed=20)
    pull = vjp(of, Q, K, V)[1]
    slope = grad(lambda q: of(q, K, V).square().sum())
    pushed = vjp(lambda u: pull(u), torch.zeros_like(ends[0]))[1]
    return {
        "value": of(Q, K, V),
        "forward": vmap(lambda *x: jvp(of, (Q, K, V), x)[1])(*rows),
        **dict(zip(("of q", "of k", "of v"), vmap(pull)(ends), strict=True)),
        "forward of backward": vmap(lambda v: jvp(slope, (Q,), (v,))[1])(rows[0]),
        "backward of backward": vmap(lambda v: vjp(slope, Q)[1](v)[0])(rows[0]),
        "forward by two backwards": vmap(lambda *x: pushed(x)[0])(*rows),
    }


@pytest.mark.parametrize("mask", MASKS)
def test_derivatives_are_those_of_the_plain_implementation(mask: str):
    settings: dict[str, Any] = MASKS[mask]

    def of(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **settings)

    with sdpa_kernel(SDPBackend.MATH):
        expected = derivatives(of)
    with DifferentiableAttention():
        found = derivatives(of)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_heads_that_share_keys_have_the_same_derivatives():
    key, value = K[:, :2], V[:, :2]

    def of(key: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(Q, key, value, enable_gqa=True)

    end = normal(ITEMS, HEADS, TOKENS, WIDTH, seed=20)
    with sdpa_kernel(SDPBackend.MATH):
        expected = vjp(of, key)[1](end)[0]
    with DifferentiableAttention():
        torch.testing.assert_close(vjp(of, key)[1](end)[0], expected, rtol=0, atol=1e-12)


def test_a_learned_bias_has_derivatives():
    bias = normal(1, HEADS, TOKENS, TOKENS, seed=5)

    def of(bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(Q, K, V, attn_mask=bias)

    rows, end = normal(ROWS, *bias.shape, seed=6), normal(ITEMS, HEADS, TOKENS, WIDTH, seed=20)
    both = []
    for within in (sdpa_kernel(SDPBackend.MATH), DifferentiableAttention()):
        with within:
            forward = vmap(lambda x: jvp(of, (bias,), (x,))[1])(rows)
            both.append((forward, vjp(of, bias)[1](end)[0]))
    for found, expected in zip(both[1], both[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_products_in_bfloat16_are_near_those_in_float32():
    pytest.importorskip("transformers", reason="the extra `lm` is not installed")
    items = {"input_ids": integers(330, 4, 12, seed=1)}
    made = model("llama", double=False)
    problem = bif.Problem(made, bif.losses.next_token, train=items, queries=items)
    rows = normal(3, CurvatureProduct(problem).num_weights, seed=1).float()
    exact, narrow = (
        CurvatureProduct(problem, compute_dtype=dtype)(rows) for dtype in (None, torch.bfloat16)
    )
    assert narrow.dtype == torch.float32
    # Each of a few products rounds to eight bits.
    assert 0 < float((narrow - exact).norm() / exact.norm()) < 0.03


def test_dropout_is_refused():
    with pytest.raises(ValueError, match=r"drops out 0\.5 of its weights, expected none"):
        attention(Q, K, V, dropout_p=0.5)
