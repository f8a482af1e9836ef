"""Trainers of a bank's networks: many at once by a recipe, one by one by the user's function."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bif.evaluate.retrain import MatmulPrecision, Queries, Recipe, Retrainer
from bif.evaluate.training import Network, num_rows, stream
from bif.problem.code import code_fingerprint
from bif.problem.functional import ItemFunction
from bif.problem.items import map_batch, preserve_randomness, to_device
from bif.problem.problem import Problem
from bif.problem.weights import copy_module, widen_
from bif.types import Batch, Target

TrainFunction = Callable[[nn.Module | None, Batch, int], nn.Module]
"""`train(start, items, seed) -> model`: trains on a subset's items and returns the network.

`start` is a fresh copy of the trained model for the target "checkpoint" and None for "scratch";
`items` is the batch of the subset's train items, in the structure of `problem.train`, on the
device; `seed`, in [0, 2^31), belongs to this subset and seed alone.
"""


class Trainer(Protocol):
    """A trainer of networks that returns outcomes of queries."""

    num_at_once: int
    """Number of networks that are trained together."""
    description: dict[str, Any]
    """The training as the manifest describes it; another description is another bank."""
    device: torch.device

    def check(self, mask: np.ndarray, queries: Sequence[Queries]) -> None:
        """Raise ValueError where something does not fit, before any training."""
        ...

    def outcomes(self, networks: Sequence[Network], queries: Queries) -> dict[str, np.ndarray]:
        """Return outcomes of freshly trained networks by name, float64 [G, Q]."""
        ...


class RecipeTrainer:
    """Stacks of networks by `torch.func.vmap`.

    Args:
        problem: Model, loss and train items.
        recipe: The recipe of the training.
        target: Where the training starts.
        device: The device of the training; the model's device if None.
        num_at_once: Number of networks of a stack.
        precision: Precision of matrix products.
    """

    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        *,
        target: Target,
        device: torch.device | str | None,
        num_at_once: int,
        precision: MatmulPrecision,
    ) -> None:
        items = problem.train.first(len(problem.train))
        self._retrainer = Retrainer(
            problem.model, problem.loss, items, recipe, init=target, device=device,
            precision=precision,
        )  # fmt: skip
        self.device, self.num_at_once = self._retrainer.device, num_at_once
        self.description = {"kind": "recipe", **recipe.as_dict(), "precision": precision}
        self.description["loss"] = code_fingerprint(problem.loss)

    def check(self, mask: np.ndarray, queries: Sequence[Queries]) -> None:
        self._retrainer.check(mask)
        for some in queries:
            self._retrainer.check_outcomes(some)

    def outcomes(self, networks: Sequence[Network], queries: Queries) -> dict[str, np.ndarray]:
        return self._retrainer.outcomes(networks, queries)


class FunctionTrainer:
    """The user's own training function, one network after another.

    Args:
        problem: Model and train items.
        train: The function.
        target: Whether it starts at w*.
        device: The device of the items and the start; the model's device if None.

    Raises:
        TypeError: What is called is no function of three arguments.
    """

    num_at_once = 1

    def __init__(
        self,
        problem: Problem,
        train: TrainFunction,
        *,
        target: Target,
        device: torch.device | str | None,
    ) -> None:
        _refuse_other_functions(train)
        self.device = torch.device(device) if device is not None else problem.device
        self._train, self._target, self._model = train, target, problem.model
        self._items = to_device(problem.train.first(len(problem.train)), self.device)
        self.description = {"kind": "function", "function": code_fingerprint(train)}

    def check(self, mask: np.ndarray, queries: Sequence[Queries]) -> None:
        """Do nothing: a trial would take as long as a network."""

    def outcomes(self, networks: Sequence[Network], queries: Queries) -> dict[str, np.ndarray]:
        rows = [self._train_and_evaluate(network, queries) for network in networks]
        return {name: np.stack([row[name] for row in rows]) for name in queries}

    def _train_and_evaluate(self, network: Network, queries: Queries) -> dict[str, np.ndarray]:
        model = widen_(self._train_network(network)).to(self.device).eval()
        found = {}
        for name, (function, batches) in queries.items():
            of_items = ItemFunction(model, function)
            with torch.no_grad():
                values = [of_items(to_device(batch, self.device)) for batch in batches]
            found[name] = torch.cat(values).double().cpu().numpy()
            expected = (sum(num_rows(batch, "queries") for batch in batches),)
            if found[name].shape != expected:
                raise ValueError(
                    f"observable {name!r} has shape {found[name].shape} under the network that the "
                    f"training function returned for {network}; expected {expected}, one "
                    "value a query. Return a model that the observables can take."
                )
            if not np.isfinite(found[name]).all():
                raise FloatingPointError(
                    f"observable {name!r} is NaN or infinite under the network that the training "
                    f"function returned for {network}; expected finite numbers. Lower its "
                    "learning rate, or see what diverges."
                )
        return found

    def _train_network(self, network: Network) -> nn.Module:
        index = torch.from_numpy(np.flatnonzero(network.mask)).to(self.device)
        items = map_batch(lambda leaf: leaf[index], self._items)
        start = (
            widen_(copy_module(self._model)).to(self.device)
            if self._target == "checkpoint"
            else None
        )
        seed = stream("train", network.mask, network.seed) >> 32
        devices = [self.device] if self.device.type == "cuda" else []
        with preserve_randomness(devices):
            _seed_everything(seed, devices)
            model = self._train(start, items, seed)
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"the training function returned {type(model).__name__} for {network}; "
                "expected the trained torch.nn.Module."
            )
        return model


def _refuse_other_functions(train: Any) -> None:
    if isinstance(train, nn.Module) or not callable(train):
        raise TypeError(
            f"the training function is a {type(train).__name__}: expected a function "
            "train(start, items, seed) -> model, or a Recipe. Pass the function, not what it "
            "returns."
        )
    try:
        inspect.signature(train).bind(None, None, 0)
    except TypeError as error:
        name = getattr(train, "__name__", type(train).__name__)
        raise TypeError(
            f"the training function {name}{inspect.signature(train)} cannot be called as "
            f"train(start, items, seed): {error}."
        ) from error
    except ValueError:  # of a builtin, which has no signature to look at
        return


def _seed_everything(seed: int, devices: Sequence[torch.device]) -> None:
    """Seed the global generators of the CPU and of these GPUs."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every device
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
