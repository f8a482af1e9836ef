"""Items with a wrong label, found by the kernel, by their losses, and by cleanlab."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import bif
from benchmarks.kernel import images
from benchmarks.kernel.item_scores import class_gap, detection, neighbour_disagreement
from benchmarks.kernel.plan import NEIGHBOURS, Plan, settings
from benchmarks.kernel.sampling import Sampled, controls, posed, sample, with_steps
from benchmarks.kernel.stored import Bundle
from bif.kernel import input_kernel

SHARES = (0.05, 0.2)
FOLDS = 4
CLASSES = 10


def study(name: images.DataSet, bundle: Bundle, data: Path, plan: Plan, device: str) -> None:
    """Record how well scores find the items whose label was changed, for each share and seed."""
    clean = images.read(data, name, plan.train, 0, device).train
    known: dict[float, bif.Settings] = {}
    for seed in range(plan.seeds):
        for share in SHARES:
            key = f"{share:.0%}, seed {seed}"
            if bundle.has(key):
                continue
            items, flipped = flip(clean, share, seed)
            model = images.trained(name, items, epochs=plan.epochs, seed=seed, device=device)
            asked = settings(plan, seed=seed, weight_decay=images.WEIGHT_DECAY[name])
            problem = posed(model, items, None)
            known[share] = with_steps(problem, asked, known.get(share))
            sampled = sample(problem, known[share])
            scores = suspicion(sampled, seed)
            row = {
                "name": key, "seed": seed, "share": share,
                "accuracy": images.accuracy(model, clean), **sampled.figures,
                "detection": {kind: detection(s, flipped) for kind, s in scores.items()},
            }  # fmt: skip
            inputs, classes = images.inputs_and_classes(items)
            unseen = held_out(name, items, epochs=plan.epochs, seed=seed, device=device)
            arrays = {
                **{f"scores by {kind}": s.astype("float32") for kind, s in scores.items()},
                "flipped": flipped, "classes": classes.cpu().numpy(),
                "probabilities": images.logits(model, inputs).softmax(dim=1).cpu().numpy(),
                "probabilities held out": unseen,
            }  # fmt: skip
            bundle.add(row, arrays)


def suspicion(sampled: Sampled, seed: int) -> dict[str, np.ndarray]:
    """Return how odd each item is with its label, by its losses and by several kernels."""
    labels = sampled.kernel.labels_of("label")
    found = {
        "loss": sampled.center, "mean loss gain": sampled.mean_loss_gain,
        "loss variance": sampled.kernel.variance.numpy(),
    }  # fmt: skip
    kernels = {"loss kernel": sampled.kernel, **controls(sampled, seed),
               "pixels": input_kernel(sampled.problem)}  # fmt: skip
    for kind, kernel in kernels.items():
        found[f"neighbours by {kind}"] = neighbour_disagreement(kernel, labels, NEIGHBOURS)
        found[f"class gap by {kind}"] = class_gap(kernel, labels)
    return found


def flip(clean: bif.Items, share: float, seed: int) -> tuple[bif.Items, np.ndarray]:
    """Return items of which a share has another class, and which they are, bool `[N]`."""
    inputs, classes = images.inputs_and_classes(clean)
    source = np.random.default_rng([seed, round(1000 * share)])
    flipped = np.zeros(len(clean), dtype=bool)
    flipped[source.permutation(len(clean))[: round(share * len(clean))]] = True
    shift = torch.from_numpy(source.integers(1, CLASSES, len(clean)) * flipped).to(classes)
    moved = (classes + shift) % CLASSES
    names = images.class_names(clean)
    names += [f"class {c}" for c in range(len(names), CLASSES)]
    return images.with_data(clean, inputs, moved, names), flipped


def held_out(
    name: images.DataSet, items: bif.Items, *, epochs: int, seed: int, device: str
) -> np.ndarray:
    """Return probabilities of the classes by networks that have not seen the item, `[N, 10]`."""
    inputs, classes = images.inputs_and_classes(items)
    fold = np.random.default_rng([seed, 7]).permutation(len(items)) % FOLDS
    found = torch.zeros(len(items), CLASSES)
    for k in range(FOLDS):
        kept, rest = (
            torch.from_numpy(np.flatnonzero(mask)).to(classes.device)
            for mask in (fold != k, fold == k)
        )
        part = bif.Items((inputs[kept], classes[kept]))
        model = images.trained(name, part, epochs=epochs, seed=seed, device=device)
        found[rest.cpu()] = images.logits(model, inputs[rest]).softmax(dim=1).cpu()
    return found.numpy()
