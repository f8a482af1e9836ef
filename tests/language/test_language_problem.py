"""From models and documents to problems: losses, batching, vocabularies, adapters, components."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif.language import Document, Head, language_problem, load_model, movable_weights
from bif.language.components import parse_heads, parse_layers
from bif.language.losses import CHUNKED, default_loss
from bif.language.models import task_of
from bif.losses import per_item
from complete_settings import complete
from language_cases import CONTEXT, TEXTS, model, tokenizer, written
from small_problems import normal

pytestmark = pytest.mark.usefixtures("unchecked")

pytest.importorskip("transformers", reason="the extra `lm` is not installed")

SETTINGS = bif.Settings(
    chains=2, draws=4, burn_in=1, thin=1, step_size=0.005, friction=2.0, gamma=50.0, chunk_size=3
)
STYLES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "neox": "gpt2",
    "bert": "bert",
    "classifier": "bert",
    "gpt2 classifier": "gpt2",
}
OUTPUTS = ("o_proj.weight", "attn.c_proj.weight", "attention.dense.weight",
           "attention.output.dense.weight")  # fmt: skip
CAUSAL = ("gpt2", "llama", "neox")


def documents(texts=TEXTS, **fields):
    return [
        Document(text, f"d{i}", label=("no", "yes")[i % 2], **fields)
        for i, text in enumerate(texts)
    ]


def problem_with(kind, *, train=TEXTS, queries=TEXTS[:2], made=None, **given):
    made = made or model(kind)
    if kind == "gpt2 classifier":
        made.config.pad_token_id = 2  # type: ignore[union-attr]
    return language_problem(
        made, tokenizer(style=STYLES[kind]), train=documents(train), queries=documents(queries),
        **given,
    )  # fmt: skip


def losses_of(problem, **changed):
    """Losses of the train items at w*, [N], through the run's own machinery."""
    from bif.sampling.engine import Engine

    settings = complete(replace(SETTINGS, nbeta=1.0, oracle="stacked", block_size=2, **changed))
    return Engine(problem, settings).observer.train_center


def next_token_loss(made, ids, *, start):
    """Of the tokens from `start` on, the document [1, T] alone and without padding."""
    logits = made(ids).logits[0, start - 1 : -1]
    return nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum")


class TestLosses:
    @pytest.mark.parametrize("kind", STYLES)
    def test_padding_batch_size_and_order_change_nothing(self, kind):
        made, tokens = model(kind), tokenizer(style=STYLES[kind])
        whole = losses_of(problem_with(kind, made=made), chunk_size=6)
        for size in (1, 2, 4):
            assert (
                losses_of(problem_with(kind, made=made), chunk_size=size) - whole
            ).abs().max() < 1e-10
        for order in ([5, 4, 3, 2, 1, 0], [2, 4], [3]):
            given = [documents()[i] for i in order]
            problem = language_problem(made, tokens, train=given, queries=given)
            assert (losses_of(problem) - whole[order]).abs().max() < 1e-10

    @pytest.mark.parametrize("kind", CAUSAL)
    def test_a_causal_loss_is_that_of_transformers_on_the_document_alone(self, kind):
        made, tokens = model(kind), tokenizer(style=STYLES[kind])
        got = losses_of(problem_with(kind, made=made))
        for text, loss in zip(TEXTS, got, strict=True):
            ids = torch.tensor([tokens(text)["input_ids"]])
            assert abs(loss - next_token_loss(made, ids, start=1)) < 1e-10

    def test_a_classifier_has_the_cross_entropy_of_transformers(self):
        for kind in ("classifier", "gpt2 classifier"):
            made, tokens = model(kind), tokenizer(style=STYLES[kind])
            got = losses_of(problem_with(kind, made=made))
            for i, text in enumerate(TEXTS):
                ids = torch.tensor([tokens(text)["input_ids"]])
                expected = made(ids, labels=torch.tensor([i % 2])).loss
                assert abs(got[i] - expected) < 1e-10

    def test_a_masked_loss_is_of_the_masked_tokens(self):
        made = model("bert")
        problem = problem_with("bert", made=made)
        batch = problem.train.first(6)
        logits = made(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logp = torch.log_softmax(logits, dim=-1)
        where = batch["labels"] != -100
        expected = torch.zeros(6, dtype=torch.float64)
        for row, column in where.nonzero().tolist():
            expected[row] -= logp[row, column, batch["labels"][row, column]]
        assert (losses_of(problem) - expected).abs().max() < 1e-10

    @pytest.mark.parametrize("kind", CAUSAL)
    def test_the_completion_alone_counts(self, kind):
        tokens = tokenizer(style=STYLES[kind])
        made = model(kind)
        prompt, completion = "the cat sat", " on the mat"
        problem = language_problem(
            made, tokens, train=[Document(completion, "a", prompt=prompt)],
            queries=[Document(prompt + completion, "b")],
        )  # fmt: skip
        ids = torch.tensor([tokens(prompt + completion)["input_ids"]])
        start = len(tokens(prompt)["input_ids"])
        expected = next_token_loss(made, ids, start=start)
        assert abs(losses_of(problem)[0] - expected) < 1e-10

    def test_no_document_sees_another(self):
        problem = problem_with("gpt2")
        batch = problem.train.first(6)
        alone = [
            per_item(
                bif.losses.next_token(problem.model, {n: x[i : i + 1] for n, x in batch.items()})
            )
            for i in range(6)
        ]
        assert (torch.cat(alone) - losses_of(problem)).abs().max() < 1e-10

    def test_another_loss_may_be_given(self):
        mean = problem_with("gpt2", loss=bif.losses.next_token_mean)
        counted = (mean.train.data["labels"] != -100).sum(dim=1)
        assert (losses_of(mean) * counted - losses_of(problem_with("gpt2"))).abs().max() < 1e-10


class TestRuns:
    @pytest.mark.parametrize("kind", ["gpt2", "classifier"])
    def test_ids_texts_and_sources_come_with_the_scores(self, kind):
        train = [replace(d, source="books") for d in documents()]
        problem = language_problem(
            model(kind), tokenizer(style=STYLES[kind]), train=train,
            queries={"a": documents(TEXTS[:2]), "b": documents(TEXTS[2:3])},
            candidates={"more": documents(TEXTS[3:4])},
        )  # fmt: skip
        run = bif.attribute(problem, SETTINGS)
        data = run.influence.dataset
        assert data["train_id"].values.tolist() == [f"d{i}" for i in range(6)] + ["more/d0"]
        assert data["query_id"].values.tolist() == ["a/d0", "a/d1", "b/d0"]
        assert data["train_text"].values.tolist() == [*TEXTS, TEXTS[3]]
        assert data["train_source"].values.tolist() == ["books"] * 6 + [""]
        assert "the" in "".join(json.loads(str(data["query_tokens"].values[0])))
        assert np.isfinite(data["influence"].values).all()

    @pytest.mark.parametrize("given", [TEXTS[3:5], [{"text": text} for text in TEXTS[3:5]]])
    def test_candidates_without_a_name_are_one_group(self, given):
        problem = problem_with("gpt2", candidates=given)
        named = problem_with("gpt2", candidates={"candidate": given})
        assert list(problem.candidate_groups) == ["candidate"]
        assert problem.scored_ids.tolist() == named.scored_ids.tolist() and problem.num_scored == 8
        assert problem_with("gpt2", candidates=[]).candidate_groups == {}

    def test_stacked_and_sequential_chains_agree(self):
        scores = [
            bif.attribute(
                problem_with("llama"), replace(SETTINGS, oracle=oracle)
            ).influence.dataset["influence"]
            for oracle in ("stacked", "sequential")
        ]
        assert abs(scores[0] - scores[1]).max() < 1e-10

    def test_minibatches_give_finite_scores(self):
        settings = replace(SETTINGS, gradient="minibatch", batch_size=2)
        assert np.isfinite(
            bif.attribute(problem_with("gpt2"), settings).influence.dataset["influence"]
        ).all()

    def test_the_model_is_left_as_it_was(self):
        made = model("gpt2").train()
        before = {n: x.clone() for n, x in made.state_dict().items()}
        config = made.config.to_json_string()  # type: ignore[union-attr]
        bif.attribute(problem_with("gpt2", made=made), SETTINGS)
        assert made.training and made.config.to_json_string() == config  # type: ignore[union-attr]
        assert all(torch.equal(x, before[n]) for n, x in made.state_dict().items())


def test_texts_and_records_are_documents():
    records: list = [{"text": TEXTS[0], "id": "mine"}, *TEXTS[1:], Document(TEXTS[0], "last")]
    problem = language_problem(
        model("gpt2"), tokenizer(style="gpt2"), train=records, queries={"q": TEXTS[:2]}
    )
    expected = ["mine", *(f"train-{i}" for i in range(2, len(TEXTS) + 1)), "last"]
    assert problem.train.ids.tolist() == expected
    assert problem.query_ids.tolist() == ["q/q-1", "q/q-2"]
    torch.testing.assert_close(losses_of(problem)[:-1], losses_of(problem_with("gpt2")))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("a text", TypeError, r"train is a str: expected a list.*read_documents"),
        ({"q": ["a text"]}, TypeError, "train is a dict"),
        ([torch.zeros(3)], TypeError, "train, document 1 is a Tensor: .*bif.language.Sequences"),
        (["fine text", {"body": "a"}], ValueError, "train, document 2: the field 'text'"),
        (["fine text", " "], ValueError, "train, document 2: the field 'text' is empty"),
    ],
)
def test_what_is_no_document_is_told_what_to_pass(given, error, message):
    with pytest.raises(error, match=message):
        language_problem(model("gpt2"), tokenizer(style="gpt2"), train=given, queries=TEXTS)


def test_torch_says_nothing_of_attention_in_a_stack():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bif.attribute(problem_with("gpt2"), replace(SETTINGS, oracle="stacked"))
    assert not [str(w.message) for w in said if "scaled_dot_product" in str(w.message)]


class TestNotes:
    def test_tied_weights_are_sampled_as_one_and_said(self):
        problem = problem_with("gpt2", made=model("gpt2", tie_word_embeddings=True))
        note = "lm_head.weight and transformer.wte.weight are one and are sampled as one"
        assert any(note in line for line in problem.notes)
        assert "lm_head.weight" not in problem.center()
        run = bif.attribute(problem, SETTINGS)
        assert any(note in line for line in run.manifest["explanations"])
        frozen = model("gpt2", tie_word_embeddings=True)
        frozen.get_parameter("transformer.wte.weight").requires_grad_(False)
        assert not any("tied" in line for line in problem_with("gpt2", made=frozen).notes)
        untied = problem_with("neox", made=model("neox", tie_word_embeddings=False))
        assert not any("tied" in line for line in untied.notes)

    def test_the_choice_of_length_cuts_and_padding_are_said(self):
        notes = problem_with("gpt2").notes
        assert f"max_length = {CONTEXT} tokens: the model's context" in notes
        assert any("its end-of-sequence pads, and no loss reads it" in line for line in notes)
        cut = problem_with("gpt2", max_length=4).notes
        assert any(n.startswith("train: 4 of 6 documents are longer than 4 tokens") for n in cut)
        assert any(n.startswith("query: 2 of 2 documents") for n in cut)


class TestRefusals:
    def test_a_context_shorter_than_max_length_is_refused(self):
        with pytest.raises(ValueError, match="max_length is 25, and the model reads at most 24"):
            problem_with("gpt2", max_length=25)

    def test_positions_counted_from_the_padding_token_on_shorten_the_context(self):
        import transformers

        config = transformers.RobertaConfig(
            vocab_size=330, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=12, pad_token_id=3,
        )  # fmt: skip
        made, tokens = transformers.RobertaForMaskedLM(config).eval(), tokenizer(style="bert")

        def read_at_once(length):
            texts = documents()
            language_problem(made, tokens, train=texts, queries=texts, max_length=length)

        read_at_once(8)
        with pytest.raises(ValueError, match="max_length is 9, and the model reads at most 8"):
            read_at_once(9)

    def test_another_vocabulary_is_refused(self):
        small = model("llama")
        small.resize_token_embeddings(200)  # type: ignore[operator]
        with pytest.raises(ValueError, match="different vocabularies: document 'd0' has token 2"):
            problem_with("llama", made=small)

    def test_a_classifier_that_takes_another_token_for_padding_is_refused(self):
        with pytest.raises(ValueError, match="set model.config.pad_token_id = 2"):
            language_problem(
                model("gpt2 classifier"), tokenizer(), train=documents(), queries=documents()
            )

    def test_a_model_that_is_not_of_transformers_is_refused(self):
        with pytest.raises(TypeError, match="expected a model of transformers, got Linear"):
            language_problem(nn.Linear(2, 2), tokenizer(), train=documents(), queries=documents())
        with pytest.raises(ValueError, match="a Linear is neither a causal nor a masked"):
            task_of(nn.Linear(2, 2))


class TestLoading:
    @pytest.mark.parametrize(
        ("kind", "task"),
        [("llama", "causal"), ("bert", "masked"), ("gpt2 classifier", "classification")],
    )
    def test_a_folder_holds_model_tokenizer_and_task(self, tmp_path, kind, task):
        made = model(kind)
        found = load_model(written(tmp_path / "m", made, tokenizer(style=STYLES[kind])))
        assert found.task == task and not found.model.training
        for name, leaf in made.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], leaf)
        language_problem(
            found.model, found.tokenizer, train=documents(), queries=documents(TEXTS[:1])
        )

    def test_bfloat16_weights_become_float32(self, tmp_path):
        made = model("llama", double=False).bfloat16()
        found = load_model(written(tmp_path / "m", made, tokenizer()))
        assert {p.dtype for p in found.model.parameters()} == {torch.float32}

    def test_missing_folders_and_names_are_refused(self, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match="no model folder"):
            load_model(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="no model with a tokenizer at"):
            load_model(tmp_path)

    def test_pickled_weights_are_refused(self, tmp_path):
        folder = written(tmp_path / "m", model("llama"), tokenizer())
        torch.save(model("llama").state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="Pickled weights can run code"):
            load_model(folder)

    def test_tasks_that_are_none_are_refused(self, tmp_path):
        folder = written(tmp_path / "m", model("llama"), tokenizer())
        with pytest.raises(ValueError, match="task is 'translation': expected one of causal"):
            load_model(folder, task="translation")  # type: ignore[arg-type]
        config = json.loads((folder / "config.json").read_text())
        for architectures, message in (
            (["LlamaModel"], "a LlamaModel is neither"),
            ([], "names no architecture: pass task"),
        ):
            (folder / "config.json").write_text(
                json.dumps({**config, "architectures": architectures})
            )
            with pytest.raises(ValueError, match=message):
                load_model(folder)
        assert load_model(folder, task="causal").task == "causal"

    def test_a_regression_head_is_refused(self, tmp_path):
        made = model("classifier")
        made.config.problem_type = "multi_label_classification"  # type: ignore[union-attr]
        folder = written(tmp_path / "m", made, tokenizer(style="bert"))
        with pytest.raises(ValueError, match="2 outputs for multi_label_classification"):
            load_model(folder)

    def test_the_missing_extra_is_named(self, tmp_path, monkeypatch):
        folder = written(tmp_path / "m", model("llama"), tokenizer())
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"bayesian-influence\[lm\]"):
            load_model(folder, adapter=tmp_path)
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"bayesian-influence\[lm\]"):
            load_model(folder)


class TestAdapters:
    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        peft = pytest.importorskip("peft", reason="the extra `lm` is not installed")
        folder = tmp_path_factory.mktemp("adapters")
        base = written(folder / "base", model("llama"), tokenizer(style="llama"))
        with torch.random.fork_rng(devices=[]):
            config = peft.LoraConfig(
                r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
                init_lora_weights=False, lora_dropout=0.5,
            )  # fmt: skip
            peft.get_peft_model(model("llama"), config).save_pretrained(folder / "lora")
            prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
            peft.get_peft_model(model("llama"), prompt).save_pretrained(folder / "prompt")
        return base, folder

    def test_an_adapters_weights_alone_move(self, folders):
        base, folder = folders
        found = load_model(base, adapter=folder / "lora")
        movable = movable_weights(found.model)
        assert len(movable) == 2 * 2 * 2 and all("lora_" in name for name in movable)
        problem = language_problem(
            found.model, found.tokenizer, train=documents(), queries=documents(TEXTS[:2])
        )
        run = bif.attribute(problem, replace(SETTINGS, movable=movable))
        # Rank 2 of the 16 x 16 queries and the 8 x 16 values, in two layers.
        assert run.manifest["num_moving_weights"] == 2 * 2 * (16 + 16 + 16 + 8)
        first = movable_weights(found.model, layers=[1])
        assert len(first) == 4 and all(".layers.1." in name for name in first)

    def test_what_does_not_fit_is_refused(self, folders, tmp_path):
        base, folder = folders
        with pytest.raises(ValueError, match="adds tokens in front of the text"):
            load_model(base, adapter=folder / "prompt")
        with pytest.raises(FileNotFoundError, match="no adapter folder"):
            load_model(base, adapter=tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors in"):
            load_model(base, adapter=tmp_path)
        other = written(tmp_path / "neox", model("neox"), tokenizer())
        with pytest.raises(ValueError, match="does not fit the model"):
            load_model(other, adapter=folder / "lora")
        found = load_model(base, adapter=folder / "lora")
        with pytest.raises(ValueError, match="heads of an adapter cannot be told apart"):
            movable_weights(found.model, heads=[(0, 1)])


class TestComponents:
    def test_everything_is_one_glob(self):
        assert movable_weights(model("llama")) == ("*",)

    @pytest.mark.parametrize("kind", STYLES)
    def test_a_layer_is_its_own_weights(self, kind):
        names = movable_weights(model(kind), layers=[1])
        assert names and all(".1." in name for name in names)
        only = movable_weights(model(kind), layers=[0, 1], names=["*weight"])
        assert only and all(name.endswith("weight") for name in only)

    @pytest.mark.parametrize("kind", STYLES)
    def test_a_head_is_what_its_own_columns_of_the_output_read(self, kind):
        made = model(kind)
        parameters = dict(made.named_parameters())
        movable = movable_weights(made, heads=[Head(1, 1)])
        masks = bif.LocalPosterior({**parameters}, 1.0, 1.0, movable).masks
        # Query, key, value and output have 16 x 4 weights of it each, and a bias but for the last.
        count = {end: sum(int(m.sum()) for n, m in masks.items() if n.endswith(end))
                 for end in ("weight", "bias")}  # fmt: skip
        assert count == {"weight": 4 * 16 * 4, "bias": 0 if kind == "llama" else 3 * 4}
        (output,) = (n for n in masks if n.endswith(OUTPUTS))
        # Keys and values of llama serve another head as well.
        own = [
            n for n in masks if n != output and not n.endswith(("k_proj.weight", "v_proj.weight"))
        ]
        moved = {n: 0.3 * masks[n] * normal(*masks[n].shape, seed=1) for n in masks}
        with torch.no_grad():
            parameters[output].mul_(~masks[output])
            deaf = losses_of(problem_with(kind, made=made))
            for name in own:
                parameters[name].add_(moved[name])
            assert (losses_of(problem_with(kind, made=made)) - deaf).abs().max() < 1e-12
            parameters[output].add_(moved[output])
            assert (losses_of(problem_with(kind, made=made)) - deaf).abs().max() > 1e-3

    def test_a_run_moves_the_head_alone(self):
        movable = movable_weights(model("llama"), heads=parse_heads(["0.3"]))
        run = bif.attribute(problem_with("llama"), replace(SETTINGS, movable=movable))
        assert run.manifest["num_moving_weights"] == 4 * 4 * 16

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"layers": [2]}, "there is no layer 2: the model has layers 0 to 1"),
            ({"heads": [(2, 0)]}, "there is no layer 2"),
            ({"heads": [(0, 4)]}, "there is no head 4 in layer 0: it has heads 0 to 3"),
            ({"layers": [0], "heads": [(0, 1)]}, "layers and heads go one at a time"),
            ({"names": ["head.*"]}, "the pattern 'head.*' matches no parameter"),
            ({"layers": [0], "names": ["*embed*"]}, "leave no weight to move"),
        ],
    )
    def test_what_is_not_there_is_refused(self, given, message):
        with pytest.raises(ValueError, match=message):
            movable_weights(model("llama"), **given)

    def test_layers_and_heads_are_parsed_from_words(self):
        assert parse_layers(["0", "3-5"]) == [0, 3, 4, 5]
        for word in ("a", "5-3", "-1"):
            with pytest.raises(ValueError, match="is no layer: expected a number, or a range"):
                parse_layers([word])
        with pytest.raises(ValueError, match="'3' is no head: expected LAYER.HEAD"):
            parse_heads(["3"])


class TestLargeVocabularies:
    @pytest.fixture(autouse=True)
    def few_pieces_are_many(self, monkeypatch):
        monkeypatch.setattr("bif.language.problem.LARGE_VOCABULARY", 300)

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    @pytest.mark.parametrize("kind", CAUSAL)
    def test_losses_of_large_vocabularies_are_those_of_all_logits(self, kind, reduction):
        problem = problem_with(kind, reduction=reduction)
        assert problem.loss is CHUNKED[reduction]
        assert any("330 pieces are computed" in note for note in problem.notes)
        batch = problem.train.first(6)
        torch.testing.assert_close(
            problem.loss(problem.model, batch),
            default_loss("causal", reduction)(problem.model, batch),
            rtol=1e-12,
            atol=1e-12,
        )

    def test_another_head_keeps_all_logits_and_the_run_says_why(self):
        made = model("gpt2")
        made.lm_head = nn.Sequential(made.lm_head)  # type: ignore[union-attr]
        problem = problem_with("gpt2", made=made)
        assert problem.loss is bif.losses.next_token
        assert any("no linear head of its own" in note for note in problem.notes)

    def test_other_tasks_and_losses_of_ones_own_stay(self):
        assert problem_with("bert").loss is default_loss("masked", "sum")
        assert problem_with("gpt2", loss=bif.losses.next_token).loss is bif.losses.next_token

    def test_other_mistakes_are_still_told(self):
        with pytest.raises(ValueError, match="tokens is 'all'"):
            problem_with("gpt2", tokens="all")


def test_small_vocabularies_keep_all_logits():
    assert problem_with("gpt2").loss is bif.losses.next_token
    assert problem_with("gpt2", reduction="mean").loss is bif.losses.next_token_mean
