"""Chunked next-token losses: the values and gradients of `next_token`, without its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bif.language.linear_loss import LinearHead, chunked_next_token, linear_cross_entropy
from bif.losses import next_token
from small_problems import filled, integers, normal, stack_near

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}
V, D, B, T = 53, 12, 3, 7
SMALL = 4 * V
"""Logits at once: four tokens of eighteen, with a rest of two."""
transformers = pytest.importorskip("transformers", reason="the extra `lm` is not installed")


def causal(kind: str, **changed: Any) -> nn.Module:
    """A tiny causal language model in float64."""
    sizes = {
        "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": V,
        "intermediate_size": 16, "max_position_embeddings": 16,
    }  # fmt: skip
    if kind in ("Gemma2", "Cohere", "Granite"):
        sizes |= {"num_key_value_heads": 1}
    if kind == "Gemma2":
        sizes |= {"head_dim": 4}
    if kind == "GPT2":
        sizes = {"n_embd": D, "n_layer": 2, "n_head": 2, "vocab_size": V, "n_positions": 16}
    config = getattr(transformers, f"{kind}Config")(
        **{**sizes, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changed}
    )
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, name)(config)
    return filled(model, scale=0.4).eval()


MODELS: dict[str, dict[str, Any]] = {
    "GPTNeoX": {},
    "GPT2": {},  # the head is the embedding
    "Gemma2": {"final_logit_softcapping": 2.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 3.0},
}


def batch() -> dict[str, Tensor]:
    """Items of 7, 7 and 4 tokens, padded; of the second only the end counts."""
    ids = integers(V, B, T, seed=1)
    mask = torch.ones(B, T, dtype=torch.long)
    mask[2, 4:] = 0
    labels = ids.clone()
    labels[1, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


BATCHES: dict[str, dict[str, Tensor]] = {
    "ids": {"input_ids": batch()["input_ids"]},
    "mask": {k: v for k, v in batch().items() if k != "labels"},
    "labels": {k: v for k, v in batch().items() if k != "attention_mask"},
    "both": batch(),
}


def gradients(model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    """Of a sum with different weights."""
    weights = normal(*losses.shape, seed=9)
    found = torch.autograd.grad((weights * losses).sum(), list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("given", BATCHES)
@pytest.mark.parametrize("kind", MODELS)
def test_values_and_gradients_are_those_of_next_token(kind, given):
    model, data = causal(kind, **MODELS[kind]), BATCHES[given]
    expected = next_token(model, data)
    got = chunked_next_token(model, data, logits_at_once=SMALL)
    assert got.shape == expected.shape and got.dtype == torch.float64
    torch.testing.assert_close(got, expected, **EXACT)
    there = gradients(model, expected)
    for name, leaf in gradients(model, got).items():
        torch.testing.assert_close(leaf, there[name], msg=name, **EXACT)


def test_masked_tokens_are_exactly_zero():
    losses = chunked_next_token(causal("GPTNeoX"), batch(), logits_at_once=SMALL)
    assert torch.equal(losses[2, 3:], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(losses[1, :2], torch.zeros(2, dtype=torch.float64))
    assert (losses[0] > 0).all()


@pytest.mark.parametrize("logits_at_once", [1, V, 5 * V + 3, 10**6])
def test_the_size_of_a_chunk_changes_nothing(logits_at_once):
    hidden, linear = normal(18, D, seed=0).requires_grad_(), filled(nn.Linear(D, V))
    targets = integers(V, 18, seed=1)
    head = LinearHead(nn.Identity(), linear)  # type: ignore[arg-type]
    whole = nn.functional.cross_entropy(linear(hidden), targets, reduction="none")
    got = linear_cross_entropy(hidden, targets, head, logits_at_once=logits_at_once)
    torch.testing.assert_close(got, whole, **EXACT)
    inputs = [hidden, *linear.parameters()]
    pairs = zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (got, whole)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **EXACT)


def test_chains_can_be_stacked():
    model = causal("GPTNeoX")
    model.requires_grad_(False)
    params = stack_near({n: p.detach() for n, p in model.named_parameters()}, 2)
    data = {"input_ids": batch()["input_ids"]}

    def total(one: dict[str, Tensor], loss: Any) -> Tensor:
        holder = _Holder(model, loss)
        named = {f"model.{n}": p for n, p in one.items()}
        return functional_call(holder, named, (data,)).sum()

    chunked = lambda m, b: chunked_next_token(m, b, logits_at_once=SMALL)  # noqa: E731
    chunked(model, data)
    got, expected = (vmap(grad(lambda one, f=f: total(one, f)))(params)
                     for f in (chunked, next_token))  # fmt: skip
    for name in params:
        torch.testing.assert_close(got[name], expected[name], **EXACT)


class _Holder(nn.Module):
    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, data: Any) -> Tensor:
        return self.loss(self.model, data)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


def test_logits_of_all_tokens_never_exist():
    model = causal("GPTNeoX", vocab_size=2000)
    ids = integers(2000, 8, 16, seed=1)
    embedding, at_once = 2000 * D, 16_000
    chunked_next_token(model, {"input_ids": ids})  # its first call compares a few logits
    sizes = {}
    for name, loss in (
        ("whole", next_token),
        ("chunked", lambda m, b: chunked_next_token(m, b, logits_at_once=at_once)),
    ):
        with Largest() as seen:
            loss(model, {"input_ids": ids}).sum().backward()
        sizes[name] = seen.numbers
        model.zero_grad()
    assert sizes["whole"] >= 8 * 15 * 2000  # the measure sees them
    assert sizes["chunked"] <= max(embedding, at_once)


def test_bfloat16_compute_gives_float32_losses_near_the_exact_ones():
    model, data = causal("GPTNeoX").float(), batch()
    exact = next_token(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        whole, got = next_token(model, data), chunked_next_token(model, data, logits_at_once=SMALL)
    assert got.dtype == torch.float32
    # Both round the same logits to bfloat16; log-sum-exps differ in float32's last bits.
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-5)
    there, here = gradients(model, exact), gradients(model, got)
    for name, leaf in here.items():
        assert leaf.dtype == torch.float32
        assert (leaf - there[name]).norm() < 0.05 * there[name].norm() + 1e-3, name


def test_a_head_with_something_after_the_linear_map_is_refused_with_its_size():
    class Doubled(transformers.GPTNeoXForCausalLM):
        def forward(self, **given: Any) -> Any:
            out = super().forward(**given)
            out.logits = 2 * out.logits
            return out

    plain = causal("GPTNeoX")
    with torch.random.fork_rng(devices=[]):
        model = filled(Doubled(plain.config))
    with pytest.raises(ValueError, match=r"Doubled.*differ by up to.*bif\.losses\.next_token"):
        chunked_next_token(model, batch())


def test_a_model_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no linear head.*next_token"):
        chunked_next_token(nn.Linear(2, 2), batch())
