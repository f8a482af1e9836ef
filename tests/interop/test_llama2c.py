"""Checkpoints and tokenizers of llama2.c, written by the test in their binary formats."""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, vmap

from bif.interop import llama2c
from bif.interop.llama2c import Llama2cTokenizer, read_llama2c
from llama2c_files import HEADER, arrays_of, write_checkpoint, write_tokenizer

pytest.importorskip("transformers", reason="the extra `lm` is not installed")

# Logits are sums of 16 products of order 1 behind two layers in float32, whose unit is 6e-8: some
# hundred roundings of 1e-7 each.
CLOSE = 2e-5


def normalised(x, weight):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight


def rotated(x, cosines, sines):
    """Neighbouring entries turned by position; x [T, heads, head_dim]."""
    even, odd, c, s = x[..., ::2], x[..., 1::2], cosines[:, None], sines[:, None]
    return np.stack([even * c - odd * s, even * s + odd * c], axis=-1).reshape(x.shape)


def reference_logits(arrays, header, tokens):
    """run.c's forward pass, all positions at once, float64 [T, V]."""
    dim, _, layers, heads, kv_heads, _, _ = header
    a = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    length, head_dim = len(tokens), dim // heads
    angles = np.outer(np.arange(length), 10_000.0 ** (-np.arange(0, head_dim, 2) / head_dim))
    cosines, sines = np.cos(angles), np.sin(angles)
    x = a["embedding"][tokens]
    for i in range(layers):
        h = normalised(x, a["attention_norm"][i])
        q = rotated((h @ a["q"][i].T).reshape(length, heads, head_dim), cosines, sines)
        k = rotated((h @ a["k"][i].T).reshape(length, kv_heads, head_dim), cosines, sines)
        v = (h @ a["v"][i].T).reshape(length, kv_heads, head_dim)
        k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(head_dim)
        scores += np.triu(np.full((length, length), -np.inf), k=1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", shares, v).reshape(length, dim) @ a["o"][i].T
        h = normalised(x, a["mlp_norm"][i])
        gate = h @ a["gate"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ a["up"][i].T)) @ a["down"][i].T
    return normalised(x, a["norm"]) @ a.get("output", a["embedding"]).T


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().numpy()


TOKENS = [1, 7, 30, 2, 7, 7, 19, 4]


@pytest.mark.parametrize("header", [HEADER, HEADER._replace(signed_vocabulary=-40)])
def test_logits_are_those_of_the_reference(tmp_path, header):
    arrays = arrays_of(header)
    model = read_llama2c(write_checkpoint(tmp_path / "model.bin", header, arrays))
    expected = reference_logits(arrays, header, TOKENS)
    assert np.abs(logits_of(model, TOKENS) - expected).max() < CLOSE
    assert not model.training


def test_rows_that_are_not_permuted_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(llama2c, "_deinterleave_rows", lambda weight, num_heads: weight)
    arrays = arrays_of(HEADER)
    model = read_llama2c(write_checkpoint(tmp_path / "model.bin", HEADER, arrays))
    difference = np.abs(logits_of(model, TOKENS) - reference_logits(arrays, HEADER, TOKENS)).max()
    assert difference > 1000 * CLOSE


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_output_are_one_matrix_where_the_file_has_one(tmp_path, tied):
    header = HEADER if tied else HEADER._replace(signed_vocabulary=-40)
    model: Any = read_llama2c(write_checkpoint(tmp_path / "m.bin", header, arrays_of(header)))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    names = [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in names) != tied


def test_stacked_networks_agree_with_single_ones(tmp_path):
    model = read_llama2c(write_checkpoint(tmp_path / "m.bin", HEADER, arrays_of(HEADER)))
    stack = {n: torch.stack([p.detach(), 0.5 * p.detach()]) for n, p in model.named_parameters()}
    tokens = torch.tensor([TOKENS])

    def logits(leaves):
        return functional_call(model, leaves, (tokens,)).logits

    together = vmap(logits)(stack)
    for g in range(2):
        alone = logits({name: leaf[g] for name, leaf in stack.items()})
        assert (together[g] - alone).abs().max() < CLOSE


def test_reading_leaves_global_randomness_alone(tmp_path):
    path = write_checkpoint(tmp_path / "m.bin", HEADER, arrays_of(HEADER))
    before = torch.get_rng_state()
    read_llama2c(path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_missing_file_is_named_with_its_folder(tmp_path):
    for read in (read_llama2c, Llama2cTokenizer.read):
        with pytest.raises(FileNotFoundError, match=f"no file gone.bin in .*{tmp_path.name}"):
            read(tmp_path / "gone.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:10], "it has 10 bytes"),
        (lambda content: content[:-4], "expected .* cut short, or of another format"),
        (lambda content: content + b"more", "cut short, or of another format"),
        (lambda content: struct.pack("<7i", 16, 24, 0, 4, 2, 40, 12), "Export the model with"),
        (lambda content: struct.pack("<7i", 15, 24, 2, 4, 2, 40, 12), "Export the model with"),
        (lambda content: struct.pack("<7i", 16, 24, 2, 4, 0, 40, 12), "Export the model with"),
        (lambda content: b"ak42" + content, "Export the model with|another format"),
    ],
)
def test_other_files_are_refused(tmp_path, spoil, message):
    path = write_checkpoint(tmp_path / "m.bin", HEADER, arrays_of(HEADER))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_llama2c(path)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "m.bin", HEADER, arrays_of(HEADER))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"bayesian-influence\[lm\]"):
        read_llama2c(path)


class TestTokenizer:
    FIRST = 259

    def read(self, tmp_path, merged, name="tok.bin"):
        return Llama2cTokenizer.read(write_tokenizer(tmp_path / name, merged))

    def test_the_pair_of_the_highest_score_is_merged_first(self, tmp_path):
        letters = [("a", -10.0), ("b", -11.0), ("c", -12.0), (" ", -13.0)]
        bc_first = self.read(tmp_path, [*letters, ("ab", -2.0), ("bc", -1.0)])
        ab_first = self.read(tmp_path, [*letters, ("ab", -1.0), ("bc", -2.0)])
        a, c, space, ab, bc = (self.FIRST + i for i in (0, 2, 3, 4, 5))
        assert bc_first.encode("abc") == [1, space, a, bc]
        assert ab_first.encode("abc") == [1, space, ab, c]

    def test_of_equal_scores_the_first_is_merged(self, tmp_path):
        found = self.read(tmp_path, [("a", -9.0), (" ", -9.0), ("aa", -1.0)])
        a, space, aa = (self.FIRST + i for i in range(3))
        assert found.encode("aaa") == [1, space, aa, a]

    def test_merges_go_on_with_what_was_merged(self, tmp_path):
        pieces = [("a", -9.0), ("b", -9.0), (" ", -9.0), (" a", -2.0), (" ab", -3.0)]
        assert self.read(tmp_path, pieces).encode("ab ab") == [1, self.FIRST + 4, self.FIRST + 4]

    def test_a_character_without_a_piece_becomes_its_bytes(self, tmp_path):
        found = self.read(tmp_path, [("a", -1.0), (" ", -2.0)])
        assert found.encode("aé") == [1, 260, 259, 0xC3 + 3, 0xA9 + 3]
        assert found.decode(found.encode("aé – a")) == "aé – a"

    def test_a_text_comes_back_from_its_tokens(self, tmp_path):
        found = self.read(tmp_path, [("a", -9.0), (" ", -9.0), (" a", -1.0), ("aa", -2.0)])
        for text in ("a aa", " a", "", "aa  a\n", "\n"):
            assert found.decode(found.encode(text)) == text

    def test_decoding_ends_where_the_next_text_begins(self, tmp_path):
        found = self.read(tmp_path, [("a", -9.0), (" ", -9.0)])
        assert found.decode([1, 260, 259, 1, 259]) == "a"

    def test_words_merged_one_by_one_are_the_text_merged_whole(self, tmp_path):
        pieces = ["a", "b", " ", " a", "ab", "ba", " ab", "abab", "b\n", " b", "\nb"]
        generator = random.Random(0)
        scores = generator.sample(range(100), len(pieces))
        found = self.read(tmp_path, [(p, -float(s)) for p, s in zip(pieces, scores, strict=True)])
        assert not found._crosses_words
        for _ in range(50):
            text = "".join(generator.choice("aab  \né") for _ in range(30))
            assert found.encode(text) == [1, *found._merge(" " + text)]

    def test_a_piece_of_two_words_is_found(self, tmp_path):
        found = self.read(tmp_path, [("a", -9.0), (" ", -9.0), ("a ", -1.0), ("a a", -2.0)])
        assert found.encode("a a") == [1, 260, 262]

    @pytest.mark.parametrize(
        "spoil", [lambda c: c[:-1], lambda c: c + struct.pack("<fi", 0.0, -5), lambda c: c[:-3] * 2]
    )
    def test_a_broken_file_is_refused(self, tmp_path, spoil):
        path = write_tokenizer(tmp_path / "tok.bin", [("abc", -1.0)])
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(ValueError, match="no tokenizer of llama2.c"):
            Llama2cTokenizer.read(path)

    def test_too_few_pieces_are_refused(self, tmp_path):
        path = tmp_path / "tok.bin"
        path.write_bytes(struct.pack("<i", 1) + struct.pack("<fi", 0.0, 1) + b"a")
        with pytest.raises(ValueError, match="holds 1 pieces, expected at least 259"):
            Llama2cTokenizer.read(path)


DATA = os.environ.get("BIF_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="BIF_DATA names no folder with stories260K/")
def test_the_published_model_tells_the_published_story():
    place = Path(DATA or ".") / "stories260K"
    model = read_llama2c(place / "stories260K.bin")
    tokenizer = Llama2cTokenizer.read(place / "tok512.bin")
    tokens = tokenizer.encode("")
    while len(tokens) < 257:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    told = (place / "stories260K.md").read_text(encoding="utf-8").split("-t 0.0\n")[1]
    assert tokenizer.decode(tokens) == told.split("\n```")[0]
    assert (
        tokenizer.encode("Once upon a time") == tokens[: len(tokenizer.encode("Once upon a time"))]
    )
