"""An explainer for quanda (github.com/dilyabareeva/quanda, written against 0.5).

`BIFExplainer` is a subclass of `quanda.explainers.Explainer`, made when it is asked for: quanda is
no dependency and is imported by nothing else.

    from bif.interop.quanda import BIFExplainer
    explainer = BIFExplainer(model, train_dataset, settings=bif.Settings(chains=64))
    explainer.explain(test_data, targets)  # [B, N], larger for items that help more
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bif.interop.scores import as_signed
from bif.problem.items import Items, as_items, batch_leaves, map_batch
from bif.problem.losses import cross_entropy
from bif.problem.problem import Observable, Problem, loss_observable
from bif.sampling.settings import Settings
from bif.types import Batch, ItemLoss


class BIFExplanations:
    """The methods of `BIFExplainer`, whose other base is quanda's `Explainer`.

    Quanda hands over test items batch by batch. Every call with new items samples the same chains
    once more, so hand all test items to `explain` first: their scores are kept, and later calls
    with any of them cost nothing.

    Args:
        model: The trained network with its weights loaded, as for quanda's own TRAK wrapper.
        train_dataset: A map-style Dataset of `(input, label)`, or of dicts.
        task: A task of quanda's; see `accepted_tasks`.
        checkpoints: Accepted for quanda's interface; the weights of `model` are used.
        checkpoints_load_func: As for quanda's `Explainer`.
        loss: `loss(model, batch) -> [B]` of a batch as the dataset collates it.
        observable: What is asked of the test items; their loss by default. It has to say whether
            lower or higher is better.
        settings: As for `bif.attribute`.

    Raises:
        ValueError: If the observable has no direction, or the problem cannot be sampled.
    """

    accepted_tasks = ["image_classification", "text_classification"]

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Dataset[Any],
        task: str = "image_classification",
        checkpoints: str | list[str] | None = None,
        checkpoints_load_func: Any = None,
        *,
        loss: ItemLoss = cross_entropy,
        observable: Observable | None = None,
        settings: Settings | None = None,
    ) -> None:
        begin: Any = super().__init__  # quanda's
        begin(
            model=model,
            train_dataset=train_dataset,
            task=task,
            checkpoints=checkpoints,
            checkpoints_load_func=checkpoints_load_func,
        )
        self._model, self._loss = model, loss
        self._observable = observable or loss_observable(loss)
        if self._observable.better is None:
            raise ValueError(
                f"observable {self._observable.name!r} does not say whether lower or higher is "
                "better, but quanda's scores are helpful = positive: declare better=."
            )
        items = as_items(train_dataset)
        self._train = Items(items.take(torch.arange(len(items))))
        self._settings = settings
        self._scores_by_content: dict[bytes, Tensor] = {}
        self._self_influence: Tensor | None = None

    def explain(self, test_data: Batch, targets: list[int] | Tensor) -> Tensor:
        """Return scores of all train items for each test item, float32 [B, N].

        Positive scores help.

        Args:
            test_data: Test inputs [B, …], or a dict of tensors, which is given "labels".
            targets: B labels whose loss (or other observable) is explained.
        """
        labels = torch.as_tensor(targets)
        queries = {**test_data, "labels": labels} if isinstance(test_data, dict) else None
        queries = map_batch(lambda x: x.detach(), queries or (test_data, labels))
        names = _fingerprints(queries)
        new = [row for row, name in enumerate(names) if name not in self._scores_by_content]
        if new:
            for row, scores in zip(new, self._sample(queries, new), strict=True):
                self._scores_by_content[names[row]] = scores
        found = torch.stack([self._scores_by_content[name] for name in names])
        return found.to(getattr(self, "device", "cpu"))

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Return `Var(l_i)` of every train item, float32 [N]: how freely its loss moves.

        Args:
            batch_size: Accepted for quanda's interface and ignored.
        """
        if self._self_influence is None:
            self._sample(self._train.first(1), [0])
        assert self._self_influence is not None
        return self._self_influence.to(getattr(self, "device", "cpu"))

    def _sample(self, queries: Batch, rows: list[int]) -> Tensor:
        """Return scores [B, N] of these rows, from a run of their own."""
        from bif.calibration.calibrate import calibrate
        from bif.runs.attribute import attribute

        device = next(self._model.parameters()).device
        problem = Problem(
            self._model,
            self._loss,
            train=self._train.to(device),
            queries=map_batch(lambda x: x[torch.tensor(rows)].to(device), queries),
            observables=[self._observable],
        )
        if not self._scores_by_content:  # every later call walks with the settings of the first
            self._settings = calibrate(problem, self._settings or Settings()).settings
        dataset = attribute(problem, self._settings).influence.dataset
        self._self_influence = -_float32(dataset["self_influence"].values)
        assert self._observable.better is not None
        # helpful = positive and signed as the BIF are the same flip, there and back
        scores = as_signed(dataset["derivative"].values[0], "helpful", self._observable.better)
        return _float32(scores)


@cache
def explainer_class() -> type:
    """Return `BIFExplainer`, a class of `BIFExplanations` and quanda's `Explainer`.

    Raises:
        ModuleNotFoundError: quanda is not installed.
    """
    try:
        from quanda.explainers import Explainer  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"BIFExplainer needs quanda, and {error.name} is missing: pip install quanda "
            "(docs/interop.md says how to do without torchvision).",
            name=error.name,
        ) from error
    members = {"__doc__": BIFExplanations.__doc__, "__module__": __name__}
    return type("BIFExplainer", (BIFExplanations, Explainer), members)


def __getattr__(name: str) -> Any:
    if name == "BIFExplainer":
        return explainer_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _float32(values: Any) -> Tensor:
    return torch.as_tensor(values).float()


def _fingerprints(batch: Batch) -> list[bytes]:
    """Return a name for the content of every row of a batch."""
    leaves = [leaf.cpu().contiguous() for leaf in batch_leaves(batch).values()]
    names = []
    for row in range(len(leaves[0])):
        digest = hashlib.blake2b(digest_size=16)
        for leaf in leaves:
            digest.update(f"{leaf.dtype}{tuple(leaf.shape[1:])}".encode())
            digest.update(leaf[row].reshape(-1).view(torch.uint8).numpy().tobytes())
        names.append(digest.digest())
    return names
