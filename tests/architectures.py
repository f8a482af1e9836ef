"""Ten small networks of different kinds in float64, each with data and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif
from bif.types import ItemLoss
from small_problems import filled, integers, normal


class WithBatchNorm(nn.Module):
    """Convolution and BatchNorm with running statistics, which evaluation mode keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)
        self.norm.running_mean.copy_(torch.tensor([0.2, -0.1, 0.3]))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x.unsqueeze(1)))).mean(dim=2))


class Recurrent(nn.Module):
    """An LSTM or GRU, cell by cell."""

    def __init__(self, cell: type[nn.LSTMCell] | type[nn.GRUCell]) -> None:
        super().__init__()
        self.cell, self.head = cell(1, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t : t + 1], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    """One head of attention over the numbers of an item, with LayerNorm and a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(1, 4), nn.LayerNorm(4)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embed(x.unsqueeze(2))
        q, k, v = self.qkv(self.norm(stream)).chunk(3, dim=2)
        weights = torch.softmax(q @ k.transpose(1, 2) / 2, dim=2)
        return self.head((stream + weights @ v).mean(dim=1))


class GraphConvolution(nn.Module):
    """Two rounds over a graph of the item's own, which comes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        nodes, edges = x[:, :4], (x[:, 4:20].reshape(-1, 4, 4) > 0).to(x)
        reach = edges + torch.eye(4, dtype=x.dtype)
        reach = reach / reach.sum(dim=2, keepdim=True)
        hidden = torch.tanh(reach @ self.first(nodes.unsqueeze(2)))
        return self.second(reach @ hidden).mean(dim=1)


class TiedLanguageModel(nn.Module):
    """A bigram model whose output matrix is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.mix = nn.Linear(3, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.embed(input_ids))) @ self.embed.weight.T


class LowRankAdapter(nn.Module):
    """A frozen layer with a low-rank update, and a frozen head."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 5), nn.Linear(5, 2)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        for frozen in (self.base, self.head):
            frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.base(x) + self.up(self.down(x))))


class MixtureOfExperts(nn.Module):
    """Three experts under a soft gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([torch.tanh(expert(x)) for expert in self.experts], dim=1)
        return (torch.softmax(self.gate(x), dim=1).unsqueeze(2) * outputs).sum(dim=1)


class Residual(nn.Module):
    """Convolutions with GroupNorm, SiLU and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.conv = nn.Conv1d(1, 4, 1), nn.Conv1d(4, 4, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.lift(x.unsqueeze(1))
        return self.head((stream + F.silu(self.norm(self.conv(stream)))).mean(dim=2))


class Implicit(nn.Module):
    """A fixed point, by twelve rounds of one layer with shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(3, 3), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        z, drive = torch.zeros(len(x), 3, dtype=x.dtype), self.outer(x)
        for _ in range(12):
            z = torch.tanh(0.3 * self.inner(z) + drive)
        return self.head(z)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": WithBatchNorm,
    "LSTM": lambda: Recurrent(nn.LSTMCell),
    "GRU": lambda: Recurrent(nn.GRUCell),
    "attention": Attention,
    "graph": GraphConvolution,
    "tied weights": TiedLanguageModel,
    "LoRA": LowRankAdapter,
    "mixture of experts": MixtureOfExperts,
    "residual": Residual,
    "fixed point": Implicit,
}


def made(name: str) -> nn.Module:
    """The network in float64, trained a little, so that its Hessian is nearly positive."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ARCHITECTURES[name]()
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        model = filled(model, seed=7)
    assert all(not p.requires_grad for n, p in model.named_parameters() if n in frozen)
    items = items_of(name, 8, seed=1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(name)(model.eval(), items).mean().backward()
        optimizer.step()
    return model


def items_of(name: str, count: int, *, seed: int) -> Any:
    """Inputs and labels, or texts of five pieces."""
    if name == "tied weights":
        return {"input_ids": integers(6, count, 5, seed=seed)}
    width = 20 if name == "graph" else 6
    return normal(count, width, seed=seed), integers(2, count, seed=seed + 1)


def loss_of(name: str) -> ItemLoss:
    """The loss of each item."""
    return bif.losses.next_token if name == "tied weights" else bif.losses.cross_entropy


def problem_of(name: str, model: nn.Module) -> bif.Problem:
    """8 items and 3 queries."""
    loss = loss_of(name)
    phi = bif.Observable("loss", loss, "lower")
    return bif.Problem(
        model, loss, train=items_of(name, 8, seed=1), queries=items_of(name, 3, seed=11),
        observables=[phi],
    )  # fmt: skip
