"""The pure parts of `benchmarks.language`, and the whole on a corpus of a few lines."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra `lm` is not installed")

from benchmarks.language import __main__ as language
from benchmarks.language import corpus, paraphrases
from benchmarks.language.word_pairs import (
    bootstrap,
    class_of,
    matched_pairs,
    p_value,
    stem,
    tokens_of,
)
from benchmarks.scaling.neox import Shape, network


def words(text, item=0, first=0):
    """Tokens of a text whose pieces are words with the space before them."""
    pieces = [p for p in re.split(r"(?= )|(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)", text) if p]
    return tokens_of(pieces, [first + i for i in range(len(pieces))], item)


def test_tokens_are_the_beginnings_of_words_with_a_column():
    found = tokens_of(["The", " cat", "s", " (", "cats", ")", " The"], [-1, 0, 1, 2, 3, 4, 5], 7)
    # "s" goes on with a word, and the first piece has no column.
    assert [(t.word, t.column) for t in found] == [
        ("cats", 0), ("(", 2), ("cats", 3), (")", 4), ("The", 5)
    ]  # fmt: skip
    assert [t.is_again for t in found] == [False, False, True, False, True]
    assert (found[1].opens, found[3].closes) == ("(", "(") and found[0].item == 7
    # Capitalised at the beginning of a sentence is no name; quotes open and close by turns.
    quotes = tokens_of(['"', "Hi", '"', " said", " Ann", ".", " Bob", " ran"], list(range(8)), 0)
    assert [t.word for t in quotes if t.is_name] == ["Ann"]
    assert (quotes[0].opens, quotes[2].closes) == ('"', '"') and not quotes[0].closes


@pytest.mark.parametrize(
    ("one", "other"), [("walks", "walked"), ("Dog", "dogs"), ("making", "makes"), ("Ann", "Ann's")]
)
def test_variants_share_a_stem(one, other):
    assert stem(one) == stem(other)


def test_pairs_have_one_class_or_none():
    query = words('he saw Ann and Ann said " the dog ( big ) " ran')
    train = words('she met Tom and Tom said " his dogs ( huge ) " and the dog', item=1)

    def of(a, b, which=0):
        one = [t for t in query if t.word == a][which]
        return [class_of(one, t) for t in train if t.word == b]

    assert of("dog", "dog") == ["same word"] and of("dog", "dogs") == ["variant"]
    assert of("(", ")") == ["quotes and brackets"] and of("(", "(") == [""]
    assert of('"', '"') == ["", "quotes and brackets"]  # opening: with the closing one
    assert of("Ann", "Tom", which=1) == ["", "names again"] and of("Ann", "Tom") == ["", ""]
    assert of("big", "huge") == [""] and of("he", "she") == [""]


def test_controls_are_of_the_same_text_and_as_frequent():
    query = words("once a dog ran")
    texts = ["one dog sat by one cat", "two dogs and a hen met a dog"]
    train, first = [], 0
    for i, text in enumerate(texts):
        own = words(text, item=i, first=first)
        first += len(own)
        train += own
    by_column = {t.column: t for t in train}
    pairs = matched_pairs(query, train, most=10, seed=0)
    assert {by_column[p.train].word for p in pairs["same word"]} == {"dog"}
    assert {by_column[p.train].word for p in pairs["variant"]} == {"dogs"}
    assert not pairs["names again"]
    counts = {w: [t.word for t in train].count(w) for w in {t.word for t in train}}
    for found in pairs.values():
        for pair in found:
            own, control = by_column[pair.train], by_column[pair.control]
            assert own.item == control.item and own.word != control.word
            assert max(counts[own.word], counts[control.word]) <= 2 * min(
                counts[own.word], counts[control.word]
            )
    assert pairs == matched_pairs(query, train, most=10, seed=0)
    assert len(matched_pairs(query, train, most=1, seed=0)["same word"]) == 1


def test_the_bootstrap_covers_the_mean_and_is_as_wide_as_theory():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    found = bootstrap(values.tolist(), seed=0, resamples=4000)
    assert found.mean == pytest.approx(values.mean()) and found.texts == 400
    width = 2 * 1.96 * values.std() / 20
    # Percentiles of 4,000 resamples: 3 % of the width each.
    assert found.ci_high - found.ci_low == pytest.approx(width, rel=0.1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([], seed=0)


def test_a_p_value_counts_the_permutations_that_are_as_far_from_zero():
    assert p_value(0.5, [0.1, -0.5, 0.4, 0.6]) == pytest.approx(3 / 5)
    assert p_value(-2.0, [0.1, -0.5, 0.4]) == pytest.approx(1 / 4)


def test_a_pairs_difference_is_that_of_its_columns():
    difference, similar = language._difference, np.arange(12.0).reshape(3, 4) ** 2
    pairs = np.array([[0, 3, 1], [2, 0, 2]])
    assert difference(similar, pairs) == pytest.approx(((9 - 1) + (64 - 100)) / 2)
    order = np.array([1, 0, 3, 2])
    assert difference(similar, pairs, order) == pytest.approx(((4 - 0) + (81 - 121)) / 2)


def test_a_paraphrase_has_other_words_names_and_order_and_is_always_the_same():
    text = "One day, Lily saw a big house. She told Lily it was small. The end."
    other = paraphrases.paraphrase(text)
    assert other == "She told Nora it was little. One day, Nora noticed a large home. The end."
    assert paraphrases.paraphrase(text) == other
    assert paraphrases.shared_words(text, text) == 1 and paraphrases.shared_words(text, other) == 0


def test_ranks_count_from_the_most_helpful():
    scores = np.array([[-3.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    assert paraphrases.ranks(scores, [0, 1, 2]).tolist() == [1, 2.5, 3]


@pytest.fixture
def corpus_folder(tmp_path):
    """A corpus in the files' formats: 60 paragraphs and 60 stories."""
    source = np.random.default_rng(0)
    nouns, verbs = ["dog", "cat", "bird", "fox", "frog"], ["saw", "met", "heard", "liked"]

    def text(name):
        parts = [
            f"{name} {source.choice(verbs)} a big {source.choice(nouns)} and then {name} said "
            f'" the {source.choice(nouns)} is small " .'
            for _ in range(5)
        ]
        return " ".join(parts)

    wiki, stories = tmp_path / "wikitext-2", tmp_path / "tinystories"
    wiki.mkdir()
    stories.mkdir()
    lines = [" = A heading = ", " too short ", *(f" {text('Ann')} @,@ more " for _ in range(30))]
    for part in ("valid", "test"):
        (wiki / f"{part}.txt").write_text("\n".join(lines))
    told = [text("Tom") for _ in range(60)]
    (stories / "tinystories_sample.txt").write_text("\n<|endoftext|>\n".join([*told, "cut off"]))
    return tmp_path


def test_documents_are_paragraphs_and_whole_stories_by_turns(corpus_folder):
    found = corpus.documents(corpus_folder)
    assert len(found) == 120 and [d.source for d in found[:4]].count("wiki") == 2
    assert all("@" not in d.text and "=" not in d.text for d in found)
    assert not any(d.text == "cut off" for d in found)
    some = corpus.sample_evenly(found, 7, seed=0)
    assert [d.source for d in some].count("wiki") in (3, 4) and len({d.id for d in some}) == 7
    assert some == corpus.sample_evenly(found, 7, seed=0)


def test_training_lowers_the_loss_and_depends_on_the_seed_alone():
    ids = torch.randint(20, (16, 12), generator=torch.Generator().manual_seed(0))
    items = {"input_ids": ids, "labels": ids.clone()}

    def small_gpt():
        return network(Shape("GPT", 1, 32, 1, 20), length=12, seed=1, device="cpu",
                       dtype=torch.float32)  # fmt: skip

    def after(seed, steps=25):
        model = small_gpt()
        torch.manual_seed(steps)
        corpus.train_(model, items, steps=steps, batch_size=4, rate=0.01, seed=seed)
        return model, corpus.loss_a_token(model, items, size=5)

    before = corpus.loss_a_token(small_gpt(), items)
    (one, low), (two, _), (other, _) = after(0), after(0), after(1)
    assert low < before - 0.5
    weights = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_benchmark_trains_attributes_and_writes_rows(monkeypatch, tmp_path, corpus_folder):
    options = (
        "language.py --tiny --only tokens planted --steps 5 --draws 6 --width 16 "
        "--layers 1 --pieces 300 --length 48 --token-items 6 --token-queries 3 --planted 2 "
        "--passages 6"
    ).split()
    folders = ["--data", str(corpus_folder), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*options, *folders])
    language.main()
    (file,) = (tmp_path / "out").glob("language-*.json")
    content = json.loads(file.read_text())
    assert content["about"]["gap"] == pytest.approx(
        content["about"]["held_out_loss"] - content["about"]["train_loss"]
    )
    by_part = {part: [r for r in content["rows"] if r["part"] == part] for part in language.PARTS}
    assert {r["pairs"] for r in by_part["tokens"]} >= {"same word", "names again"}
    assert {r["columns"] for r in by_part["tokens"]} == {"scores", "shuffled"}
    assert all(r["ci_low"] <= r["minus_matched"] <= r["ci_high"] for r in by_part["tokens"])
    assert {r["permutations"] for r in by_part["tokens"] if r["columns"] == "shuffled"} == {20}
    assert all(1 / 21 <= r["p_value"] <= 1 for r in by_part["tokens"] if "p_value" in r)
    assert {r["method"] for r in by_part["planted"]} >= {"bif", "gradient_product"}
    assert all(1 <= r["median_rank"] <= 6 for r in by_part["planted"])
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit):
        language.parse_arguments(["--out", "anywhere"])
