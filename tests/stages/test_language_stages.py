"""`bif stages --model`: checkpoints of a language model as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bif
from bif.language import load_model, revisions
from language_cases import TEXTS, model, tokenizer, written

pytest.importorskip("transformers", reason="the extra `lm` is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints of a model with tied weights, and documents."""
    for step in (1, 2, 10):
        made = model("llama", tie_word_embeddings=True)
        with torch.no_grad():
            made.model.norm.weight.mul_(1 + step / 10)  # type: ignore[union-attr, operator]
        written(tmp_path / "saved" / f"checkpoint-{step}", made, tokenizer(style="llama"))
        torch.save({}, tmp_path / "saved" / f"checkpoint-{step}" / "optimizer.pt")
    for name, texts in (("train", TEXTS), ("query", TEXTS[:1])):
        lines = (json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_its_checkpoints_are_followed_from_the_command_line(call, folder: Path):
    code, out, said = call(
        "stages", "--model", folder / "saved" / "checkpoint-10", "--train", folder / "train.jsonl",
        "--query", folder / "query.jsonl", "--checkpoints", folder / "saved",
        "--out", folder / "out", "--gamma", 50, "--nbeta", 100,
    )  # fmt: skip
    assert code == 0, said
    assert out.startswith("3 checkpoints, ")
    found = bif.Trajectory.load(folder / "out")
    assert found.steps.tolist() == [1, 2, 10]
    assert found.dataset["influence"].shape == (3, 1, 1, len(TEXTS))
    assert not any(note.startswith("left out") for note in found.notes)


def test_a_revision_is_passed_on_to_transformers(monkeypatch, folder: Path):
    import transformers

    asked = []
    place = folder / "saved" / "checkpoint-2"
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        loader = getattr(transformers, name)
        whole = loader.from_pretrained

        def from_pretrained(source, *given, whole=whole, **named):
            asked.append(named.pop("revision", None))
            return whole(place, *given, **named)

        monkeypatch.setattr(loader, "from_pretrained", from_pretrained)
    weights = next(iter(revisions("someone/some-model", ["step2"]))).read()
    assert asked.count("step2") >= 3 and {*asked} <= {"step2", None}  # theirs call one another
    torch.testing.assert_close(
        weights["model.norm.weight"], load_model(place).model.state_dict()["model.norm.weight"]
    )
