"""Models and tokenizers of transformers, with adapters of peft, as they are sampled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn

from bif.extras import needs_extra
from bif.language.passages import Task
from bif.language.rows import padding_token
from bif.problem.literals import require_literal

_ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class LanguageModel:
    """A model, its tokenizer, and what it predicts.

    Attributes:
        model: Float32 or wider, in evaluation mode; with an adapter peft's `PeftModel`.
        tokenizer: The tokenizer of transformers.
        task: The task that the model was trained for.
    """

    model: nn.Module
    tokenizer: Any
    task: Task


def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    task: Task | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a model with `AutoModelForCausalLM`, `…MaskedLM` or `…SequenceClassification`.

    Weights are safetensors only, for pickles can run code; no code of the model's own is run
    either.

    Args:
        name: A folder written by `save_pretrained`, or a name on the Hugging Face hub.
        adapter: A folder written by peft.
        task: What the model predicts; read from its configuration by default.
        revision: Branch, tag or commit of the model's repository, such as a step of its training.

    Raises:
        FileNotFoundError: No such model, adapter, or no safetensors in it.
        ImportError: The extra `lm` is not installed.
        ValueError: A task that cannot be told, or is none of the three; a regression or
            multi-label head; an adapter that adds tokens.
    """
    transformers = _import_transformers()
    if task is not None:
        require_literal("task", task, Task)
    _refuse_missing_folder(name, "model")
    given: dict[str, Any] = {"trust_remote_code": False}
    if revision is not None:
        given["revision"] = revision
    try:
        config = transformers.AutoConfig.from_pretrained(name, **given)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **given)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no model with a tokenizer at {str(name)!r}: expected a folder written by "
            f"save_pretrained, or a name on the hub. {_first_line(error)}"
        ) from error
    chosen = task or _task_of_config(config, name)
    loader = {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
        "classification": transformers.AutoModelForSequenceClassification,
    }[chosen]
    wide = torch.promote_types(config.dtype or torch.float32, torch.float32)
    try:
        with _no_progress_bars():
            model = loader.from_pretrained(name, dtype=wide, use_safetensors=True, **given)
    except OSError as error:
        raise FileNotFoundError(
            f"no safetensors of {str(name)!r} could be read: {_first_line(error)} Pickled weights "
            "can run code and are refused; load them where you trust them, and write them with "
            "model.save_pretrained(FOLDER)."
        ) from error
    if chosen == "classification":
        _refuse_other_heads(model.config)
        model.config.pad_token_id = padding_token(tokenizer)  # decoders look for the last token
    model.config.use_cache = False
    if adapter is not None:
        model = _load_adapter(model, adapter)
    return LanguageModel(model.eval(), tokenizer, chosen)


def task_of(model: nn.Module) -> Task:
    """Return the task of a model of transformers, known by its class.

    Raises:
        ValueError: It cannot be told.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return _task_of_architecture(type(base).__name__)


def context_length(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the most tokens that model and tokenizer take at once; None if unknown."""
    config = cast(Any, model).config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its like count positions from the padding token on.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            positions = module.num_embeddings - taken
    limits = [positions, getattr(tokenizer, "model_max_length", None)]
    known = [int(limit) for limit in limits if limit and 0 < limit < 10**9]  # else "very large"
    return min(known) if known else None


def _task_of_config(config: Any, name: str | Path) -> Task:
    for architecture in config.architectures or []:
        return _task_of_architecture(architecture)
    raise ValueError(f"the configuration of {str(name)!r} names no architecture: pass task.")


def _task_of_architecture(architecture: str) -> Task:
    from transformers.models.auto import modeling_auto as auto

    for task, names in (
        ("causal", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("masked", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        ("classification", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ):
        if architecture in names.values():
            return cast(Task, task)
    raise ValueError(
        f"a {architecture} is neither a causal nor a masked language model nor a classifier of "
        f"sequences: pass task, one of {', '.join(get_args(Task))}."
    )


def _refuse_other_heads(config: Any) -> None:
    if config.num_labels < 2 or config.problem_type not in (
        None,
        "single_label_classification",
    ):
        raise ValueError(
            f"the classifier has {config.num_labels} outputs for {config.problem_type}: expected "
            "one of several classes a text. Write a loss of your own and use bif.Problem."
        )


def _load_adapter(model: nn.Module, adapter: str | Path) -> nn.Module:
    with needs_extra("lm", "adapters are loaded by peft"):
        import peft
    _refuse_missing_folder(adapter, "adapter")
    if Path(adapter).is_dir() and not (Path(adapter) / _ADAPTER_FILE).is_file():
        raise FileNotFoundError(
            f"no {_ADAPTER_FILE} in {str(adapter)!r}: expected a folder written by peft. Pickled "
            "weights can run code and are refused."
        )
    try:
        if not peft.PeftConfig.from_pretrained(str(adapter)).is_prompt_learning:
            return peft.PeftModel.from_pretrained(cast(Any, model), str(adapter), is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the adapter {str(adapter)!r} does not fit the model: {_first_line(error)}"
        ) from error
    raise ValueError(
        f"the adapter {str(adapter)!r} adds tokens in front of the text: expected one that changes "
        "layers, such as LoRA."
    )


def _refuse_missing_folder(name: str | Path, what: str) -> None:
    """Raise where a path has no folder, before it is looked for on the hub."""
    text = str(name)
    no_hub_name = isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if no_hub_name and not Path(name).is_dir():
        raise FileNotFoundError(f"no {what} folder {text!r}: expected a path that exists.")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _import_transformers() -> Any:
    with needs_extra("lm", "language models are loaded by transformers"):
        import transformers
    return transformers
