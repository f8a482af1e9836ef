"""`examples/stories.py` on a tiny checkpoint of llama2.c and stories made here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import bif
from llama2c_files import HEADER, arrays_of, write_checkpoint, write_tokenizer

pytest.importorskip("transformers", reason="the extra `lm` is not installed")
EXAMPLE = Path(__file__).parents[1] / "examples" / "stories.py"
MERGED = [("og", 1.0), ("an", 1.0)]


def test_the_example_scores_tokens_and_prints_its_page(monkeypatch, capsys, tmp_path):
    header = HEADER._replace(signed_vocabulary=259 + len(MERGED), max_tokens=24)
    write_checkpoint(tmp_path / "stories260K.bin", header, arrays_of(header))
    write_tokenizer(tmp_path / "tok512.bin", MERGED)
    texts = ["a dog ran", "a cat sat", "dogs and cats", "an owl ran", "a dog sat", "two owls"]
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(texts))
    out = tmp_path / "out"
    spec = importlib.util.spec_from_file_location("stories_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    options = ["--train", "4", "--length", "8", "--draws", "6"]
    monkeypatch.setattr(sys, "argv", ["stories.py", "--data", str(tmp_path), "--out", str(out),
                                      *options])  # fmt: skip
    example.main()
    assert "report.html" in capsys.readouterr().out and (out / "report.html").is_file()
    run = bif.load(out)
    data = run.influence.dataset
    # Stories cut to 8 tokens, of which the first has no loss.
    assert data["train_id"].values[0] == "story-0[1]" and np.isfinite(data["influence"]).all()
    assert {i.partition("[")[0] for i in data["query_id"].values} == {"new-0", "new-1"}
    first = data["train_text"].values[data["train_item"].values == "story-0"]
    assert "".join(first) == " a dog "
    whole = run.influence.by_item().dataset["influence"].values
    assert whole.shape == (1, 2, 4)
