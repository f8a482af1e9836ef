"""What is sampled are the weights that were handed over: trained ones, in float32."""

from __future__ import annotations

import threading
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bags import Bag
from bif.sampling.engine import Engine
from bif.sampling.factory import make_posterior
from bif.sampling.movable_weights import moving
from complete_settings import complete
from small_problems import TINY, filled, integers, labelled, network

pytestmark = pytest.mark.usefixtures("unchecked")

NAMES = ("influence", "standard_error", "self_influence")


def problem_with(model, *, loss=bif.losses.cross_entropy, train=None, queries=None, **given):
    return bif.Problem(
        model, loss, train=train or labelled(20, seed=1), queries=queries or labelled(4, seed=2),
        **given,
    )  # fmt: skip


def said(run):
    return " ".join([*run.manifest["explanations"], *run.manifest["warnings"]])


def require_same_scores(one, other):
    """To the last bit: seeds are the same, so what moves must be."""
    for name in NAMES:
        np.testing.assert_array_equal(one.influence.dataset[name], other.influence.dataset[name])


def with_frozen_backbone():
    model: Any = network()
    model[0].requires_grad_(False)
    return model


class TestFrozenWeights:
    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    def test_scores_with_a_frozen_backbone_are_those_of_the_trained_weights_named_by_hand(
        self, oracle
    ):
        settings = replace(TINY, oracle=oracle)
        run = bif.attribute(problem_with(with_frozen_backbone()), settings)
        by_hand = bif.attribute(problem_with(network()), replace(settings, movable=("2.*",)))
        require_same_scores(run, by_hand)
        assert run.manifest["num_moving_weights"] == 18
        assert "18 of 43 weights: 2 of 4 parameters are frozen (requires_grad=False) and" in said(
            run
        )

    def test_naming_frozen_weights_moves_them(self):
        run = bif.attribute(problem_with(with_frozen_backbone()), replace(TINY, movable=("*",)))
        require_same_scores(run, bif.attribute(problem_with(network()), TINY))
        assert "43 of 43 weights: as movable names them, 2 frozen ones" in said(run)

    def test_of_a_model_that_is_frozen_as_a_whole_all_weights_move_and_the_run_says_so(self):
        run = bif.attribute(problem_with(network().requires_grad_(False)), TINY)
        require_same_scores(run, bif.attribute(problem_with(network()), TINY))
        assert "43 of 43 weights: 4 of 4 parameters are frozen" in said(run)

    def test_a_response_leaves_frozen_weights_where_they_are(self):
        settings = bif.Settings(nbeta=20.0, gamma=5.0, step_size=0.1, friction=1.0, burn_in=3)
        given = {"settings": settings, "steps": 20, "replicates": 2, "h": 0.1}
        found = bif.respond(problem_with(with_frozen_backbone()), **given)
        by_hand = bif.respond(
            problem_with(network()), **{**given, "settings": replace(settings, movable=("2.*",))}
        )
        np.testing.assert_array_equal(found.scores, by_hand.scores)

    @pytest.mark.parametrize("method", ["product", "exact", "cg", "ekfac", "trak"])
    def test_rivals_leave_out_frozen_weights_too(self, method):
        from bif import baselines

        ask = {
            "product": baselines.gradient_product,
            "exact": lambda p: baselines.ExactInfluence.fit(p).scores(p, damping=0.1),
            "cg": lambda p: baselines.ConjugateGradients.fit(p).scores(p, damping=0.1),
            "ekfac": lambda p: baselines.EKFAC.fit(p).scores(p, damping=0.1),
            "trak": lambda p: baselines.TRAK.fit(p, dimension=None).scores(p, damping=0.1),
        }[method]
        # The head alone, fed with what the frozen layers make, is the same problem.
        whole: Any = network()
        frozen, head = with_frozen_backbone(), whole[2]
        features = [(whole[:2](x).detach(), y) for x, y in (labelled(20, seed=1),
                                                               labelled(4, seed=2))]  # fmt: skip
        found = ask(problem_with(frozen))
        expected = ask(problem_with(head, train=features[0], queries=features[1]))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)

    def test_names_with_brackets_and_stars_are_taken_literally(self):
        class Named(nn.Module):
            def __init__(self):
                super().__init__()
                self.parts = nn.ParameterDict(
                    {"a[0]*": torch.zeros(4, 3), "a0": torch.zeros(3)}
                ).double()
                self.parts["a0"].requires_grad_(False)

            def forward(self, x):
                return x @ self.parts["a[0]*"] + self.parts["a0"]

        problem = problem_with(Named())
        run = bif.attribute(problem, TINY)
        assert run.manifest["num_moving_weights"] == 12
        assert list(moving(problem, tuple(run.manifest["settings"]["movable"]))) == ["parts.a[0]*"]


class TestAdapters:
    def adapted(self, **given):
        peft = pytest.importorskip("peft", reason="the extra `lm` is not installed")
        from language_cases import model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adapter = peft.LoraConfig(
                r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights="gaussian"
            )
            made = peft.get_peft_model(model("gpt2"), adapter)
        for parameter in made.parameters():
            if parameter.requires_grad and not parameter.any():  # the second factor begins at 0
                with torch.no_grad():
                    parameter.fill_(0.1)
        return made

    def test_a_bfloat16_base_under_a_float32_adapter_is_that_of_the_same_numbers_in_float32(self):
        ids = integers(20, 6, 5, seed=1)
        given = {
            "loss": bif.losses.next_token, "train": {"input_ids": ids},
            "queries": {"input_ids": ids[:2]},
        }  # fmt: skip
        model = self.adapted()
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        settings = replace(TINY, oracle="sequential")
        run = bif.attribute(problem_with(model, **given), settings)
        require_same_scores(
            run, bif.attribute(problem_with(deepcopy(model).float(), **given), settings)
        )
        assert "what stays is bfloat16, and is read as float32 of the same values" in said(run)
        assert "too coarse" not in said(run)
        number = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert f"{number:,} of {run.manifest['num_weights']:,} weights move, held in float32" in (
            repr(run)
        )

    @pytest.mark.parametrize("frozen", ["the base", "everything"])
    def test_scores_of_a_lora_model_are_those_of_the_adapter_named_by_hand(self, frozen):
        ids = integers(20, 6, 5, seed=1)
        given = {
            "loss": bif.losses.next_token, "train": {"input_ids": ids},
            "queries": {"input_ids": ids[:2]}, "tied_weights": "share",
        }  # fmt: skip
        model = self.adapted()
        number = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if frozen == "everything":
            model.requires_grad_(False)
        settings = replace(TINY, oracle="sequential")
        run = bif.attribute(problem_with(model, **given), settings)
        by_hand = bif.attribute(
            problem_with(self.adapted().requires_grad_(True), **given),
            replace(settings, movable=("*lora_*",)),
        )
        require_same_scores(run, by_hand)
        assert run.manifest["num_moving_weights"] == number
        assert "requires_grad=False" in said(run)

    def test_language_problems_move_the_adapter_alone_too(self):
        from bif.language import Document, language_problem, movable_weights
        from language_cases import TEXTS, tokenizer

        documents = [Document(text, f"d{i}") for i, text in enumerate(TEXTS)]
        model = self.adapted()
        problem = language_problem(
            model, tokenizer(style="gpt2"), train=documents, queries=documents[:2]
        )
        run = bif.attribute(problem, replace(TINY, oracle="sequential", chunk_size=3))
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert set(run.manifest["settings"]["movable"]) == trained
        assert set(movable_weights(model)) == trained


class Normed(nn.Module):
    """With buffers that are narrow like the weights."""

    def __init__(self):
        super().__init__()
        self.norm, self.map = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3]))
        with torch.no_grad():
            self.norm.running_mean = torch.tensor([0.1, -0.2, 0.3, 0.05])

    def forward(self, x):
        return self.map(self.norm(x)) + self.shift


def narrowed(dtype):
    """A model and data in a narrow type, and the same numbers in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Normed().eval().to(dtype)
    data = [(x.to(dtype), y) for x, y in (labelled(20, seed=1), labelled(4, seed=2))]
    wide = [(x.float(), y) for x, y in data]
    return (model, *data), (deepcopy(model).float(), *wide)


class TestNarrowWeights:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    def test_scores_of_narrow_weights_are_those_of_the_same_numbers_in_float32(self, dtype, oracle):
        (model, train, queries), (wide, wide_train, wide_queries) = narrowed(dtype)
        settings = replace(TINY, oracle=oracle)
        run = bif.attribute(problem_with(model, train=train, queries=queries), settings)
        expected = bif.attribute(
            problem_with(wide, train=wide_train, queries=wide_queries), settings
        )
        require_same_scores(run, expected)
        assert f"weights = float32: the model's {str(dtype).removeprefix('torch.')}" in said(run)

    def test_scores_of_a_bfloat16_language_model_are_those_of_the_same_numbers_in_float32(self):
        pytest.importorskip("transformers", reason="the extra `lm` is not installed")
        from bif.language import language_problem
        from language_cases import TEXTS, model, tokenizer

        narrow = model("llama").to(torch.bfloat16)
        runs = [
            bif.attribute(
                language_problem(
                    made, tokenizer(style="llama"), train=TEXTS, queries=TEXTS[:2]
                ),
                replace(TINY, oracle="sequential", movable=("*",)),
            )
            for made in (narrow, deepcopy(narrow).float())
        ]  # fmt: skip
        require_same_scores(*runs)
        assert "held in float32" in repr(runs[0])

    def test_the_callers_model_and_data_stay_narrow(self):
        (model, train, queries), _ = narrowed(torch.bfloat16)
        bif.attribute(problem_with(model, train=train, queries=queries), TINY)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert train[0].dtype == torch.bfloat16

    def test_narrow_inputs_of_a_dataset_are_widened_as_they_are_read(self):
        (model, train, queries), (wide, wide_train, wide_queries) = narrowed(torch.bfloat16)
        run = bif.attribute(
            problem_with(model, train=torch.utils.data.TensorDataset(*train), queries=queries), TINY
        )
        expected = bif.attribute(problem_with(wide, train=wide_train, queries=wide_queries), TINY)
        require_same_scores(run, expected)

    def test_the_lean_mode_alone_keeps_matrices_in_bfloat16(self):
        (model, train, queries), _ = narrowed(torch.bfloat16)
        problem = problem_with(model, train=train, queries=queries)
        given = {"oracle": "live", "nbeta": 1.0, "gamma": 1.0}
        lean = bif.Settings(memory="lean", sampler="sgld", **given)
        fused = bif.Settings(memory="fused", **given)
        types = {n: x.dtype for n, x in make_posterior(problem, lean).center.items()}
        assert types["map.weight"] == torch.bfloat16
        assert types["map.bias"] == torch.float32
        assert {x.dtype for x in make_posterior(problem, fused).center.values()} == {torch.float32}

    def test_a_lean_run_of_a_bfloat16_model_ends_with_finite_scores(self):
        (model, train, queries), _ = narrowed(torch.bfloat16)
        settings = bif.Settings(
            memory="lean", sampler="sgld", oracle="live", nbeta=1.0, gamma=1.0, step_size=0.01,
            chains=2, draws=4, burn_in=1, thin=1,
        )  # fmt: skip
        open_steps = replace(settings, step_size=None, burn_in=None, thin=None, gamma=None)
        for given in (settings, open_steps):
            run = bif.attribute(problem_with(model, train=train, queries=queries), given)
            assert np.isfinite(run.influence.dataset["influence"]).all()

    def test_a_loss_that_insists_on_narrow_weights_is_told_what_happened(self):
        (model, train, queries), _ = narrowed(torch.bfloat16)

        def loss(model, batch):
            x, y = batch
            return nn.functional.cross_entropy(model(x.bfloat16()), y, reduction="none")

        with pytest.raises(ValueError, match="bfloat16 are sampled as float32.*Cast to"):
            problem_with(model, loss=loss, train=train, queries=queries)

    def test_networks_are_retrained_in_float32(self):
        (model, train, _), _ = narrowed(torch.bfloat16)
        recipe = bif.evaluate.Recipe(steps=3, learning_rate=1e-4, batch_size=None)
        trained: Any = bif.evaluate.train(
            model, bif.losses.cross_entropy, train, recipe, init="checkpoint", seed=0
        )
        assert {p.dtype for p in trained.parameters()} == {torch.float32}
        assert not torch.equal(trained.map.weight, model.map.weight.float())


def texts(num, *, seed):
    """Five of the words 0 to 5, of which 2 pads, and a class."""
    return integers(6, num, 5, seed=seed), integers(3, num, seed=seed + 1)


def bag(**given):
    return problem_with(filled(Bag(**given)), train=texts(20, seed=1), queries=texts(4, seed=3))


class TestPaddingRows:
    @pytest.mark.parametrize("movable", [None, ("*",), ("words.*", "map.*")])
    def test_padding_rows_stay_and_scores_are_those_of_slices_named_by_hand(self, movable):
        run = bif.attribute(bag(), replace(TINY, movable=movable))
        by_hand = ("words.weight[0:2]", "words.weight[3:8]", "map.*")
        require_same_scores(run, bif.attribute(bag(), replace(TINY, movable=by_hand)))
        assert run.manifest["num_moving_weights"] == 7 * 4 + 15
        assert "padding rows stay: words.weight" in said(run)

    def test_a_padding_row_that_a_slice_names_moves(self):
        mask = moving(bag(), ("words.weight[2:3]",))["words.weight"]
        assert isinstance(mask, torch.Tensor) and mask[2].all()

    def test_the_row_of_a_weight_that_is_the_output_layer_too_moves(self):
        model: Any = filled(Bag(num_words=3))
        model.map = nn.Linear(4, 3, bias=False).double()
        model.map.weight = model.words.weight
        problem = problem_with(
            model, train=(integers(3, 9, 5, seed=1), integers(3, 9, seed=2)),
            queries=(integers(3, 2, 5, seed=3), integers(3, 2, seed=4)), tied_weights="share",
        )  # fmt: skip
        assert moving(problem, None) == {"words.weight": True}

    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    @pytest.mark.parametrize("gradient", ["full", "minibatch", "control_variate"])
    def test_sparse_embeddings_give_the_scores_of_dense_ones(self, oracle, gradient):
        size = None if gradient == "full" else 5
        settings = replace(TINY, oracle=oracle, gradient=gradient, batch_size=size)
        problem = bag(sparse=True)
        require_same_scores(bif.attribute(problem, settings), bif.attribute(bag(), settings))
        assert problem.model.get_submodule("words").sparse  # the caller's

    @pytest.mark.parametrize("oracle", ["sequential", "live"])
    def test_sparse_gradients_of_a_function_give_the_scores_of_dense_ones(self, oracle):
        class Functional(Bag):
            sparse = False

            def forward(self, x):
                found = nn.functional.embedding(x, self.words.weight, 2, sparse=self.sparse)
                return self.map(found.mean(dim=1))

        class Sparse(Functional):
            sparse = True

        runs = [
            bif.attribute(
                problem_with(filled(kind()), train=texts(20, seed=1), queries=texts(4, seed=3)),
                replace(TINY, oracle=oracle),
            )
            for kind in (Functional, Sparse)
        ]
        require_same_scores(*runs)


class Keeps(nn.Module):
    """Keeps an activation, also in a list inside of a dict."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        self.hidden = self.first(x)
        self.kept = {"all": [self.hidden]}
        return self.second(self.hidden.tanh())


def weight_normed():
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def spectral_normed():
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
class TestCopies:
    @pytest.mark.parametrize("make", [weight_normed, spectral_normed, Keeps])
    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    def test_models_that_hold_tensors_with_a_graph_score_as_before_their_training_step(
        self, make, oracle
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = filled(make())
        x, y = labelled(20, seed=1)
        fresh = deepcopy(make()).double() if make is Keeps else None
        nn.functional.cross_entropy(model(x), y).backward()
        settings = replace(TINY, oracle=oracle)
        run = bif.attribute(problem_with(model), settings)
        assert np.isfinite(run.influence.dataset["influence"]).all()
        if fresh is not None:
            fresh.load_state_dict(model.state_dict())
            require_same_scores(run, bif.attribute(problem_with(fresh), settings))

    def test_what_cannot_be_copied_is_named(self):
        model: Any = network()
        model[2].guard = threading.Lock()
        with pytest.raises(TypeError, match=r"cannot be copied.*attribute '2\.guard' \(lock\)"):
            problem_with(model)

    def test_weights_of_a_step_are_never_those_of_the_caller(self):
        model = with_frozen_backbone()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        given = {"nbeta": 20.0, "gradient": "full", "oracle": "stacked", "chunk_size": 20}
        engine = Engine(
            problem_with(model), complete(replace(TINY, block_size=4, **given), movable=("2.*",))
        )
        positions = [dict(p.state.params) for p in engine.positions(0, 2, engine.start(0, 2))]
        assert all(a.keys() == b.keys() == {"2.weight", "2.bias"} for a, b in pairwise(positions))
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
