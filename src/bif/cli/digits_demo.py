"""The demo: a network trained on digits, some of them mislabelled, and who is to blame.

1,000 of scikit-learn's digits, 5 % of their labels moved to another class; 200 clean queries;
BAOAB with full gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bif import store
from bif.evaluate.mislabel import auroc
from bif.evaluate.retrain import Recipe, train
from bif.extras import needs_extra
from bif.problem.identity import identity
from bif.problem.items import Items
from bif.problem.losses import cross_entropy
from bif.problem.problem import MARGIN, Observable, Problem
from bif.runs.attribute import COMMIT_EVERY, run_attribution
from bif.runs.retention import Keep
from bif.runs.run import Run
from bif.sampling.item_gradients import item_gradients
from bif.sampling.settings import Settings
from bif.terminal import briefly, say

if TYPE_CHECKING:
    import xarray as xr

NUM_TRAIN, NUM_QUERIES, MOVED_SHARE = 1000, 200, 0.05
RECIPE = Recipe(steps=1000, learning_rate=0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine")


@dataclass(frozen=True)
class Digits:
    """The demo's problem, and which of its labels were moved."""

    problem: Problem
    moved: np.ndarray
    original_labels: np.ndarray


def digits(seed: int = 0) -> Digits:
    """Load the digits, move 5 % of the training labels, train the network.

    Args:
        seed: Seed of the split, of the moved labels and of the training.

    Raises:
        ImportError: The extra `demo` is not installed.
    """
    with needs_extra("demo", "the demo needs scikit-learn"):
        from sklearn.datasets import load_digits
    bundle: Any = load_digits()
    pixels, labels = np.asarray(bundle.data), np.asarray(bundle.target)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pixels))[: NUM_TRAIN + NUM_QUERIES]
    pixels, original = pixels[order], labels[order].astype(np.int64)
    given = original.copy()
    moved = np.zeros(NUM_TRAIN, dtype=bool)
    moved[rng.choice(NUM_TRAIN, round(MOVED_SHARE * NUM_TRAIN), replace=False)] = True
    given[:NUM_TRAIN][moved] = (original[:NUM_TRAIN][moved] + rng.integers(1, 10, moved.sum())) % 10
    inputs = torch.tensor(pixels / 16.0, dtype=torch.float32)
    targets = torch.tensor(given)
    images = (pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)

    def items(part: slice, prefix: str) -> Items:
        ids = [f"{prefix}{i}" for i in range(len(order[part]))]
        data = (inputs[part], targets[part])
        return Items(data, ids=ids, labels=given[part].tolist(), images=images[part])

    first, last = slice(0, NUM_TRAIN), slice(NUM_TRAIN, None)
    with torch.random.fork_rng(devices=[]):  # weights that `train` replaces by those of the seed
        network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    model = train(network, cross_entropy, (inputs[first], targets[first]), RECIPE, seed=seed)
    problem = Problem(
        model,
        cross_entropy,
        train=items(first, "train-"),
        queries=items(last, "query-"),
        observables=[Observable("loss", cross_entropy, "lower"), MARGIN],
    )
    return Digits(problem, moved, original[first])


def suspicion(influence: xr.Dataset) -> np.ndarray:
    """Return how likely each training label is wrong: minus `Var(l_i)`.

    The loss of an item that contradicts its neighbours is held down by few weights, so it moves
    freely under the posterior.
    """
    return -influence["self_influence"].values


def run_demo(
    out: str | Path,
    *,
    seed: int,
    settings: Settings | None = None,
    keep: Keep = "traces",
    on_existing: store.OnExisting = "resume",
    commit_every: float = COMMIT_EVERY,
) -> bool:
    """Run the demo into a folder, or go on with it there.

    Args: as for `bif.attribute`; `seed` is of split, moved labels and training as well.

    Returns:
        Whether there was anything to do: False where the folder held this very run, complete.

    Raises: as `bif.attribute`.
    """
    settings = settings or Settings(seed=seed, weight_decay=RECIPE.weight_decay)
    made = digits(seed)
    manifest = {"identity": identity(made.problem, settings.as_dict()), "keep": keep}
    if on_existing == "resume" and store.is_complete(out, manifest):
        return False
    with store.open_run(out, manifest, on_existing=on_existing) as folder:
        if folder.complete:
            return False
        say(["choosing settings, each of which run.json explains, and sampling: a minute or two"])
        with briefly():
            run = run_attribution(
                made.problem, settings, folder=folder, keep=keep, commit_every=commit_every,
                show_progress=True,
            )  # fmt: skip
        add_known_truth(run, made).write(folder, extra=mislabel_aurocs(run, made))
    return True


def add_known_truth(run: Run, made: Digits) -> Run:
    """Add suspicion and the known truth to the run's scores, for the report."""
    dataset = run.influence.dataset
    dataset["suspicion"] = ("train", suspicion(dataset))
    dataset["relabelled"] = ("train", made.moved)
    dataset["original_label"] = ("train", made.original_labels.astype(str))
    return run


def mislabel_aurocs(run: Run, made: Digits) -> dict[str, Any]:
    """Return how well three scores find the moved labels, as areas under the ROC curve.

    The scores are the suspicion; the item's loss at w* alone; and the gradient product of the
    item with itself, `g_i · g_i`, to which the suspicion tends as gamma grows.
    """
    dataset = run.influence.dataset
    gradients = item_gradients(made.problem, made.problem.loss, made.problem.train)
    product = gradients.square().sum(dim=1).numpy()
    return {
        "mislabel_auroc": auroc(suspicion(dataset), made.moved),
        "mislabel_auroc_loss_only": auroc(dataset["train_center_loss"].values, made.moved),
        "mislabel_auroc_gradient_product": auroc(product, made.moved),
    }
