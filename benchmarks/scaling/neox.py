"""GPT-NeoX in the shapes of Pythia: random weights, their number, FLOPs, and what a run holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Memory = Literal["plain", "fused", "lean"]
BYTES_A_WEIGHT: dict[Memory, int] = {"plain": 20, "fused": 8, "lean": 4}
"""Bytes of SGLD a weight, as docs/large-models.md lists them."""
_LAYER_BYTES = 50
"""Bytes that a layer keeps for its backward pass, a token and unit of width; bfloat16 compute."""
_CHECKPOINT_BYTES = 4
"""Bytes that a recomputed layer keeps, a token and unit of width: the float32 input alone."""
_FORWARD_BYTES = 24
"""Bytes of a forward pass that keeps nothing, a token and unit of width."""
_HEAD_BYTES = 2**30
"""Bytes of the chunks of logits."""


@dataclass(frozen=True)
class Shape:
    """A GPT-NeoX.

    Attributes:
        name: The name of the Pythia model.
        layers: Number of layers.
        width: The width of the residual stream.
        heads: Attention heads a layer.
        vocabulary: Rows of embedding and head, which are two matrices.
    """

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int = 50_304

    @property
    def without_embedding(self) -> int:
        """Number of weights that every token is multiplied by."""
        d = self.width
        matrices, biases, norms = 12 * d * d, 9 * d, 4 * d
        return self.layers * (matrices + biases + norms) + 2 * d + self.vocabulary * d

    @property
    def num_weights(self) -> int:
        """Number of all weights."""
        return self.without_embedding + self.vocabulary * self.width

    def flop_a_token(self, length: int) -> int:
        """Return the FLOP of a token in a forward pass.

        It is 2 a weight, and causal attention over half of `length`.
        """
        return 2 * self.without_embedding + 2 * length * self.width * self.layers

    def flop_a_draw(self, *, scored: int, stepped: int, length: int) -> int:
        """Return the FLOP of a draw: a forward pass that scores, and a step."""
        return self.flop_a_token(length) * length * (scored + 3 * stepped)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("14M", 6, 128, 4),
        Shape("70M", 6, 512, 8),
        Shape("160M", 12, 768, 12),
        Shape("410M", 24, 1024, 16),
        Shape("1B", 16, 2048, 8),
        Shape("1.4B", 24, 2048, 16),
        Shape("2.8B", 32, 2560, 32),
        Shape("6.9B", 32, 4096, 32, 50_432),
        Shape("12B", 36, 5120, 40, 50_688),
        # Not of Pythia: to try the benchmark on a CPU.
        Shape("tiny", 2, 32, 2, 512),
        Shape("small", 2, 64, 2, 512),
        Shape("medium", 3, 96, 2, 512),
    )
}
PYTHIA = [name for name in SHAPES if name[-1] in "MB"]


@dataclass(frozen=True)
class Layout:
    """A layout of a run in memory, and what it is expected to take.

    Attributes:
        memory: The `memory` of `bif.Settings`.
        recompute: Whether layers are computed again in the backward pass.
        bytes: The expected bytes at the peak.
    """

    memory: Memory
    recompute: bool
    bytes: int


def layouts_of(shape: Shape, *, batch: int, chunk: int, length: int) -> list[Layout]:
    """Return layouts from the fastest to the leanest.

    Args:
        shape: The shape of the model.
        batch: Sequences of a step.
        chunk: Sequences of a forward pass that scores.
        length: Tokens of a sequence.
    """
    d, w = shape.width, shape.num_weights
    found = []
    layouts: list[tuple[Memory, bool]] = [
        ("plain", False), ("fused", False), ("fused", True), ("lean", True)
    ]  # fmt: skip
    for memory, recompute in layouts:
        kept = _CHECKPOINT_BYTES * shape.layers + _LAYER_BYTES if recompute else (
            _LAYER_BYTES * shape.layers
        )  # fmt: skip
        casts = 0 if recompute or memory == "lean" else 2 * w
        backward = kept * d * batch * length + casts
        forward = _FORWARD_BYTES * d * chunk * length
        total = BYTES_A_WEIGHT[memory] * w + max(backward, forward) + _HEAD_BYTES
        found.append(Layout(memory, recompute, total))
    return found


def network(shape: Shape, *, length: int, seed: int, device: str, dtype: torch.dtype) -> Any:
    """Return a model with random weights, made on the device, in evaluation mode."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(  # a quarter of each head is rotated, its default
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=max(2048, length),
        use_parallel_residual=True,
        tie_word_embeddings=False,
        use_cache=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model: nn.Module = GPTNeoXForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def sequences(shape: Shape, count: int, *, length: int, seed: int) -> Tensor:
    """Return random tokens `[count, length]`."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocabulary, (count, length), generator=source)
