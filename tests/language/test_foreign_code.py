"""Folders of models that bring code of their own: it never runs, whatever is answered."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from bif.language import load_model
from language_cases import model, tokenizer, written

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
class Config(GPT2Config):
    model_type = {kind!r}
class Model(GPT2LMHeadModel):
    config_class = Config
class Tokenizer(GPT2TokenizerFast):
    pass
"""
PARTS = {
    "config": ("config.json", {"AutoConfig": "evil.Config"}),
    "model": ("config.json", {"AutoModelForCausalLM": "evil.Model"}),
    "both": ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
    "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.Tokenizer"]}),
}


@pytest.mark.parametrize("kind", ["gpt2", "evil"], ids=["known", "unknown"])
@pytest.mark.parametrize("part", PARTS)
def test_no_code_of_a_models_folder_is_run(tmp_path: Path, monkeypatch, part, kind):
    folder, marker = tmp_path / "model", tmp_path / "the code was run"
    written(folder, model("gpt2"), tokenizer())
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker), kind=kind))
    name, classes = PARTS[part]
    for file, changed in ((name, {"auto_map": classes}), ("config.json", {"model_type": kind})):
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**found, **changed}))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    try:
        load_model(folder)
    except FileNotFoundError as error:
        assert "no model with a tokenizer at" in str(error)
    assert not marker.exists()
