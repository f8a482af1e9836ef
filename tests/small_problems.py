"""Small float64 problems that several test files share; nothing here touches global randomness."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bif
from bif.sampling.sampler_checks import Checks, not_measured
from bif.types import Batch

TINY = bif.Settings(chains=4, draws=6, burn_in=4, thin=2, step_size=0.02, friction=2.0, gamma=5.0)
"""Everything given, so that no pilot run is needed."""


def normal(*shape: int, seed: int) -> Tensor:
    """N(0, 1) in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int, seed: int) -> Tensor:
    """Uniform on 0 … high - 1."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module, *, seed: int = 0, scale: float = 0.5) -> nn.Module:
    """The model in float64 with weights from N(0, scale²)."""
    model = model.double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=source, dtype=torch.float64))
    return model


def network(*, seed: int = 0) -> nn.Module:
    """4 inputs, 5 tanh units, 3 classes: 43 weights, float64."""
    with torch.random.fork_rng(devices=[]):
        return filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed=seed)


def labelled(num_items: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs `[N, 4]` and classes `[N]`."""
    return normal(num_items, 4, seed=seed), integers(3, num_items, seed=seed + 1000)


def classification(**changed: Any) -> bif.Problem:
    """20 items, 5 queries, loss and margin of `network`."""
    given: dict[str, Any] = {
        "train": labelled(20, seed=1),
        "queries": labelled(5, seed=2),
        "observables": [bif.Observable("loss", bif.losses.cross_entropy, "lower"), bif.MARGIN],
        **changed,
    }
    model = given.pop("model", None) or network()
    return bif.Problem(model, given.pop("loss", bif.losses.cross_entropy), **given)


def stack_near(center: dict[str, Tensor], num_chains: int, *, seed: int = 3) -> dict[str, Tensor]:
    """Chains spread around w*, leaves `[C, *shape]`."""
    return {
        name: leaf + 0.3 * normal(num_chains, *leaf.shape, seed=seed + i).to(leaf)
        for i, (name, leaf) in enumerate(center.items())
    }


def nothing_measured(*_: object) -> Checks:
    """In the place of `recording.check` where calls of the loss are counted, or time matters."""
    return not_measured()


class NotStackable(nn.Module):
    """A model whose Python branch looks at its weights, which vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return 2 * logits if logits.sum().item() > 1e9 else logits


class Pairs(torch.utils.data.Dataset[Any]):
    """Tensors as a Dataset."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)


def dict_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of dict batches."""
    return bif.losses.cross_entropy(model, (batch["x"], batch["y"]))


@contextmanager
def global_randomness_untouched() -> Iterator[None]:
    """Assert that torch's, numpy's and Python's global random states are as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert before[2] == after[2]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Copies of all weights and buffers, gradients, modes and flags of a model."""
    return {
        "tensors": {n: t.clone() for n, t in model.state_dict().items()},
        "places": {n: t.data_ptr() for n, t in model.state_dict().items()},
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    """Assert that nothing of what `state_of` recorded has changed, to the last bit."""
    after = state_of(model)
    tensors, was = after.pop("tensors"), before["tensors"]
    assert tensors.keys() == was.keys()
    assert all(torch.equal(tensors[n], was[n]) for n in was)
    assert after == {k: v for k, v in before.items() if k != "tensors"}
