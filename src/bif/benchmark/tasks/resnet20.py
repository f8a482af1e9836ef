"""A published ResNet-20 for CIFAR-10, fine-tuned on halves of 1,000 of its train images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bif.benchmark.networks import ResNet20
from bif.benchmark.task import Task
from bif.benchmark.tasks.cifar import METHODS, settings, split
from bif.benchmark.tasks.files import find_path
from bif.benchmark.tasks.parts import classification_problem
from bif.evaluate import Recipe
from bif.evaluate.retraining import Plan

CHECKPOINT = "resnet20-12fca82f.th"
NUM_TRAIN = 1000
EPOCHS, BATCH, WEIGHT_DECAY = 10, 128, 1e-4
NBETA, DAMPING = 10.0, 0.25
"""nbeta in train items, and gamma in nbeta: `1 / (learning rate · steps)` of `RECIPE`, momentum and
schedule counted, by which short training is damped; nothing of it was tuned."""
RECIPE = Recipe(1, 0.01, momentum=0.9, weight_decay=WEIGHT_DECAY, schedule="cosine")
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet, by which the checkpoint was trained."""


def task(data: Path, *, device: str, seed: int, size: int | None = None) -> Task:
    """Return a task of 1,000 train images, 200 queries and 133 to tune on.

    Networks are retrained from the checkpoint alone.

    Retraining from scratch would need CIFAR-10's other 46,000 images and BatchNorm's statistics.

    Args:
        data: Folder with `cifar10/` and `resnet-cifar10/`.
        device: Where to retrain and sample.
        seed: Seed of split and sampling.
        size: Number of train items; there are a fifth as many queries at most.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: Pillow is not installed.
        ValueError: A checkpoint of another network; pictures of another layout, or too few.
    """
    model = checkpoint(data).to(device)
    parts = split(data, size=size or NUM_TRAIN, seed=seed, device=device, mean=MEAN, spread=SPREAD)
    num_train = len(parts["train"])
    num_weights = sum(p.numel() for p in model.parameters())
    chosen = settings(
        num_train,
        NBETA,
        draws=150,
        damping=DAMPING,
        seed=seed,
        device=device,
        weight_decay=WEIGHT_DECAY,
    )
    return Task(
        "resnet20",
        classification_problem(model, parts),
        parts["tuning"],
        recipe(num_train // 2),
        Plan(num_subsets=100, seeds=2, mask_seed=seed, num_tuning_subsets=24, tuning_seeds=2),
        targets=("checkpoint",),
        settings=(chosen,),
        methods=METHODS,
        about="ResNet-20, 91.8 % on CIFAR-10's test images, fine-tuned on halves of "
        f"{num_train:,} of its train images with BatchNorm frozen; {num_weights:,} weights move. "
        "In-sample: the checkpoint was trained on the queries too.",
        in_sample=True,
        networks_per_stack=64,
        retraining_precision="tf32" if device.startswith("cuda") else "float32",
    )


def recipe(num_items: int) -> Recipe:
    """Return a recipe of 10 epochs in batches of 128, or of an eighth of fewer items."""
    batch = max(1, min(BATCH, num_items // 8))
    return replace(RECIPE, steps=EPOCHS * (num_items // batch), batch_size=batch)


def checkpoint(data: Path) -> ResNet20:
    """Return the network of `resnet-cifar10/resnet20-12fca82f.th`, in evaluation mode.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It holds something else.
    """
    path = find_path(find_path(data, "resnet-cifar10", "."), CHECKPOINT)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling meets
        raise ValueError(f"{path} is no checkpoint of PyTorch: {error}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(
            f"{path} holds no 'state_dict'; expected the checkpoint of "
            "akamaster/pytorch_resnet_cifar10's resnet20."
        )
    return ResNet20.from_state(content["state_dict"]).eval()
