"""Items with a patch and a wrong label, found by a few of them that are known.

As in BadNets (Gu et al. 2017, arXiv 1708.06733): 5 % of the train items of class 1 (trouser,
automobile) get a white square of 3×3 pixels near the lower right corner and the label of class 0
(T-shirt, airplane).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bif
from benchmarks.kernel import images
from benchmarks.kernel.item_scores import detection, mean_correlation
from benchmarks.kernel.plan import Plan, settings
from benchmarks.kernel.sampling import controls, posed, sample, with_steps
from benchmarks.kernel.stored import Bundle
from bif.kernel import input_kernel

SOURCE, TARGET, SHARE, KNOWN = 1, 0, 0.05, 10
"""Class of the items, that of their label, their share of the class, and how many are known."""


def study(name: images.DataSet, bundle: Bundle, data: Path, plan: Plan, device: str) -> None:
    """Record how well kernels find the other items, for each seed."""
    train, others = images.read(data, name, plan.train, plan.items, device)
    assert others is not None
    decay = images.WEIGHT_DECAY[name]
    known_steps: bif.Settings | None = None
    for seed in range(plan.seeds):
        if bundle.has(f"seed {seed}"):
            continue
        poisoned, known, rest = poison(train, seed)
        model = images.trained(name, poisoned, epochs=plan.epochs, seed=seed, device=device)
        problem = posed(model, poisoned, None)
        asked = settings(plan, seed=seed, weight_decay=decay)
        known_steps = with_steps(problem, asked, known_steps)
        sampled = sample(problem, known_steps)
        kernels = {"loss": sampled.kernel, **controls(sampled, seed),
                   "pixels": input_kernel(problem)}  # fmt: skip
        scores = {kind: mean_correlation(kernel, known) for kind, kernel in kernels.items()}
        judged = np.setdiff1d(np.arange(plan.train), known)
        positives = np.isin(judged, rest)
        same = images.inputs_and_classes(poisoned)[1].cpu().numpy()[judged] == TARGET
        inputs, classes = images.inputs_and_classes(others)
        named = images.logits(model, patched(inputs[classes == SOURCE])).argmax(dim=1)
        row = {
            "name": f"seed {seed}", "seed": seed, "known": len(known), "to_find": len(rest),
            "accuracy": images.accuracy(model, others),
            "attack_success": float((named == TARGET).double().mean()),
            **sampled.figures,
            "detection": {kind: detection(s[judged], positives) for kind, s in scores.items()},
            "detection_within_label": {
                kind: detection(s[judged][same], positives[same]) for kind, s in scores.items()
            },
        }  # fmt: skip
        arrays = {f"scores by {kind}": s.astype("float32") for kind, s in scores.items()}
        bundle.add(row, {**arrays, "known": known, "to_find": rest})


def poison(train: bif.Items, seed: int) -> tuple[bif.Items, np.ndarray, np.ndarray]:
    """Return the items with some of them poisoned, and the places of the known and of the rest."""
    inputs, classes = images.inputs_and_classes(train)
    members = np.flatnonzero(classes.cpu().numpy() == SOURCE)
    count = round(SHARE * len(members))
    if count < 2:
        raise ValueError(
            f"{len(members)} train items of class {SOURCE}: 5 % of them are {count}, expected two "
            "or more. Take more train items."
        )
    chosen = np.random.default_rng(seed).permutation(members)[:count]
    places = torch.from_numpy(chosen).to(inputs.device)
    inputs, classes = inputs.clone(), classes.clone()
    inputs[places], classes[places] = patched(inputs[places]), TARGET
    made = images.with_data(train, inputs, classes, images.class_names(train))
    known = min(KNOWN, count // 2)
    return made, chosen[:known], chosen[known:]


def patched(inputs: Tensor) -> Tensor:
    """Return images with a white square: the brightest value of any image in each channel."""
    size = 28 if inputs.dim() == 2 else 32
    pictures = inputs.reshape(len(inputs), inputs.shape[1:].numel() // size**2, size, size)
    pictures = pictures.clone()
    for channel, white in enumerate(_white(pictures.shape[1])):
        pictures[:, channel, -4:-1, -4:-1] = white
    return pictures.reshape(inputs.shape)


def _white(channels: int) -> list[float]:
    from bif.benchmark.tasks.cifar import MEAN, SPREAD

    if channels == 1:
        return [(1 - 0.2860) / 0.3530]
    return [(1 - mean) / spread for mean, spread in zip(MEAN, SPREAD, strict=True)]
