"""CIFAR-10: a ResNet-9 with GroupNorm on 3,000 of the first 4,000 train images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bif.benchmark.networks import ResNet9
from bif.benchmark.task import Task
from bif.benchmark.tasks.files import find_path
from bif.benchmark.tasks.parts import classification_problem, split_positions
from bif.evaluate import Recipe, train
from bif.evaluate.retraining import Plan
from bif.extras import needs_extra
from bif.problem.items import Items
from bif.problem.losses import cross_entropy
from bif.sampling.settings import Settings

NUM_TRAIN, NUM_QUERIES, NUM_TUNING_QUERIES = 3000, 600, 400
EPOCHS, BATCH, WEIGHT_DECAY = 20, 32, 5e-4
NBETA = 0.3
"""nbeta in units of the train items; no tuning chose it."""
BUDGET = 300.0
"""Seconds of the BIF on a GPU, calibration included."""
MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def task(
    data: Path,
    *,
    device: str,
    seed: int,
    size: int | None = None,
    widths: tuple[int, ...] = (16, 32, 64, 64),
) -> Task:
    """Return a task of 3,000 train images, 600 queries and 400 to tune on.

    Networks are retrained from scratch.

    Args:
        data: Folder with `cifar10/`, or that folder itself.
        device: Where to train, retrain and sample.
        seed: Seed of split, training and sampling.
        size: Number of train items; there are a fifth as many queries at most.
        widths: Channels of the network's four stages.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: Pillow is not installed.
        ValueError: Pictures of another layout, or too few of them.
    """
    parts = split(data, size=size, seed=seed, device=device, mean=MEAN, spread=SPREAD)
    num_train = len(parts["train"])
    with torch.random.fork_rng(devices=[]):  # weights that `train` replaces by those of the seed
        network = ResNet9(widths).to(device)
    model = train(
        network, cross_entropy, parts["train"].data, recipe(num_train), seed=seed, device=device
    )
    num_weights = sum(p.numel() for p in model.parameters())
    chosen = settings(
        num_train, NBETA, draws=650, seed=seed, device=device, weight_decay=WEIGHT_DECAY
    )
    if device.startswith("cuda"):
        # Compiled, chain after chain, a gradient takes about half of the time that a stack takes.
        # Draws as many as the time allows: a fixed number failed the gate of mixing.
        chosen = replace(
            chosen.with_draws(None), oracle="sequential", compiled=True, chunk_size=num_train,
            thin=None, budget=BUDGET,
        )  # fmt: skip
    return Task(
        "cifar",
        classification_problem(model, parts),
        parts["tuning"],
        recipe(num_train // 2),
        Plan(num_subsets=100, seeds=3, mask_seed=seed, num_tuning_subsets=24, tuning_seeds=2),
        settings=(chosen,),
        methods=METHODS,
        about=f"CIFAR-10, {num_train:,} train images, ResNet-9 with GroupNorm, widths "
        f"{'-'.join(map(str, widths))}, {num_weights:,} weights.",
        networks_per_stack=128,
        retraining_precision="tf32" if device.startswith("cuda") else "float32",
    )


METHODS = (
    "random", "representation", "gradient_product", "gradient_cosine", "trak", "ekfac", "tracin",
    "source", "bif", "bif_default",
)  # fmt: skip
"""Methods that take some 100,000 weights."""


def recipe(num_items: int) -> Recipe:
    """Return a recipe of 20 epochs in batches of 32, or of an eighth of fewer items."""
    batch = max(1, min(BATCH, num_items // 8))
    return Recipe(
        EPOCHS * (num_items // batch), 0.003, momentum=0.9, weight_decay=WEIGHT_DECAY,
        batch_size=batch, schedule="cosine",
    )  # fmt: skip


def settings(
    num_train: int,
    share: float,
    *,
    draws: int,
    damping: float = 0.1,
    seed: int,
    device: str,
    weight_decay: float,
) -> Settings:
    """Return settings for image networks: `nbeta = share · n`, `gamma = damping · nbeta`."""
    on_gpu = device.startswith("cuda")
    nbeta = share * num_train
    return Settings(
        nbeta=nbeta, gamma=damping * nbeta, weight_decay=weight_decay, chains=16, draws=draws,
        thin=2, seed=seed, block_size=16 if on_gpu else 4, chunk_size=1000,
        gradient_precision="bfloat16" if on_gpu else "float32",
        loss_precision="tf32" if on_gpu else "float32",
    )  # fmt: skip


def split(
    data: Path,
    *,
    size: int | None,
    seed: int,
    device: str,
    mean: tuple[float, ...],
    spread: tuple[float, ...],
) -> dict[str, Items]:
    """Train items, reported queries and tuning queries, `[N, 3, 32, 32]`, in shuffled order.

    Args:
        data: As for `task`.
        size: As for `task`.
        seed: Seed of the shuffle.
        device: The device of the tensors.
        mean: Mean of each channel, of pixels in [0, 1].
        spread: Standard deviation of each channel.

    Raises:
        FileNotFoundError, ImportError, ValueError: As for `task`.
    """
    place = find_path(data, "cifar10", ".")
    pictures, labels, names = _read_pictures(place)
    num_train = size or NUM_TRAIN
    share = min(num_train, NUM_TRAIN)
    chosen_by_part = split_positions(
        len(pictures),
        train=num_train,
        queries=max(1, NUM_QUERIES * share // NUM_TRAIN),
        tuning=max(1, NUM_TUNING_QUERIES * share // NUM_TRAIN),
        seed=seed,
        what=f"{place} holds {len(pictures):,} images",
    )
    return {
        name: _items(pictures[chosen], labels[chosen], names, chosen, device, mean, spread)
        for name, chosen in chosen_by_part.items()
    }


def images(
    data: Path,
    chosen: np.ndarray,
    *,
    device: str,
    mean: tuple[float, ...] = MEAN,
    spread: tuple[float, ...] = SPREAD,
) -> Items:
    """Return the images at some positions, `[N, 3, 32, 32]`, with labels and pictures.

    Args:
        data: As for `task`.
        chosen: Positions among the first 4,000 train images, `[N]`.
        device: The device of the tensors.
        mean: Mean of each channel, of pixels in [0, 1].
        spread: Standard deviation of each channel.

    Raises:
        FileNotFoundError, ImportError, ValueError: As for `task`.
    """
    place = find_path(data, "cifar10", ".")
    pictures, labels, names = _read_pictures(place)
    return _items(pictures[chosen], labels[chosen], names, chosen, device, mean, spread)


def _items(
    pictures: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    places: np.ndarray,
    device: str,
    mean: tuple[float, ...],
    spread: tuple[float, ...],
) -> Items:
    inputs = torch.tensor((pictures / np.float32(255) - mean) / spread)
    batch: tuple[Tensor, Tensor] = (
        inputs.float().movedim(-1, 1).contiguous().to(device),
        torch.tensor(labels.astype(np.int64), device=device),
    )
    return Items(
        batch,
        ids=[f"image-{i}" for i in places],
        labels=[names[label] for label in labels],
        images=pictures,
    )


def _read_pictures(place: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return pictures `[N, 32, 32, 3]`, labels `[N]` and the names of the classes."""
    sheets = sorted(place.glob("cifar10_batch_*.png")) or [find_path(place, "cifar10_batch_0.png")]
    labels = np.load(find_path(place, "labels_first4000_train.npy"), allow_pickle=False)
    names = find_path(place, "class_names.txt").read_text(encoding="utf-8").split()
    pictures = np.concatenate([_read_sheet(sheet) for sheet in sheets])
    if len(labels) != len(pictures):
        raise ValueError(
            f"{place} holds {len(pictures):,} images in {len(sheets)} sheets, but {len(labels):,} "
            "labels; expected as many: a sheet is missing, or one too many."
        )
    return pictures, labels, names


def _read_sheet(path: Path) -> np.ndarray:
    """Return the pictures of one file, whose rows are images of 1,024 pixels."""
    with needs_extra("report", "CIFAR-10's images are PNG files, which Pillow reads"):
        from PIL import ImageFile
    parser = ImageFile.Parser()
    try:
        parser.feed(path.read_bytes())
        pixels = np.asarray(parser.close().convert("RGB"))
    except (OSError, SyntaxError) as error:  # Pillow's words for a broken PNG
        raise ValueError(f"{path} is no whole picture: {error}. Fetch it anew.") from error
    if pixels.shape[1:] != (1024, 3):
        raise ValueError(
            f"{path} has {pixels.shape[1]} pixels a row; expected 1,024, a 32×32 image each row."
        )
    return pixels.reshape(-1, 32, 32, 3)
