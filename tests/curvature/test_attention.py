"""Attention's derivatives against those of torch's plain implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import bif
from bif.curvature.attention import DifferentiableAttention, attention
from bif.curvature.passes import GaussNewtonPass
from bif.curvature.products import CurvatureProduct, split_rows
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


@pytest.mark.parametrize("kind", ["seen", "bias"])
def test_a_mask_and_causality_hold_together(kind: str):
    mask = normal(ITEMS, 1, TOKENS, TOKENS, seed=4)
    mask = mask > -0.5 if kind == "seen" else mask
    expected = F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, is_causal=True)
    with DifferentiableAttention():
        found = F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_heads", [1, 2])
def test_heads_that_share_keys_have_the_same_derivatives(value_heads: int):
    key, value = K[:, :2], V[:, :value_heads]

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


class Encoder(torch.nn.Module):
    """Classifies sequences by torch's own layers, in which attention is called deep inside."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 1)
        self.out = torch.nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean(dim=1))


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_products_of_torchs_own_transformer_layers_are_those_of_dense_matrices(curvature: str):
    grad = torch.autograd.grad
    torch.manual_seed(0)
    made = Encoder().double().eval()
    x, labels = normal(6, 5, 4, seed=1), integers(3, 6, seed=2)
    problem = bif.Problem(made, bif.losses.cross_entropy, train=(x, labels), queries=(x, labels))
    product = CurvatureProduct(problem, curvature)
    rows = normal(2, product.num_weights, seed=3)
    found = product(rows)
    if isinstance(made_pass := product._pass._function, GaussNewtonPass):
        assert made_pass._along.forward, "an operation had no forward derivative"

    def outputs(flat: Tensor) -> Tensor:
        rows = split_rows(flat.unsqueeze(0), product.params)
        leaves = {name: leaf[0] for name, leaf in rows.items()}
        return functional_call(made, leaves, (x,))

    center = torch.cat([leaf.flatten() for leaf in product.params.values()]).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        out = outputs(center)
        if curvature == "hessian":  # by autograd: torch.func.hessian is not symmetric here
            slope = grad(F.cross_entropy(out, labels), center, create_graph=True)[0]
            dense = torch.stack([grad(s, center, retain_graph=True)[0] for s in slope])
        else:
            jacobian = torch.stack([grad(o, center, retain_graph=True)[0] for o in out.flatten()])
            jacobian, p = jacobian.view(*out.shape, -1), out.softmax(dim=-1)
            inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
            dense = torch.einsum("bip,bij,bjq->pq", jacobian, inner, jacobian) / len(x)
    torch.testing.assert_close(found, rows @ dense.detach(), rtol=0, atol=1e-10)


def test_dropout_is_refused():
    with pytest.raises(ValueError, match=r"drops out 0\.5 of its weights, expected none"):
        attention(Q, K, V, dropout_p=0.5)
