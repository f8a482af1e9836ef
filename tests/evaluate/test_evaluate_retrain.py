import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bif.evaluate import Recipe, random_subsets, retrain, train, train_with_checkpoints
from small_problems import global_randomness_untouched

NUM_ITEMS, NUM_QUERIES = 14, 5


def network(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def data(num, seed=0):
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 3, generator=source, dtype=torch.float64)
    return inputs, torch.randint(2, (num,), generator=source)


def cross_entropy(model, batch):
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")


def first_logit(model, batch):
    return model(batch[0])[:, 0]


ITEMS, QUERIES = data(NUM_ITEMS), data(NUM_QUERIES, seed=1)
OUTCOMES = {"loss": (cross_entropy, QUERIES), "logit": (first_logit, QUERIES)}
MASKS = random_subsets(NUM_ITEMS, 3, seed=0)


def trained_by_torch(model, items, recipe):
    """One network by torch's own optimiser and schedule, full batch."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.steps)
        if recipe.schedule == "cosine"
        else torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    )
    for _ in range(recipe.steps):
        optimizer.zero_grad()
        cross_entropy(model, items).mean().backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(steps=60, learning_rate=0.3),
        Recipe(steps=60, learning_rate=0.1, weight_decay=0.05),
        Recipe(steps=60, learning_rate=0.1, momentum=0.9),
        Recipe(steps=60, learning_rate=0.1, momentum=0.9, weight_decay=0.01, schedule="cosine"),
    ],
    ids=["plain", "decay", "momentum", "momentum, decay, cosine"],
)
def test_stacked_networks_equal_torch_sgd_run_one_at_a_time(recipe):
    model = network()
    results = retrain(
        model, cross_entropy, ITEMS, MASKS, recipe, outcomes=OUTCOMES, init="checkpoint", seeds=[0]
    )
    for m, mask in enumerate(MASKS):
        kept = torch.from_numpy(mask)
        reference = trained_by_torch(model, (ITEMS[0][kept], ITEMS[1][kept]), recipe)
        for name, (function, queries) in OUTCOMES.items():
            expected = function(reference, queries).detach().numpy()
            assert np.abs(results[name][0, m] - expected).max() < 1e-10


def test_networks_from_scratch_with_mini_batches_do_not_depend_on_the_stack():
    recipe = Recipe(steps=20, learning_rate=0.1, momentum=0.9, batch_size=3)
    arguments = (network(), cross_entropy, ITEMS)
    whole = retrain(*arguments, MASKS, recipe, outcomes=OUTCOMES, seeds=[4, 9])
    singly = retrain(
        *arguments, MASKS, recipe, outcomes=OUTCOMES, seeds=[4, 9], networks_per_stack=1
    )
    part = retrain(*arguments, MASKS[2:], recipe, outcomes=OUTCOMES, seeds=[9])
    for name in OUTCOMES:
        assert whole[name].shape == (2, 3, NUM_QUERIES) and whole[name].dtype == np.float64
        assert np.abs(whole[name] - singly[name]).max() < 1e-12
        assert np.abs(whole[name][1:, 2:] - part[name]).max() < 1e-12


def test_seeds_and_subsets_get_initial_weights_of_their_own():
    # so small a step that the outcome is that of the initial weights
    recipe = Recipe(steps=1, learning_rate=1e-300)
    results = retrain(
        network(), cross_entropy, ITEMS, MASKS, recipe, outcomes=OUTCOMES, seeds=[0, 1]
    )
    assert len(np.unique(results["logit"].reshape(6, -1), axis=0)) == 6


def record_of_batches(masks, seeds, recipe):
    """The items that every network sees, step by step, read off a loss linear in the weights."""
    num = masks.shape[1]
    model = nn.Linear(num, 1, bias=False).double()
    identity = torch.eye(num, dtype=torch.float64)
    outcome = {"weight": (lambda model, batch: model(batch)[:, 0], identity)}
    return (
        retrain(
            model,
            lambda model, batch: -model(batch)[:, 0],
            identity,
            masks,
            recipe,
            outcomes=outcome,
            init="checkpoint",
            seeds=seeds,
        )["weight"]
        - model.weight[0].detach().numpy()
    )


def test_one_epoch_of_mini_batches_sees_each_kept_item_once_and_no_other():
    masks = random_subsets(12, 4, seed=0)
    moved = record_of_batches(masks, [0, 1], Recipe(steps=3, learning_rate=1.0, batch_size=2))
    # every visit in a batch of 2 adds 1/2 to the item's weight
    assert np.abs(moved - 0.5 * masks[None]).max() < 1e-12


def test_mini_batches_differ_between_subsets_seeds_and_epochs():
    masks = random_subsets(12, 4, seed=0)
    first = record_of_batches(masks, [0, 1], Recipe(steps=1, learning_rate=1.0, batch_size=2))
    assert not np.allclose(first[0], first[1])
    same = np.ones((1, 12), dtype=bool)
    steps = [
        record_of_batches(same, [0], Recipe(steps=steps, learning_rate=1.0, batch_size=6))[0, 0]
        for steps in (1, 2, 3)
    ]
    # the epoch's second batch holds what the first left out; the next epoch starts differently
    assert np.allclose(steps[1], 1 / 6)
    assert not np.allclose(steps[2] - steps[1], steps[0])


def test_the_last_incomplete_batch_is_dropped():
    moved = record_of_batches(
        np.ones((1, 5), dtype=bool), [0], Recipe(steps=2, learning_rate=1.0, batch_size=2)
    )
    assert np.allclose(np.sort(moved[0, 0]), [0, 0.5, 0.5, 0.5, 0.5])


def test_train_gives_the_network_of_retrain_with_a_full_mask():
    recipe = Recipe(steps=15, learning_rate=0.1, batch_size=4, schedule="cosine")
    model = network()
    trained = train(model, cross_entropy, ITEMS, recipe, seed=3)
    results = retrain(
        model,
        cross_entropy,
        ITEMS,
        np.ones((1, NUM_ITEMS), dtype=bool),
        recipe,
        outcomes=OUTCOMES,
        seeds=[3],
    )
    expected = cross_entropy(trained, QUERIES).detach().numpy()
    assert np.abs(results["loss"][0, 0] - expected).max() < 1e-12
    assert trained.training and all(p.requires_grad for p in trained.parameters())


def test_model_and_global_random_state_are_left_bit_identical():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(steps=3, learning_rate=0.1, batch_size=2)
    with global_randomness_untouched():
        retrain(model, cross_entropy, ITEMS, MASKS, recipe, outcomes=OUTCOMES, seeds=[0])
        train(model, cross_entropy, ITEMS, recipe, seed=0, init="checkpoint")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_fresh_weights_do_not_depend_on_the_checkpoint_or_the_global_seed():
    recipe = Recipe(steps=2, learning_rate=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        other = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        second = train(other, cross_entropy, ITEMS, recipe, seed=0)
    first = train(network(), cross_entropy, ITEMS, recipe, seed=0)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parents_initialise_after_their_children():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def reset_parameters(self):
            nn.init.constant_(self.layer.weight, 0.25)

        def forward(self, x):
            return self.layer(x)

    recipe = Recipe(steps=1, learning_rate=1e-300)
    trained = train(Scaled(), cross_entropy, ITEMS, recipe, seed=0)
    assert (trained.layer.weight == 0.25).all()  # pyright: ignore


def test_frozen_parameters_keep_their_values_and_tied_ones_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(3, 3).double().requires_grad_(False)
            self.inner = nn.Linear(3, 3, bias=False).double()
            self.outer = nn.Linear(3, 3, bias=False).double()
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(torch.tanh(self.inner(self.frozen(x))))

    model, recipe = Tied(), Recipe(steps=10, learning_rate=0.2)
    trained = train(model, cross_entropy, ITEMS, recipe, seed=0, init="checkpoint")
    reference = trained_by_torch(model, ITEMS, recipe)
    assert torch.equal(trained.frozen.weight, model.frozen.weight)  # pyright: ignore
    assert trained.outer.weight is trained.inner.weight  # pyright: ignore
    assert (trained.inner.weight - reference.inner.weight).abs().max() < 1e-10  # pyright: ignore


def test_dict_items_and_losses_per_token_are_summed_over_tokens():
    items = {"x": torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)).double()}

    def per_token(model, batch):
        return model(batch["x"]).square().sum(dim=-1)

    def per_item(model, batch):
        return per_token(model, batch).sum(dim=1)

    recipe = Recipe(steps=5, learning_rate=0.01)
    masks = random_subsets(6, 2, seed=0)
    results = [
        retrain(network(), f, items, masks, recipe, outcomes={"sum": (f, items)}, seeds=[0])["sum"]
        for f in (per_token, per_item)
    ]
    assert results[0].shape == (1, 2, 6)
    assert np.abs(results[0] - results[1]).max() < 1e-12


def test_retraining_runs_dropout_in_evaluation_mode_whatever_the_mode_of_the_model():
    plain = network()
    dropping = nn.Sequential(plain[0], plain[1], nn.Dropout(0.5), plain[2]).train()
    recipe = Recipe(steps=5, learning_rate=0.1)
    a, b = (
        retrain(m, cross_entropy, ITEMS, MASKS, recipe, outcomes=OUTCOMES, seeds=[0])["loss"]
        for m in (plain, dropping)
    )
    assert np.abs(a - b).max() < 1e-12


def run(model=None, loss=cross_entropy, items=ITEMS, masks=MASKS, **changes):
    settings = {"outcomes": OUTCOMES, "seeds": [0], **changes}
    recipe = settings.pop("recipe", Recipe(steps=2, learning_rate=0.1))
    return retrain(network() if model is None else model, loss, items, masks, recipe, **settings)


def test_a_diverged_network_is_named_by_subset_and_seed():
    items = (ITEMS[0].clone(), ITEMS[1])
    masks = np.zeros((3, NUM_ITEMS), dtype=bool)
    masks[0, :4] = masks[1, 4:8] = masks[2, 8:12] = True
    items[0][5] = 1e200
    recipe = Recipe(steps=10, learning_rate=1e200)
    with pytest.raises(FloatingPointError, match="subset 1 and seed 7: .*Lower learning_rate"):
        run(
            nn.Linear(3, 1, bias=False).double(),
            lambda model, batch: model(batch[0])[:, 0],
            items,
            masks,
            outcomes={"logit": (first_logit, QUERIES)},
            recipe=recipe,
            seeds=[7],
        )


def test_train_reports_divergence():
    with pytest.raises(FloatingPointError, match="subset 0 and seed 2"):
        train(
            network(),
            lambda model, batch: model(batch[0]).square().sum(dim=1),
            ITEMS,
            Recipe(steps=300, learning_rate=1e3),
            seed=2,
        )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: cross_entropy(model, batch).mean(), r"the loss returned shape \(\)"),
        (lambda model, batch: cross_entropy(model, batch)[1:], r"the loss returned shape \(6,\)"),
        (lambda model, batch: 1.0, "the loss returned <class 'float'>"),
        (lambda model, batch: cross_entropy(model, batch) / 0, "the loss returned NaN or infinite"),
    ],
)
def test_a_loss_that_is_not_one_finite_value_per_item_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        run(loss=loss)


def test_an_outcome_of_the_wrong_shape_is_refused_before_training():
    with pytest.raises(ValueError, match="outcome 'loss' returned shape"):
        run(
            outcomes={"loss": (lambda model, batch: model(batch[0]).sum(), QUERIES)},
            recipe=Recipe(steps=10**9, learning_rate=0.1),
        )


def test_parameters_that_cannot_be_initialised_are_named():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x * self.scale

    model = nn.Sequential(nn.Linear(3, 3).double(), Custom())
    with pytest.raises(ValueError, match=r"Cannot re-initialise 1 \(Custom\).*reset_parameters"):
        run(model)
    assert np.isfinite(run(model, init="checkpoint")["loss"]).all()


def test_running_statistics_are_refused_from_scratch_and_kept_from_the_checkpoint():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(ValueError, match="Cannot train 1 from scratch: running statistics"):
        run(model)
    assert np.isfinite(run(model, init="checkpoint")["loss"]).all()


def branching(model, batch):
    """A loss that vmap cannot take."""
    losses = cross_entropy(model, batch)
    return losses if losses.sum().item() > 0 else -losses


def test_an_operation_that_vmap_cannot_run_is_explained():
    with pytest.raises(RuntimeError, match=r"vmap cannot run .*\.item\(\).*networks_per_stack=1"):
        run(loss=branching)


def test_networks_one_at_a_time_need_no_vmap():
    singly, stacked = run(loss=branching, networks_per_stack=1), run()
    assert all(np.abs(singly[name] - stacked[name]).max() < 1e-12 for name in OUTCOMES)


def test_parameters_that_the_loss_does_not_reach_only_decay():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = network(), nn.Linear(2, 1).double()

        def forward(self, x):
            return self.used(x)

    recipe, model = Recipe(steps=3, learning_rate=0.1, weight_decay=0.5), Idle()
    trained = train(model, cross_entropy, ITEMS, recipe, seed=0, init="checkpoint")
    expected = model.idle.weight * (1 - 0.1 * 0.5) ** 3
    assert (trained.idle.weight - expected).abs().max() < 1e-15  # pyright: ignore


def test_many_queries_are_measured_in_pieces_that_join(monkeypatch):
    whole = run()
    monkeypatch.setattr("bif.evaluate.training._CHUNK_SIZE", 2)
    pieces = run()
    assert all(np.abs(whole[name] - pieces[name]).max() < 1e-12 for name in OUTCOMES)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_precision_of_products_is_put_back(precision):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    seen = []

    def loss(model, batch):
        seen.append(torch.get_float32_matmul_precision())
        return cross_entropy(model, batch)

    run(loss=loss, precision=precision)
    # the first call checks the loss
    assert set(seen[1:]) == {"highest" if precision == "float32" else "high"}
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": MASKS[:, 1:]}, r"masks have shape \(3, 13\).*expected bool \[M, 14\]"),
        ({"masks": MASKS.astype(float)}, "dtype float64; expected bool"),
        ({"masks": np.tri(3, NUM_ITEMS, dtype=bool)}, "subsets hold between 1 and 3 items"),
        ({"masks": np.zeros((2, NUM_ITEMS), dtype=bool)}, "between 0 and 0 items"),
        ({"items": (ITEMS[0], ITEMS[1][1:])}, r"items hold tensors of lengths \[13, 14\]"),
        ({"items": ITEMS[0].numpy()}, "items must be a tensor, or a tuple.*got ndarray"),
        ({"outcomes": {}}, "outcomes are empty"),
        ({"outcomes": {"loss": (cross_entropy, ())}}, "queries of outcome 'loss' hold"),
        ({"seeds": []}, "expected at least one, all different"),
        ({"seeds": [1, 1]}, "expected at least one, all different"),
        ({"seeds": [0, 1], "init": "checkpoint"}, "2 seeds, but training from the checkpoint"),
        ({"networks_per_stack": 0}, "networks_per_stack is 0"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16': expected one of float32, tf32"),
        ({"init": "random"}, "init is 'random': expected one of scratch, checkpoint"),
        ({"model": nn.Tanh()}, "no parameter that requires gradients"),
        (
            {"recipe": Recipe(steps=1, learning_rate=0.1, batch_size=8)},
            "batch_size is 8, but a subset holds 7 items",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("learning_rate", 0.0, "a positive number"),
        ("momentum", 1.0, "at least 0 and below 1"),
        ("weight_decay", -0.1, "0 or a positive number"),
        ("batch_size", 0, "at least 1, or None"),
        ("schedule", "linear", '"constant" or "cosine"'),
    ],
)
def test_a_recipe_out_of_range_is_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"{name} is .*; expected {expected}"):
        Recipe(**{"steps": 1, "learning_rate": 0.1, name: value})


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(steps=3, learning_rate=0.1),
        Recipe(3, 0.1, momentum=0.9, weight_decay=1e-5, batch_size=32, schedule="cosine"),
    ],
)
def test_a_recipe_comes_back_from_json(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"steps": 3, "learning_rate": 0.1, "epochs": 2}, r"unknown entries \['epochs'\]"),
        ({"steps": 3}, "no recipe: .*learning_rate"),
        ({"steps": "three", "learning_rate": 0.1}, "no recipe"),
        ({"steps": 0, "learning_rate": 0.1}, "steps is 0; expected at least 1"),
    ],
)
def test_what_is_no_recipe_is_refused(found, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(found)


class TestCheckpoints:
    RECIPE = Recipe(12, 0.1, momentum=0.5, weight_decay=0.01, batch_size=4, schedule="cosine")

    def test_the_network_is_that_of_train_and_its_weights_those_on_the_way(self):
        trained, checkpoints = train_with_checkpoints(
            network(), cross_entropy, ITEMS, self.RECIPE, at=[0, 5, 11], seed=3
        )
        expected = train(network(), cross_entropy, ITEMS, self.RECIPE, seed=3)
        for a, b in zip(trained.parameters(), expected.parameters(), strict=True):
            assert torch.equal(a, b)
        _, all_of_them = train_with_checkpoints(
            network(), cross_entropy, ITEMS, self.RECIPE, at=range(12), seed=3
        )
        for step, checkpoint in zip((0, 5, 11), checkpoints, strict=True):
            for name, leaf in checkpoint.weights.items():
                assert torch.equal(leaf, all_of_them[step].weights[name])

    def test_weights_are_those_before_the_update_that_they_stand_for(self):
        recipe = Recipe(4, 0.3, weight_decay=0.05)
        _, checkpoints = train_with_checkpoints(
            network(), cross_entropy, ITEMS, recipe, at=4, seed=0, init="checkpoint"
        )
        for steps, checkpoint in enumerate(checkpoints):
            reference = trained_by_torch(network(), ITEMS, replace(recipe, steps=max(steps, 1)))
            weights = dict((reference if steps else network()).named_parameters())
            for name, leaf in checkpoint.weights.items():
                assert (leaf - weights[name]).abs().max() < 1e-12

    @pytest.mark.parametrize("at", [1, 3, 5, 12, [0], [11], [0, 1], [2, 3, 9]])
    def test_rates_and_steps_add_up_to_those_of_the_recipe(self, at):
        _, checkpoints = train_with_checkpoints(
            network(), cross_entropy, ITEMS, self.RECIPE, at=at, seed=0
        )
        rates = [self.RECIPE.rate_at(step) for step in range(12)]
        assert sum(c.num_steps for c in checkpoints) == 12
        assert sum(c.duration for c in checkpoints) == pytest.approx(sum(rates) / 0.5, rel=1e-12)
        first = checkpoints[0]
        mean = sum(rates[: first.num_steps]) / first.num_steps
        assert first.learning_rate == pytest.approx(mean / 0.5, rel=1e-12)

    def test_each_stands_for_the_updates_nearest_to_it(self):
        _, checkpoints = train_with_checkpoints(
            network(), cross_entropy, ITEMS, self.RECIPE, at=[2, 3, 9], seed=0
        )
        # Update 6 is as near to 3 as to 9.
        assert [c.num_steps for c in checkpoints] == [3, 3, 6]

    @pytest.mark.parametrize("at", [0, 13, [], [3, 3], [4, 2], [-1, 2], [3, 12]])
    def test_steps_that_are_not_there_are_refused(self, at):
        with pytest.raises(ValueError, match="expected 1 to 12|numbers of updates from 0 to 11"):
            train_with_checkpoints(network(), cross_entropy, ITEMS, self.RECIPE, at=at, seed=0)
