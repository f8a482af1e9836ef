"""Tiny models of transformers and tokenizers, made here, that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from small_problems import filled

TEXTS = [
    "the cat sat on the mat",
    "a dog and a cat ran in the sun",
    "the sun is up and the dog sat",
    "cats ran",
    "the dog ate the red apple on the mat in the hot sun",
    "an apple is red",
]
CONTEXT = 24
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "[PAD]", "[MASK]", "[CLS]", "[SEP]"]


def tokenizer(*, style: str = "gpt2", **special: str | None) -> Any:
    """A byte-pair tokenizer of a few hundred pieces.

    Args:
        style: "gpt2" adds nothing, "llama" begins with <s>, "bert" has [CLS] and [SEP] around.
        special: Special tokens by name, None to leave one out.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    around = {"llama": "<s> $A", "bert": "[CLS] $A [SEP]"}.get(style)
    if around is not None:
        pairs = [(name, core.token_to_id(name)) for name in SPECIAL]
        core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=around, special_tokens=pairs
        )
    given = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if style == "bert":
        given |= {"mask_token": "[MASK]", "pad_token": "[PAD]"}
    named = {k: v for k, v in (given | special).items() if v is not None}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=CONTEXT, **named)


def model(kind: str, *, double: bool = True, **changed: Any) -> nn.Module:
    """Two layers of 16 numbers and 4 heads; float64 weights from N(0, 0.3²) by default."""
    import transformers as t

    size = {"vocab_size": 330, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {"intermediate_size": 32, "max_position_embeddings": CONTEXT}
    special = {"bos_token_id": 1, "eos_token_id": 2}
    makers = {
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=330, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=4,
                         **special, **changed)),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**size, **wide, **special, num_key_value_heads=2, **changed)),
        "neox": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(**size, **wide, **special, **changed)),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**size, **wide, **changed)),
        "classifier": lambda: t.BertForSequenceClassification(
            t.BertConfig(**size, **wide, pad_token_id=3, id2label={0: "no", 1: "yes"},
                         label2id={"no": 0, "yes": 1}, **changed)),
        "gpt2 classifier": lambda: t.GPT2ForSequenceClassification(
            t.GPT2Config(vocab_size=330, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=4,
                         id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
                         **special, **changed)),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        made = makers[kind]()
        return filled(made, scale=0.3).eval() if double else made.eval()


def written(folder: Path, made: nn.Module, tokens: Any) -> Path:
    """A folder as `save_pretrained` leaves it."""
    made.save_pretrained(folder)  # type: ignore[operator]
    tokens.save_pretrained(folder)
    return folder
