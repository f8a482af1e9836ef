"""Checkpoints and tokenizers of llama2.c, as transformers' Llama and as pieces to merge.

Source: github.com/karpathy/llama2.c, `run.c` and `export.py` (the first format, `version0`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bif.extras import needs_extra
from bif.interop.scores import parent_and_name

_BOS, _FIRST_BYTE = 1, 3
_THETA, _EPSILON = 10_000.0, 1e-5
"""Base of the rotary positions, and epsilon of RMSNorm: constants of run.c."""


class _Header(NamedTuple):
    """The first seven int32 of a checkpoint.

    A negative vocabulary says that the output layer is a matrix of its own.
    """

    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    signed_vocabulary: int
    max_tokens: int

    @property
    def vocabulary(self) -> int:
        return abs(self.signed_vocabulary)

    @property
    def is_tied(self) -> bool:
        return self.signed_vocabulary > 0

    @property
    def kv_dim(self) -> int:
        return self.dim // self.num_heads * self.num_kv_heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the float32 arrays that follow, in their order."""
        layers, dim, hidden, kv_dim = self.num_layers, self.dim, self.hidden_dim, self.kv_dim
        table = (self.max_tokens, dim // self.num_heads // 2)
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, dim),
            "attention_norm": (layers, dim),
            "q": (layers, dim, dim),
            "k": (layers, kv_dim, dim),
            "v": (layers, kv_dim, dim),
            "o": (layers, dim, dim),
            "mlp_norm": (layers, dim),
            "gate": (layers, hidden, dim),
            "down": (layers, dim, hidden),
            "up": (layers, hidden, dim),
            "norm": (dim,),
            "cosines": table,
            "sines": table,
        }
        return shapes if self.is_tied else {**shapes, "output": (self.vocabulary, dim)}


def read_llama2c(path: str | Path) -> nn.Module:
    """Return the network of a llama2.c checkpoint as transformers' `LlamaForCausalLM`, float32.

    llama2.c rotates neighbouring entries `(2j, 2j + 1)` of queries and keys by position,
    transformers entries `(j, j + half)`: rows of their weights are permuted, which changes no
    logit.  Where the checkpoint has one matrix for embedding and output, so has the network.
    Attention is written out ("eager"), in operations that `torch.func.vmap` takes as they are.

    Args:
        path: The `.bin` file; a path or fsspec URL.

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: transformers is not installed.
        ValueError: The file is no such checkpoint.
    """
    content = _read_bytes(path)
    header = _parse_header(content, path)
    arrays = _parse_arrays(content, header, path)
    model = _new_model(header)
    state = {name: torch.from_numpy(array) for name, array in _rename_weights(arrays, header)}
    expected = set(dict(model.named_parameters()))
    assert set(state) == expected, sorted(set(state) ^ expected)
    model.load_state_dict(state, strict=False)  # a shared matrix has a second name there
    return model.eval()


@dataclass(frozen=True)
class Llama2cTokenizer:
    """Byte-pair merges by score, as run.c does them.

    Attributes:
        pieces: The vocabulary; 0 is unknown, 1 begins a text, 3 … 258 are the bytes.
        scores: The score of each piece: the pair of the highest score is merged first.
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]

    @classmethod
    def read(cls, path: str | Path) -> Llama2cTokenizer:
        """Return the tokenizer of a `.bin` file; a path or fsspec URL.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no such tokenizer.
        """
        content = _read_bytes(path)
        pieces, scores = [], []
        place = 4  # behind the length of the longest piece
        try:
            while place < len(content):
                score, length = struct.unpack_from("<fi", content, place)
                place += 8 + length
                if length < 0 or place > len(content):
                    raise struct.error(f"piece {len(pieces)} of {length} bytes does not fit in")
                pieces.append(content[place - length : place])
                scores.append(score)
        except struct.error as error:
            raise ValueError(f"{path} is no tokenizer of llama2.c: {error}.") from error
        if len(pieces) < _FIRST_BYTE + 256:
            raise ValueError(
                f"{path} is no tokenizer of llama2.c: it holds {len(pieces)} pieces, expected at "
                f"least {_FIRST_BYTE + 256}, of which 256 stand for bytes."
            )
        return cls(tuple(pieces), tuple(scores))

    def encode(self, text: str) -> list[int]:
        """Return token ids of a text: 1 in front, then those of a space and the text."""
        if not text:
            return [_BOS]
        # No piece has a space behind its first byte, so no merge crosses the start of a word, and
        # words may be merged one by one.
        whole = " " + text
        words = [whole] if self._crosses_words else re.findall(" [^ ]*", whole)
        return [_BOS, *(token for word in words for token in self._cached_merge(word))]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids; up to the first token 1 that is not in front."""
        parts = []
        for place, token in enumerate(tokens):
            if token == _BOS:
                if place == 0:
                    continue
                break
            piece = self.pieces[token]
            if _FIRST_BYTE <= token < _FIRST_BYTE + 256:
                piece = bytes([token - _FIRST_BYTE])
            is_first = place > 0 and tokens[place - 1] == _BOS
            parts.append(piece.removeprefix(b" ") if is_first else piece)
        return b"".join(parts).decode("utf-8", errors="replace")

    @cached_property
    def _token_ids(self) -> Mapping[bytes, int]:
        return {piece: place for place, piece in reversed(list(enumerate(self.pieces)))}

    @cached_property
    def _crosses_words(self) -> bool:
        return any(b" " in piece[1:] for piece in self.pieces)

    @cached_property
    def _cached_merge(self) -> Any:
        return cache(self._merge)

    def _merge(self, text: str) -> list[int]:
        """Return the tokens of characters, or of their bytes, merged pair by pair."""
        tokens: list[int] = []
        for character in text:
            encoded = character.encode()
            known = self._token_ids.get(encoded)
            tokens += [known] if known is not None else [b + _FIRST_BYTE for b in encoded]
        while True:
            best, where = None, -1
            for i in range(len(tokens) - 1):
                pair = self._token_ids.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]])
                if pair is not None and (best is None or self.scores[pair] > self.scores[best]):
                    best, where = pair, i
            if best is None:
                return tokens
            tokens[where : where + 2] = [best]


def _read_bytes(path: str | Path) -> bytes:
    folder, name = parent_and_name(path)
    if not folder.is_file(name):
        raise FileNotFoundError(f"no file {name} in {folder}: pass a file of llama2.c.")
    return folder.read(name)


def _parse_header(content: bytes, path: str | Path) -> _Header:
    if len(content) < 28:
        raise ValueError(f"{path} is no checkpoint of llama2.c: it has {len(content)} bytes.")
    header = _Header(*struct.unpack_from("<7i", content))
    positive = min(header.vocabulary, *header[:5], header.max_tokens) > 0
    if (
        not positive
        or header.dim % (2 * header.num_heads)
        or header.num_heads % header.num_kv_heads
    ):
        raise ValueError(
            f"{path} is no checkpoint of llama2.c in its first format: it begins with {header}. "
            "Export the model with version 0."
        )
    return header


def _parse_arrays(content: bytes, header: _Header, path: str | Path) -> dict[str, np.ndarray]:
    shapes = header.shapes()
    expected = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(content) != expected:
        raise ValueError(
            f"{path} has {len(content):,} bytes; expected {expected:,} of a checkpoint of llama2.c "
            f"with {header}: cut short, or of another format."
        )
    place, arrays = 28, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        found = np.frombuffer(content, dtype="<f4", count=count, offset=place).reshape(shape)
        arrays[name] = found.astype(np.float32)  # a copy that may be written to
        place += 4 * count
    return arrays


def _new_model(header: _Header) -> Any:
    """Return a model of these sizes, to be filled."""
    with needs_extra("lm", "checkpoints of llama2.c are loaded into transformers' Llama"):
        from transformers import LlamaConfig, LlamaForCausalLM
    options: dict[str, Any] = {"attn_implementation": "eager"}  # not in transformers' own types
    config = LlamaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_kv_heads,
        max_position_embeddings=header.max_tokens,
        rms_norm_eps=_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=header.is_tied,
        bos_token_id=_BOS,
        eos_token_id=2,
        use_cache=False,
        **options,
    )
    with torch.random.fork_rng(devices=[]):  # weights that are replaced at once
        return LlamaForCausalLM(config).float()


def _rename_weights(
    arrays: Mapping[str, np.ndarray], header: _Header
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield weights by their names in transformers."""
    yield "model.embed_tokens.weight", arrays["embedding"]
    yield "model.norm.weight", arrays["norm"]
    if not header.is_tied:
        yield "lm_head.weight", arrays["output"]
    for layer in range(header.num_layers):
        own = {name: arrays[name][layer] for name in ("q", "k", "v", "o", "gate", "down", "up")}
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", arrays["attention_norm"][layer]
        yield f"{prefix}.post_attention_layernorm.weight", arrays["mlp_norm"][layer]
        yield f"{prefix}.self_attn.q_proj.weight", _deinterleave_rows(own["q"], header.num_heads)
        yield f"{prefix}.self_attn.k_proj.weight", _deinterleave_rows(own["k"], header.num_kv_heads)
        for name in ("v", "o"):
            yield f"{prefix}.self_attn.{name}_proj.weight", own[name]
        for name in ("gate", "up", "down"):
            yield f"{prefix}.mlp.{name}_proj.weight", own[name]


def _deinterleave_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Return the even rows of each head, then its odd ones."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
