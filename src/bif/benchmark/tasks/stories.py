"""Fine-tuning stories260K, a language model of 260,000 weights, on a slice of TinyStories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bif.benchmark.task import Task
from bif.benchmark.tasks.files import find_path
from bif.benchmark.tasks.parts import split_positions
from bif.evaluate import Recipe, train
from bif.evaluate.retraining import Plan
from bif.interop.llama2c import Llama2cTokenizer, read_llama2c
from bif.problem.items import Items
from bif.problem.losses import next_token_mean
from bif.problem.problem import Observable, Problem
from bif.sampling.settings import Settings

NUM_TRAIN, NUM_QUERIES, NUM_TUNING_QUERIES = 256, 64, 48
NUM_TOKENS, BATCH = 128, 32
MIN_QUERIES = 32
"""Queries of a task of fewer train items: a mean over 8 queries tells settings apart by chance."""
EPOCHS, RETRAIN_EPOCHS = 10, 5
RECIPE = Recipe(1, 0.03, momentum=0.9, schedule="cosine")
LOSS = Observable("loss", next_token_mean, "lower")
"""Nats a token.

The mean over an item's tokens, in training and in queries: each story counts the same, and
learning rate, temperature and curvature are those of a loss of order 1.  Stories cut to one length
have sums that are all the same multiple of it.
"""
SEPARATOR = "<|endoftext|>"


def task(data: Path, *, device: str, seed: int, size: int | None = None) -> Task:
    """Return a task of 256 stories, 64 queries and 48 to tune on, cut to 128 tokens.

    The published model is fine-tuned on all train items, which makes w*; networks are retrained
    from there on subsets.  Embedding and output stay one matrix, as in the published model: two
    that part ways in fine-tuning would be another model, with an eighth more weights.

    Args:
        data: Folder with `stories260K/` and `tinystories/`.
        device: Where to train, retrain and sample.
        seed: Seed of split, training and sampling.
        size: Number of train items; there are a quarter as many queries, 32 at least.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: transformers is not installed.
        ValueError: A file of another format, or too few stories.
    """
    model, parts = (
        published_model(data).to(device),
        split(data, size=size, seed=seed, device=device),
    )
    num_train = len(parts["train"])
    model = train(
        model, next_token_mean, parts["train"].data, recipe(num_train), seed=seed,
        init="checkpoint", device=device,
    )  # fmt: skip
    num_weights = sum(p.numel() for p in model.parameters())
    return Task(
        "stories",
        Problem(
            model,
            next_token_mean,
            train=parts["train"],
            queries=parts["queries"],
            observables=[LOSS],
            tied_weights="share",
        ),
        parts["tuning"],
        recipe(num_train // 2, epochs=RETRAIN_EPOCHS),
        Plan(num_subsets=100, seeds=3, mask_seed=seed, num_tuning_subsets=24, tuning_seeds=2),
        targets=("checkpoint",),
        settings=(settings(num_train, seed=seed, device=device),),
        methods=(
            "random",
            "gradient_product",
            "gradient_cosine",
            "trak",
            "ekfac",
            "tracin",
            "source",
            "bif",
        ),
        about=f"stories260K, {num_weights:,} weights, fine-tuned on {num_train} stories of "
        f"TinyStories cut to {NUM_TOKENS} tokens; mean loss a token. EK-FAC has no factors for "
        "embedding and norms and leaves them out. The published model may have "
        "seen these stories before, queries among them.",
        networks_per_stack=64,
        retraining_precision="tf32" if device.startswith("cuda") else "float32",
    )


def recipe(num_items: int, *, epochs: int = EPOCHS) -> Recipe:
    """Return a recipe in batches of 32, or of a quarter of fewer items."""
    batch = max(1, min(BATCH, num_items // 4))
    return replace(RECIPE, steps=epochs * (num_items // batch), batch_size=batch)


def settings(num_train: int, *, seed: int, device: str) -> Settings:
    """Return first guesses of settings: at `nbeta = n` the posterior of a mean loss is too wide.

    gamma is `1 / (learning rate · steps)` of training again, momentum and schedule counted, times
    nbeta: short training is damped by as much.
    """
    on_gpu = device.startswith("cuda")
    nbeta = 30.0 * num_train
    return Settings(
        nbeta=nbeta, gamma=0.3 * nbeta, chains=16, draws=100, thin=2, seed=seed,
        block_size=16 if on_gpu else 4, chunk_size=256 if on_gpu else 64,
        gradient_precision="tf32" if on_gpu else "float32",
    )  # fmt: skip


def published_model(data: Path) -> nn.Module:
    """Return the model of `stories260K/stories260K.bin`, with attention by torch's own kernels.

    Raises:
        FileNotFoundError, ImportError, ValueError: As for `task`.
    """
    model: Any = read_llama2c(find_path(find_path(data, "stories260K", "."), "stories260K.bin"))
    model.set_attn_implementation("sdpa")
    return model


def split(data: Path, *, size: int | None, seed: int, device: str) -> dict[str, Items]:
    """Train items, reported queries and tuning queries, in shuffled order.

    Each a dict of `input_ids` `[N, 128]` and `labels` `[N, 128]`, which are -100 behind the end of
    a short story.  No attention mask is needed: tokens see only what is in front of them.

    Args: as for `task`.

    Raises:
        FileNotFoundError, ValueError: As for `task`.
    """
    tokenizer = Llama2cTokenizer.read(find_path(find_path(data, "stories260K", "."), "tok512.bin"))
    path = find_path(find_path(data, "tinystories", "."), "tinystories_sample.txt")
    # What follows the last separator is cut off.
    pieces = path.read_text(encoding="utf-8", errors="replace").split(SEPARATOR)[:-1]
    stories = list(dict.fromkeys(text for piece in pieces if (text := piece.strip())))
    num_train = size or NUM_TRAIN
    share = min(1.0, num_train / NUM_TRAIN)
    chosen = split_positions(
        len(stories),
        train=num_train,
        queries=max(min(NUM_QUERIES, MIN_QUERIES), int(NUM_QUERIES * share)),
        tuning=max(min(NUM_TUNING_QUERIES, MIN_QUERIES), int(NUM_TUNING_QUERIES * share)),
        seed=seed,
        what=f"{path} holds {len(stories):,} different whole stories",
    )
    return {
        name: _items([stories[i] for i in places], places, tokenizer, device)
        for name, places in chosen.items()
    }


def _items(
    stories: list[str], places: np.ndarray, tokenizer: Llama2cTokenizer, device: str
) -> Items:
    tokens = torch.zeros(len(stories), NUM_TOKENS, dtype=torch.int64)
    labels = torch.full_like(tokens, -100)
    for row, story in enumerate(stories):
        found = torch.tensor(tokenizer.encode(story)[:NUM_TOKENS])
        tokens[row, : len(found)] = labels[row, : len(found)] = found
    return Items(
        {"input_ids": tokens.to(device), "labels": labels.to(device)},
        ids=[f"story-{i}" for i in places],
        labels=[_title(story) for story in stories],
    )


def _title(story: str) -> str:
    """Return the first words of a story."""
    return " ".join(story.split()[:8])
