"""The made-up corpus of two languages, and what is compared in it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.language import translations as t


def test_a_sentence_has_its_words_in_the_order_of_either_language():
    sentence = t.Sentence((0, 4, 8))
    assert sentence.tokens(0) == [0, 4, 8, t.END]
    assert sentence.tokens(1) == [8 + t.CONCEPTS, t.CONCEPTS, 4 + t.CONCEPTS, t.END]
    concepts, items = t._concepts([sentence, t.Sentence((1, 3, 6))], 1)
    assert concepts.tolist() == [0, 4, 1, 3] and items.tolist() == [0, 0, 1, 1]


def test_a_translation_is_compared_with_other_words_of_its_kind_and_topic():
    of_query = np.array([[0], [0]])
    # A translation, another word of its kind and topic, of its kind alone, of another kind.
    of_train = np.array([[0, 1, t.WORDS * t.KINDS, t.WORDS], [0, 1, 2, 3]])
    similar = np.array([[0.7, 0.4, 0.1, 9.0]])
    own = t._differences(similar, of_query, of_train, t._translations)
    topic = t._differences(similar, of_query, of_train, t._same_topic)
    assert own == [pytest.approx(0.3)] and topic == [pytest.approx(0.3)]
