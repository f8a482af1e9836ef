"""`bif attribute --model`: from a folder and files to a run's folder, and its refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bif import store
from command_line import failed
from language_cases import TEXTS, model, tokenizer, written

pytest.importorskip("transformers", reason="the extra `lm` is not installed")

FLAGS = [
    "--chains", "2", "--draws", "4", "--burn-in", "1", "--thin", "1",
    "--step-size", "0.005", "--friction", "2.0", "--gamma", "50.0",
]  # fmt: skip

brief = pytest.mark.usefixtures("unchecked", "no_page")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a model, an adapter's and documents of several kinds."""
    folder = tmp_path_factory.mktemp("given")
    written(folder / "model", model("llama", tie_word_embeddings=True), tokenizer(style="llama"))
    written(folder / "bert", model("bert"), tokenizer(style="bert"))
    records = [{"text": text, "source": "ab"[i % 2]} for i, text in enumerate(TEXTS)]
    _write(folder / "train.jsonl", records)
    _write(folder / "easy.jsonl", [{"text": TEXTS[0], "id": "cat"}])
    _write(folder / "hard.jsonl", [{"prompt": "the cat sat", "completion": " on the mat"}])
    return folder


def _write(path, records):
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


def words(folder, out, *more, name="model", query=("easy.jsonl",)):
    files = [folder / name for name in query]
    return ["attribute", "--model", folder / name, "--train", folder / "train.jsonl",
            "--query", *files, "--out", out, *FLAGS, *more]  # fmt: skip


def test_a_model_and_two_files_make_a_run(given, tmp_path, call):
    code, said, err = call(*words(given, tmp_path / "run"))
    assert code == 0 and f"report: {tmp_path / 'run' / 'report.html'}" in said
    assert "lm_head.weight and model.embed_tokens.weight are one and are sampled as one" in err
    run = store.read_run(tmp_path / "run")
    data, manifest = run["influence"], run["manifest"]
    assert data["train_id"].values.tolist() == [f"train-{i}" for i in range(1, 7)]
    assert data["train_text"].values.tolist() == TEXTS
    assert data["train_source"].values.tolist() == ["a", "b"] * 3
    assert data["query_id"].values.tolist() == ["easy/cat"]
    assert "".join(json.loads(data["query_tokens"].values[0])) == f"<s>{TEXTS[0]}"
    assert np.isfinite(data["influence"].values).all()
    assert any("tied weights" in line for line in manifest["explanations"])
    code, said, _ = call(*words(given, tmp_path / "run"))
    assert code == 0 and "already holds this run, complete: nothing to do" in said
    code, said, _ = call("show", tmp_path / "run", "--query", "cat", "--top", 2)
    assert code == 0 and "query easy/cat" in said


@brief
def test_several_files_are_groups_and_more_join_later(given, tmp_path, call):
    out, both = tmp_path / "run", ("easy.jsonl", "hard.jsonl")
    assert call(*words(given, out))[0] == 0
    more = [w for w in words(given, tmp_path / "more", "--from", out, query=both)
            if w not in FLAGS]  # fmt: skip
    assert call(*more)[0] == 0
    found = store.read_run(tmp_path / "more")["influence"]
    assert found["query_id"].values.tolist() == ["easy/cat", "hard/hard-1"]
    assert found["influence"].shape == (1, 2, 6)


@brief
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (["--layers", "1"], 4 * 16 * 16 - 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16),
        (["--heads", "0.1", "1.3"], 2 * 4 * 4 * 16),
        (["--layers", "0-1", "--movable", "*norm*"], 4 * 16),
    ],
)
def test_named_layers_and_heads_move_alone(given, tmp_path, call, options, weights):
    assert call(*words(given, tmp_path / "run", *options))[0] == 0
    assert store.read_run(tmp_path / "run")["manifest"]["num_moving_weights"] == weights


@brief
def test_tokens_have_columns_of_their_own(given, tmp_path, call):
    out = tmp_path / "run"
    assert call(*words(given, out, "--tokens", "both", "--max-length", "5"))[0] == 0
    data = store.read_run(out)["influence"]
    assert data["query_id"].values.tolist() == [f"easy/cat[{t}]" for t in range(1, 5)]
    assert data["train_parent_source"].values.tolist() == ["a", "b"] * 3


@brief
def test_a_masked_model_split_into_parts_by_means(given, tmp_path, call):
    out = tmp_path / "run"
    options = ["--long", "split", "--max-length", "6", "--reduction", "mean", "--limit", "3"]
    assert call(*words(given, out, *options, name="bert"))[0] == 0
    data = store.read_run(out)["influence"]
    ids = data["train_id"].values.tolist()
    assert "train-1/1" in ids and {name.partition("/")[0] for name in ids} == {
        "train-1", "train-2", "train-3"
    }  # fmt: skip
    assert float(data["train_center_loss"].max()) < 20  # nats a token


@brief
def test_an_adapter_moves_alone(given, tmp_path, call):
    peft = pytest.importorskip("peft", reason="the extra `lm` is not installed")
    with torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(r=1, target_modules=["o_proj"], task_type="CAUSAL_LM",
                                 init_lora_weights=False)  # fmt: skip
        peft.get_peft_model(model("llama"), config).save_pretrained(tmp_path / "adapter")
    out = tmp_path / "run"
    assert call(*words(given, out, "--adapter", tmp_path / "adapter"))[0] == 0
    assert store.read_run(out)["manifest"]["num_moving_weights"] == 2 * (16 + 16)


@brief
def test_the_other_commands_take_models_too(given, tmp_path, call, monkeypatch):
    problem = words(given, tmp_path / "run")[1:7]
    code, said, _ = call("calibrate", *problem, "--out", tmp_path / "calibration", *FLAGS)
    assert code == 0 and "max_length = 24 tokens: the model's context" in said
    flags = [*FLAGS[:2], *FLAGS[4:], "--h", "0.1", "--steps", "2", "--out", tmp_path / "response"]
    code, said, err = call("respond", *problem, *flags)
    assert code == 0 and " steps, " in said, err
    assert call(*words(given, tmp_path / "run"))[0] == 0
    posed = []
    monkeypatch.setattr(
        "bif.runs.cross_check.check_on_disk", lambda folder, problem: posed.append(problem)
    )
    assert call("check", tmp_path / "run", *problem)[0] == 0
    assert [found.num_train for found in posed] == [len(TEXTS)]


class TestRefusals:
    def test_neither_or_both_of_target_and_model_are_refused(self, given, file, tmp_path, call):
        out = tmp_path / "run"
        text = failed(call("attribute", "--out", out))
        assert "expected FILE.py:FUNCTION, or --model NAME with --train FILE" in text
        text = failed(call(*words(given, out), f"{file}:problem"))
        assert "are two problems: drop one of them" in text
        text = failed(
            call("attribute", f"{file}:problem", "--out", out, "--max-length", "5", "--append-eos")
        )
        assert "--append-eos, --max-length: of use with --model NAME only" in text
        text = failed(call("attribute", "--model", given / "model", "--out", out))
        assert "--model needs documents: pass --train FILE and --query FILE" in text
        assert not out.exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--train", "{folder}/no.jsonl"], "no file '"),
            (["--model", "{folder}/no/model"], "no model folder"),
            (["--adapter", "{folder}/no/adapter"], "no adapter folder"),
            (["--max-length", "100"], "the model reads at most 24 tokens at once"),
            (["--layers", "7"], "there is no layer 7: the model has layers 0 to 1"),
            (["--layers", "x"], "'x' is no layer"),
            (["--heads", "1"], "'1' is no head: expected LAYER.HEAD"),
            (["--query", "{folder}/easy.jsonl", "{folder}/easy.jsonl"], "two sources are named"),
        ],
    )
    def test_mistakes_end_with_one_sentence(self, given, tmp_path, call, options, message):
        filled = [word.format(folder=given) for word in options]
        text = failed(call(*words(given, tmp_path / "run", *filled)))
        assert message in text and not (tmp_path / "run").exists()
