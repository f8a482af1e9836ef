"""Real text and a small GPT of it: documents, a BPE trained on them, and its training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bif.language import Document
from bif.losses import next_token
from bif.sampling.oracles.precision import Precision, matmul_precision
from bif.types import Batch

END = "<|endoftext|>"
_MIN_LENGTH = 160
"""Characters of the shortest document."""
_DETOKENIZE = {" @-@ ": "-", " @,@ ": ",", " @.@ ": ".", " n't": "n't", " 's": "'s"}


def documents(data: Path) -> list[Document]:
    """Return paragraphs of WikiText-2 and stories of TinyStories, each with its source."""
    wiki = []
    for part in ("valid", "test"):
        for line in (data / "wikitext-2" / f"{part}.txt").read_text(encoding="utf-8").split("\n"):
            text = line.strip()
            if len(text) >= _MIN_LENGTH and not text.startswith("="):
                for before, after in _DETOKENIZE.items():
                    text = text.replace(before, after)
                wiki.append(text)
    whole = (data / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in whole.split(END)[:-1]]  # the last is cut off
    named = {"wiki": wiki, "story": [s for s in stories if len(s) >= _MIN_LENGTH]}
    found = {
        source: [Document(text, f"{source}-{i}", source=source) for i, text in enumerate(texts)]
        for source, texts in named.items()
    }
    return _interleave(list(found.values()))


def _interleave(lists: Sequence[list[Document]]) -> list[Document]:
    """Return the documents of all lists, mixed evenly whatever their lengths."""
    places = [((i + 0.5) / len(one), d) for one in lists for i, d in enumerate(one)]
    return [d for _, d in sorted(places, key=lambda p: p[0])]


def train_tokenizer(texts: Iterable[str], *, pieces: int) -> Any:
    """Return a byte-level BPE trained on the texts, as a tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core: Any = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)


def train_(
    model: nn.Module, items: Batch, *, steps: int, batch_size: int, rate: float, seed: int,
    keep_every: int | None = None,
) -> list[nn.Module]:  # fmt: skip
    """Train by AdamW with a cosine schedule and no dropout, on the mean loss a token.

    Args:
        model: The model, on the items' device; changed in place.
        items: `input_ids` and `labels` `[N, T]`.
        steps: Number of updates.
        batch_size: Items of an update, shuffled anew in every epoch; all if there are fewer.
        rate: Highest learning rate, after a twentieth of the steps.
        seed: Seed of the order.
        keep_every: Steps after which a copy of the model is kept, and again before the first.

    Returns:
        The copies that were kept.
    """
    kept = []
    device = items["input_ids"].device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01,
        fused=device.type == "cuda",
    )  # fmt: skip
    source = torch.Generator().manual_seed(seed)
    count = len(items["input_ids"])
    size = min(batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    precision: Precision = "tf32" if device.type == "cuda" else "float32"
    with matmul_precision(precision):
        for step in range(steps):
            if keep_every and step % keep_every == 0:
                kept.append(copy.deepcopy(model))
            if len(order) < size:
                order = torch.randperm(count, generator=source)
            here, order = order[:size].to(device), order[size:]
            warm = min(1.0, (step + 1) / max(1, steps // 20))
            for group in optimizer.param_groups:
                group["lr"] = (
                    rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
                )
            batch = {name: leaf[here] for name, leaf in items.items()}
            optimizer.zero_grad(set_to_none=True)
            losses = next_token(model, batch)
            (losses.sum() / (batch["labels"][:, 1:] != -100).sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return kept


def loss_a_token(model: nn.Module, items: Batch, *, size: int = 64) -> float:
    """Return the mean loss over all tokens that count."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(items["input_ids"]), size):
            batch = {name: leaf[start : start + size] for name, leaf in items.items()}
            total += float(next_token(model, batch).double().sum())
            count += int((batch["labels"][:, 1:] != -100).sum())
    return total / count


def sample_evenly(found: Sequence[Document], count: int, *, seed: int) -> list[Document]:
    """Return documents at random, as many of each source, in their order."""
    source = np.random.default_rng(seed)
    names = list(dict.fromkeys(d.source for d in found))
    chosen: list[int] = []
    for i, name in enumerate(names):
        own = [p for p, d in enumerate(found) if d.source == name]
        share = count // len(names) + (i < count % len(names))
        chosen += source.choice(own, size=min(share, len(own)), replace=False).tolist()
    return [found[p] for p in sorted(chosen)]
