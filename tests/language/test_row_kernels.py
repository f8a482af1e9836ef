"""Kernels for rows of logits against torch: on a GPU, or interpreted with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch

from small_problems import integers, normal

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytest.importorskip("triton", reason="torch came without triton")
pytestmark = [
    *([] if INTERPRETED else [pytest.mark.cuda]),
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(), reason="there is no CUDA device"
    ),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
M, V = 7, 9001
"""More than two blocks of a row, and a rest."""
UNIT = {torch.bfloat16: 2**-8, torch.float32: 2**-24}


def rows(dtype, scale):
    """Logits, targets of which two are masked, and losses by torch in float64."""
    logits = (normal(M, V, seed=0) * 3 / scale).to(dtype).to(DEVICE)
    targets = integers(V, M, seed=1).to(DEVICE)
    targets[1], targets[2], targets[3], targets[4] = -100, -100, 0, V - 1
    exact = torch.log_softmax(logits.double() * scale, dim=1)
    losses = -exact.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    return logits, targets, exact, torch.where(targets >= 0, losses, 0.0)


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_losses_of_rows_are_those_of_torch_and_masked_ones_are_0(dtype, scale):
    from bif.language.row_kernels import row_losses

    logits, targets, exact, expected = rows(dtype, scale)
    losses, normalisers = row_losses(logits, targets, scale=scale)
    # Sums of V positive float32 numbers, block by block: some roundings of the sum.
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    full = (logits.double() * scale).logsumexp(dim=1)
    torch.testing.assert_close(normalisers.double(), full, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_logit_gradients_are_those_of_the_weighted_losses(dtype, scale):
    from bif.language.row_kernels import logit_gradients_, row_losses

    logits, targets, exact, _ = rows(dtype, scale)
    factors = normal(M, seed=2).to(DEVICE)
    _, normalisers = row_losses(logits, targets, scale=scale)
    got = logit_gradients_(logits.clone(), targets, normalisers, factors, scale=scale)
    hot = torch.zeros_like(exact).scatter_(1, targets.clamp(min=0).unsqueeze(1), 1.0)
    expected = (exact.exp() - hot) * (factors.double() * scale * (targets >= 0)).unsqueeze(1)
    assert got.dtype == dtype
    # One rounding to the type of the logits, and those of float32 before it.
    torch.testing.assert_close(got.double(), expected, rtol=2 * UNIT[dtype] + 1e-5, atol=1e-12)


@pytest.mark.skipif(INTERPRETED, reason="takes a device of its own")
def test_a_causal_model_has_the_same_losses_and_gradients_by_kernels(monkeypatch):
    from bif.language import linear_loss
    from bif.language.linear_loss import LinearHead, linear_cross_entropy

    linear = torch.nn.Linear(32, V, bias=False).cuda()
    hidden = normal(50, 32, seed=3).float().cuda().requires_grad_()
    targets = integers(V, 50, seed=4).cuda()
    targets[::5] = -100

    def found():
        losses = linear_cross_entropy(
            hidden, targets, LinearHead(linear, linear), logits_at_once=16 * V
        )
        (losses * torch.arange(50, device="cuda")).sum().backward()
        grads = [hidden.grad, linear.weight.grad]
        hidden.grad = linear.weight.grad = None
        return [losses.detach(), *grads]

    by_kernels = found()
    monkeypatch.setattr(linear_loss, "_kernels", lambda *_: None)
    for mine, torch_s in zip(by_kernels, found(), strict=True):
        torch.testing.assert_close(mine, torch_s, rtol=1e-4, atol=1e-5)
