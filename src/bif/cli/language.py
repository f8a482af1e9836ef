"""Problems from language models and files of documents, as the command line names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bif.cli.loading import load_problem
from bif.problem.columns import Tokens
from bif.sampling.settings import Settings

if TYPE_CHECKING:
    from bif.language import Document
    from bif.problem.problem import Problem


@dataclass(frozen=True)
class Language:
    """A language model and documents, in the place of FILE.py:FUNCTION."""

    model: str | None = None
    """A folder with a model of transformers, or its name on the Hugging Face hub: causal, masked,
    or a classifier of sequences."""
    train: str | None = None
    """Documents that the model was trained on: a .jsonl, .parquet or .txt file, the folder of a
    saved data set, or its name on the hub; SOURCE@SPLIT where there are several."""
    limit: int | None = None
    """Take at most so many documents of each file, from its start."""
    adapter: str | None = None
    """A folder with an adapter of peft, whose weights alone move."""
    task: Literal["causal", "masked", "classification"] | None = None
    """What the model predicts; by its configuration if left out."""
    max_length: int | None = None
    """Tokens that the model reads at once; 512 if left out, or its context if that is less."""
    long: Literal["truncate", "split"] = "truncate"
    """Documents of more tokens are cut there, or become several items."""
    append_eos: bool = False
    """End texts and completions with the end-of-sequence token."""
    reduction: Literal["sum", "mean"] = "sum"
    """A document's loss: the sum over its tokens, or their mean."""
    tokens: Tokens | None = None
    """Score every token of the train documents, of the queries, or of both, in its own column."""
    mask_seed: int = 0
    """Seed of the masks of a masked language model."""
    layers: tuple[str, ...] = ()
    """Layers whose weights move, such as 0 3-5; all if left out."""
    heads: tuple[str, ...] = ()
    """Attention heads whose weights move, LAYER.HEAD, such as 3.0 3.1."""


def pose_problem(
    target: str | None,
    language: Language,
    settings: Settings,
    *,
    query: Sequence[str],
    candidates: Sequence[str] = (),
    without_proxies: bool = False,
) -> tuple[Problem, Settings]:
    """Return the problem that the command line names, and its settings.

    The settings name the weights that move.

    Args:
        target: FILE.py:FUNCTION, or None where there is a model.
        language: Empty where there is a target.
        settings: The settings as they were given.
        query: Sources of queries, each a group named after its file; of a model only.
        candidates: Sources of documents that were not trained on, likewise.
        without_proxies: Whether the observables themselves are recorded.

    Raises:
        ValueError: Both or neither of target and model; a model without documents.
        Others: As `load_problem`, `bif.language.load_model` and `bif.language.language_problem`.
    """
    if language.model is None:
        if language != Language():
            given = sorted(n for n, v in vars(language).items() if v != getattr(Language(), n))
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{options}: of use with --model NAME only.")
        if target is None:
            raise ValueError(
                "expected FILE.py:FUNCTION, or --model NAME with --train FILE and --query FILE."
            )
        problem = load_problem(target)
        return problem.without_proxies() if without_proxies else problem, settings
    if target is not None:
        raise ValueError(
            f"{target!r} and --model {language.model} are two problems: drop one of them."
        )
    if language.train is None or not query:
        raise ValueError("--model needs documents: pass --train FILE and --query FILE.")
    from bif.language import language_problem, load_model, movable_weights, read_documents
    from bif.language.components import parse_heads, parse_layers

    # Files before the model: they are quick to read, and where most mistakes are.
    train = read_documents(language.train, limit=language.limit)
    queries, others = _read_groups(query, language.limit), _read_groups(candidates, language.limit)
    layers, heads = parse_layers(language.layers), parse_heads(language.heads)
    found = load_model(language.model, adapter=language.adapter, task=language.task)
    if language.adapter or layers or heads:
        movable = movable_weights(found.model, names=settings.movable, layers=layers, heads=heads)
        settings = replace(settings, movable=movable)
    problem = language_problem(
        found.model,
        found.tokenizer,
        train=train,
        queries=queries,
        candidates=others or None,
        task=found.task,
        max_length=language.max_length,
        long=language.long,
        append_eos=language.append_eos,
        reduction=language.reduction,
        tokens=language.tokens,
        seed=language.mask_seed,
    )
    return problem, settings


def _read_groups(sources: Sequence[str], limit: int | None) -> dict[str, list[Document]]:
    from bif.language import read_documents
    from bif.language.sources import group_names

    named = zip(group_names(sources), sources, strict=True)
    return {name: read_documents(source, limit=limit) for name, source in named}
