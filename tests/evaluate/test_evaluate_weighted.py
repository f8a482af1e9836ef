import numpy as np
import pytest
import torch
from torch import nn

from bif.evaluate import Recipe, retrain, retrain_weighted
from small_problems import global_randomness_untouched

NUM_ITEMS = 9


def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(num, seed):
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 3, generator=source, dtype=torch.float64)
    return inputs, torch.randint(2, (num,), generator=source)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


ITEMS, QUERIES = data(NUM_ITEMS, 0), data(5, 1)
OUTCOMES = {"loss": (cross_entropy, QUERIES)}
FULL = np.ones((1, NUM_ITEMS), dtype=bool)
MINI_BATCHES = Recipe(15, 0.2, momentum=0.9, weight_decay=0.01, batch_size=4, schedule="cosine")
WHOLE = Recipe(15, 0.2, momentum=0.5, weight_decay=0.01)


def retrained(weights, recipe=WHOLE, items=ITEMS, **changes):
    settings = {"outcomes": OUTCOMES, "seeds": [3], **changes}
    found = retrain_weighted(classifier(), cross_entropy, items, weights, recipe, **settings)
    return found["loss"]


@pytest.mark.parametrize("recipe", [MINI_BATCHES, WHOLE], ids=["mini-batches", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_give_the_bits_of_retraining_on_all_items(recipe, dtype):
    model, items = classifier().to(dtype), (ITEMS[0].to(dtype), ITEMS[1])
    outcomes = {"loss": (cross_entropy, (QUERIES[0].to(dtype), QUERIES[1]))}
    arguments = {"outcomes": outcomes, "seeds": [3, 8]}
    expected = retrain(model, cross_entropy, items, FULL, recipe, **arguments)["loss"]
    found = retrain_weighted(
        model, cross_entropy, items, np.ones((1, NUM_ITEMS)), recipe, **arguments
    )
    assert found["loss"].shape == (1, 2, 5) and found["loss"].dtype == np.float64
    assert np.array_equal(found["loss"][0], expected[:, 0])


def test_data_of_an_item_without_weight_do_not_matter():
    weights = np.ones((1, NUM_ITEMS))
    weights[0, 4] = 0
    other = (ITEMS[0].clone(), ITEMS[1].clone())
    other[0][4], other[1][4] = 7.0, 1 - other[1][4]
    found = retrained(weights, MINI_BATCHES)
    assert np.array_equal(found, retrained(weights, MINI_BATCHES, other))
    ones = np.ones((1, NUM_ITEMS))
    assert not np.allclose(
        retrained(ones, MINI_BATCHES), retrained(ones, MINI_BATCHES, other), atol=1e-3
    )


def test_an_item_of_weight_two_is_that_item_twice():
    twice = tuple(torch.cat([leaf, leaf[4:5]]) for leaf in ITEMS)
    weights = np.ones(NUM_ITEMS)
    weights[4] = 2
    scaled = weights[None] * NUM_ITEMS / (NUM_ITEMS + 1)  # for a mean over one item fewer
    found = retrained(scaled, init="checkpoint")
    expected = retrained(np.ones((1, NUM_ITEMS + 1)), items=twice, init="checkpoint")
    assert np.abs(found - expected).max() < 1e-10


def test_weighted_linear_regression_ends_at_its_closed_form():
    # quadratic with eigenvalues between .5 and 4, so 300 steps leave (1 - .4·.5)^300 < 1e-28
    source = np.random.default_rng(0)
    x = np.linalg.qr(source.normal(size=(8, 3)))[0] * np.sqrt(8 * np.array([0.5, 1, 2]))
    y = source.normal(size=8)
    weights = np.array([[1.0] * 8, [0, 1, 2, 1, 0.5, 1, 1, 1.5], [1, 1, 1, -0.1, 1, 1, 1, 1]])
    decay = 0.3
    model = nn.Linear(3, 1, bias=False).double()
    items = (torch.from_numpy(x), torch.from_numpy(y))

    def squared_error(model, batch):
        return 0.5 * (model(batch[0])[:, 0] - batch[1]).square()

    outcomes = {"weight": (lambda m, q: m(q)[:, 0], torch.eye(3, dtype=torch.float64))}
    found = retrain_weighted(
        model, squared_error, items, weights, Recipe(300, 0.4, weight_decay=decay),
        outcomes=outcomes, seeds=[0, 1],
    )["weight"]  # fmt: skip
    for row, values in zip(weights, found, strict=True):
        expected = np.linalg.solve((x.T * row) @ x / 8 + decay * np.eye(3), (x.T * row) @ y / 8)
        assert np.abs(values - expected).max() < 1e-10


def test_rows_of_a_seed_share_initial_weights_and_the_order_of_items():
    # rows that differ by 1e-6 end 1e-6 apart: other batches or starts would be .01 or more
    weights = np.ones((2, NUM_ITEMS))
    weights[1, 2] += 1e-6
    found = retrained(weights, MINI_BATCHES, seeds=[0, 1])
    assert 0 < np.abs(found[1] - found[0]).max() < 1e-4
    assert np.abs(found[:, 1] - found[:, 0]).max() > 1e-2


def test_weighted_networks_do_not_depend_on_their_stack():
    weights = np.random.default_rng(0).uniform(0, 2, size=(3, NUM_ITEMS))
    weights[2, :4] *= -0.2
    stacked = retrained(weights, MINI_BATCHES, seeds=[0, 5])
    one_by_one = retrained(weights, MINI_BATCHES, seeds=[0, 5], networks_per_stack=1)
    last = retrained(weights[2:], MINI_BATCHES, seeds=[5])
    assert stacked.shape == (3, 2, 5)
    assert np.abs(stacked - one_by_one).max() < 1e-12
    assert np.abs(stacked[2:, 1:] - last).max() < 1e-12


def test_weighted_training_starts_at_the_checkpoint_where_it_is_asked_to():
    weights = np.ones((1, NUM_ITEMS))
    still = retrained(weights, Recipe(1, 1e-300), init="checkpoint", seeds=[0])
    expected = cross_entropy(classifier(), QUERIES).detach().numpy()
    assert np.abs(still[0, 0] - expected).max() < 1e-12


def test_weighted_retraining_leaves_the_global_random_state_alone():
    with global_randomness_untouched():
        retrained(np.ones((1, NUM_ITEMS)), MINI_BATCHES)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(NUM_ITEMS), r"weights have shape \(9,\); expected \[W, 9\]"),
        (np.ones((2, 4)), r"weights have shape \(2, 4\); expected \[W, 9\]"),
        (np.ones((0, NUM_ITEMS)), r"weights have shape \(0, 9\); expected \[W, 9\]"),
        (np.full((1, NUM_ITEMS), np.nan), "row 0 of the weights gives item 0 the weight nan"),
        (np.full((1, NUM_ITEMS), np.inf), "row 0 of the weights gives item 0 the weight inf"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        retrained(weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 0]}, "seeds are .*all different"),
        ({"seeds": [0, 1], "init": "checkpoint"}, "no randomness"),
        ({"networks_per_stack": 0}, "networks_per_stack is 0; expected at least 1"),
        ({"outcomes": {}}, "outcomes are empty"),
        ({"recipe": Recipe(2, 0.1, batch_size=10)}, "batch_size is 10, but a subset holds 9"),
    ],
)
def test_arguments_of_weighted_retraining_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        retrained(np.ones((1, NUM_ITEMS)), **changes)


def test_a_network_that_its_weights_let_diverge_is_named_by_row_and_seed():
    weights = np.ones((2, NUM_ITEMS))
    weights[1] = -1e200
    with pytest.raises(FloatingPointError, match="first with row of weights 1 and seed 7"):
        retrained(weights, Recipe(30, 1e200), seeds=[7])
