"""Documents as tokens: what counts, what is cut, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bif.language import Document
from bif.language.passages import tokenize_documents
from bif.language.rows import RowMaker
from language_cases import CHAT, TEXTS, tokenizer

pytest.importorskip("transformers", reason="the extra `lm` is not installed")


def documents(*texts, **fields):
    return [Document(text, f"d{i}", **fields) for i, text in enumerate(texts)]


def counted_text(passage, tokens):
    ids = [t for t, c in zip(passage.tokens, passage.counted, strict=True) if c]
    return tokens.decode(ids)


@pytest.fixture(scope="module")
def gpt2():
    return tokenizer(chat_template=CHAT)


@pytest.fixture(scope="module")
def llama():
    return tokenizer(style="llama", chat_template=CHAT)


@pytest.fixture(scope="module")
def bert():
    return tokenizer(style="bert")


class TestWhatCounts:
    def test_of_a_text_every_token_that_follows_another_counts(self, gpt2, llama):
        for tokens, front in ((gpt2, 0), (llama, 1)):
            (one,), said = tokenize_documents(documents(TEXTS[0]), tokens, max_length=24)
            ids = tokens(TEXTS[0], add_special_tokens=False)["input_ids"]
            assert list(one.tokens) == [1] * front + ids
            assert one.counted == (False, *[True] * (len(one.tokens) - 1))
            assert said == [] and not one.is_part

    def test_of_prompt_and_completion_the_completion_counts(self, gpt2, llama):
        for tokens in (gpt2, llama):
            for prompt, completion in (("the cat", " sat on"), ("the ca", "t sat"), ("x", "y")):
                (one,), _ = tokenize_documents(
                    documents(completion, prompt=prompt), tokens, max_length=24
                )
                # A token on the border counts, so what counts may begin before the completion.
                assert counted_text(one, tokens).endswith(completion)
                assert len(counted_text(one, tokens)) < len(prompt + completion)

    def test_append_eos_counts_and_is_cut_off_with_the_rest(self, gpt2):
        whole, cut = (
            tokenize_documents(documents(TEXTS[0]), gpt2, max_length=n, append_eos=True)[0][0]
            for n in (24, 3)
        )
        assert whole.tokens[-1] == 2 and whole.counted[-1]
        assert 2 not in cut.tokens and len(cut.tokens) == 3

    def test_a_beginning_of_sequence_that_the_text_holds_is_not_doubled(self, llama):
        cases: Any = (
            ({"text": "<s>" + TEXTS[0]}, {"text": TEXTS[0]}),
            ({"prompt": "<s>the cat", "text": " sat on"}, {"prompt": "the cat", "text": " sat on"}),
            ({"prompt": "<s>", "text": TEXTS[1]}, {"text": TEXTS[1]}),
        )
        for given, expected in cases:
            (one,), said = tokenize_documents([Document(id="d", **given)], llama, max_length=24)
            (other,), nothing = tokenize_documents(
                [Document(id="d", **expected)], llama, max_length=24
            )
            assert (one.tokens, one.counted) == (other.tokens, other.counted)
            assert said == [
                "1 of 1 documents begin with <s>, which the tokenizer puts before a text: it "
                "stands there once"
            ]
            assert nothing == []

    def test_ends_and_special_tokens_of_masked_models_are_not_doubled(self, gpt2, bert):
        cases: Any = (
            (gpt2, TEXTS[0] + "</s>", {"append_eos": True}),
            (bert, f"[CLS]{TEXTS[0]}[SEP]", {"task": "masked"}),
        )
        for tokens, text, given in cases:
            (one,), _ = tokenize_documents(documents(text), tokens, max_length=24, **given)
            (other,), _ = tokenize_documents(documents(TEXTS[0]), tokens, max_length=24, **given)
            assert (one.tokens, one.counted) == (other.tokens, other.counted)

    def test_of_a_conversation_what_the_assistant_says_counts(self, gpt2, llama):
        turns = [
            {"role": "user", "content": "the sun?"},
            {"role": "assistant", "content": "is up"},
            {"role": "user", "content": "the cat?"},
            {"role": "assistant", "content": "ran"},
        ]
        for tokens in (gpt2, llama):
            (one,), _ = tokenize_documents(
                documents("", messages=tuple(turns)), tokens, max_length=99
            )
            whole = tokens.apply_chat_template(turns, tokenize=False)
            assert list(one.tokens) == tokens(whole, add_special_tokens=False)["input_ids"]
            assert counted_text(one, tokens) == "is up</s>ran</s>"

    def test_no_special_token_of_a_masked_model_counts(self, bert):
        (one,), _ = tokenize_documents(documents(TEXTS[0]), bert, task="masked", max_length=24)
        assert bert.convert_ids_to_tokens([one.tokens[0], one.tokens[-1]]) == ["[CLS]", "[SEP]"]
        assert one.counted == (False, *[True] * (len(one.tokens) - 2), False)


class TestLongDocuments:
    def test_long_documents_are_cut_counted_and_said(self, gpt2):
        found, said = tokenize_documents(documents(*TEXTS), gpt2, max_length=5)
        lengths = [len(gpt2(text)["input_ids"]) for text in TEXTS]
        assert [len(p.tokens) for p in found] == [min(5, n) for n in lengths]
        assert [p.is_part for p in found] == [n > 5 for n in lengths]
        assert said == [
            f"{sum(n > 5 for n in lengths)} of 6 documents are longer than 5 tokens and were cut "
            f"there: {sum(max(0, n - 5) for n in lengths)} of {sum(lengths)} tokens are left out"
        ]

    @pytest.mark.parametrize("length", [2, 3, 4, 7])
    @pytest.mark.parametrize("style", ["gpt2", "llama"])
    def test_split_every_token_counts_once(self, style, length):
        tokens = tokenizer(style=style)
        if style == "llama" and length == 2:
            length = 5
        (whole,), _ = tokenize_documents(documents(TEXTS[4]), tokens, max_length=99)
        parts, said = tokenize_documents(
            documents(TEXTS[4]), tokens, max_length=length, long="split"
        )
        counted = [t for p in parts for t, c in zip(p.tokens, p.counted, strict=True) if c]
        assert counted == [t for t, c in zip(whole.tokens, whole.counted, strict=True) if c]
        assert [p.id for p in parts] == [f"d0/{i}" for i in range(len(parts))]
        assert all(len(p.tokens) <= length for p in parts)
        assert said == [f"1 of 1 documents are longer than {length} tokens and were split: "
                        f"{len(parts)} passages in all"]  # fmt: skip

    def test_split_parts_of_a_prompt_are_left_out(self, gpt2):
        found, _ = tokenize_documents(
            documents(" ran", prompt=TEXTS[4]), gpt2, max_length=4, long="split"
        )
        assert [counted_text(p, gpt2) for p in found] == [" ran"]

    def test_masked_parts_keep_their_special_tokens(self, bert):
        parts, _ = tokenize_documents(
            documents(TEXTS[4]), bert, task="masked", max_length=6, long="split"
        )
        for part in parts:
            assert (part.tokens[0], part.tokens[-1]) == (5, 6) and len(part.tokens) <= 6


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "length"),
        [({"text": "c"}, 24), ({"text": " ran", "prompt": TEXTS[4]}, 5)],
        ids=["one token", "a prompt that fills the passage"],
    )
    def test_a_document_without_a_token_that_counts_is_refused(self, gpt2, given, length):
        document = Document(id="x", place="a.jsonl, line 3", **given)
        with pytest.raises(ValueError, match=r"document 'x' \(a.jsonl, line 3\) has no token"):
            tokenize_documents([document], gpt2, max_length=length)

    def test_a_max_length_without_room_is_refused(self, gpt2, bert):
        with pytest.raises(ValueError, match="max_length is 1: expected at least 2"):
            tokenize_documents(documents("cats ran"), gpt2, max_length=1)
        with pytest.raises(ValueError, match="max_length is 3: expected at least 4"):
            tokenize_documents(documents("cats ran"), bert, task="masked", max_length=3)

    def test_append_eos_without_such_a_token_is_refused(self):
        with pytest.raises(ValueError, match="append_eos needs an end-of-sequence token"):
            tokenize_documents(
                documents("a cat"), tokenizer(eos_token=None), max_length=9, append_eos=True
            )

    def test_messages_without_a_fitting_chat_template_are_refused(self, gpt2):
        turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
        chat = documents("", messages=turns)
        with pytest.raises(ValueError, match="d0.*has messages, and the tokenizer has no chat"):
            tokenize_documents(chat, tokenizer(), max_length=9)
        refusing = tokenizer(chat_template="{{ raise_exception('only system') }}")
        with pytest.raises(ValueError, match="the chat template refuses the messages: only system"):
            tokenize_documents(chat, refusing, max_length=9)
        moody = tokenizer(chat_template="{{ messages|length }}" + CHAT)
        with pytest.raises(ValueError, match="renders turn 1 otherwise as the conversation"):
            tokenize_documents(chat, moody, max_length=9)


class TestRows:
    def test_labels_are_the_tokens_that_count_and_padding_is_nothing(self, gpt2):
        found, _ = tokenize_documents(documents(TEXTS[0], "cats ran"), gpt2, max_length=24)
        items = RowMaker(gpt2, "causal", {}).items(found)
        ids, labels = items.data["input_ids"], items.data["labels"]
        for row, passage in enumerate(found):
            length = len(passage.tokens)
            assert ids[row, :length].tolist() == list(passage.tokens)
            assert (ids[row, length:] == 2).all()  # without a padding token: </s>
            flags = torch.tensor(passage.counted)
            assert torch.equal(labels[row, :length][flags], ids[row, :length][flags])
            assert int((labels[row] != -100).sum()) == int(flags.sum())
        assert items.first(1).keys() == {"input_ids", "labels"}

    def test_texts_tokens_and_sources_are_kept(self, gpt2):
        given = documents("the cat sat on the mat", source="books")
        whole, cut = (tokenize_documents(given, gpt2, max_length=n)[0] for n in (24, 2))
        items = RowMaker(gpt2, "causal", {}).items(whole)
        assert items.labels is not None and items.labels.tolist() == ["the cat sat on the mat"]
        assert items.about["source"].tolist() == ["books"]
        assert items.about["text"].tolist() == ["the cat sat on the mat"]
        assert items.tokens is not None
        pieces = items.tokens[0]
        assert "".join(pieces) == "the cat sat on the mat" and len(pieces) == len(whole[0].tokens)
        assert RowMaker(gpt2, "causal", {}).items(cut).about["text"].tolist() == ["the cat"]

    def test_masks_depend_on_seed_and_id_alone(self, bert):
        found, _ = tokenize_documents(documents(*TEXTS), bert, task="masked", max_length=24)
        one, same, other = (
            RowMaker(bert, "masked", {}, seed).items(p).data
            for p, seed in ((found, 0), (found[1:], 0), (found, 1))
        )
        assert torch.equal(one["input_ids"][1:], same["input_ids"])
        assert not torch.equal(one["input_ids"], other["input_ids"])
        masked = one["input_ids"] == bert.mask_token_id
        assert torch.equal(masked, one["labels"] != -100)
        for row, passage in enumerate(found):
            length = len(passage.tokens)
            assert int(masked[row].sum()) == max(1, round(0.15 * (length - 2)))
            assert not masked[row, [0, length - 1]].any()
            where = masked[row, :length]
            assert torch.equal(
                one["labels"][row, :length][where], torch.tensor(passage.tokens)[where]
            )
            assert one["attention_mask"][row].tolist() == [1] * length + [0] * (
                masked.shape[1] - length
            )

    def test_a_masked_model_needs_a_mask_token(self, gpt2):
        with pytest.raises(ValueError, match="the tokenizer has no mask token"):
            RowMaker(gpt2, "masked", {})

    def test_labels_of_classes_are_names_or_numbers(self, bert):
        classes = {"no": 0, "yes": 1}
        given = [Document(TEXTS[0], f"{label}", label=label) for label in ("yes", 0, "1")]
        found, _ = tokenize_documents(given[:2], bert, task="classification", max_length=24)
        items = RowMaker(bert, "classification", classes).items(found)
        assert items.data["label"].tolist() == [1, 0] and items.labels is not None
        assert items.labels.tolist() == ["yes", "no"]
        for document, message in (
            (given[2], "has the label '1': the classifier knows 'no' .0., 'yes' .1."),
            (Document(TEXTS[0], "x"), "document 'x' has no label"),
            (Document(TEXTS[0], "x", label=2), "has the label 2"),
        ):
            found, _ = tokenize_documents([document], bert, task="classification", max_length=24)
            with pytest.raises(ValueError, match=message):
                RowMaker(bert, "classification", classes).items(found)
