"""The explainer against a stand-in with the protocol of quanda 0.5."""

import sys
import types
from abc import ABC, abstractmethod

import numpy as np
import pytest
import torch

import bif
from bif.interop import quanda
from small_problems import TINY, Pairs, labelled, network

TRAIN, QUERIES = labelled(20, seed=1), labelled(5, seed=2)
ROUNDING = 2.0**-23
"""Of two numbers to float32 each; what goes before is in float64."""


class Explainer(ABC):
    """What quanda's base class does with the same arguments."""

    accepted_tasks: list[str] = []

    def __init__(
        self,
        model,
        train_dataset,
        task="image_classification",
        checkpoints=None,
        checkpoints_load_func=None,
        **kwargs,
    ):
        if task not in self.accepted_tasks:
            raise ValueError(f"Task {task} not supported by this explainer.")
        self.model, self.train_dataset = model, train_dataset
        self.device = str(next(model.parameters()).device)
        self.checkpoints = [] if checkpoints is None else checkpoints

    @abstractmethod
    def explain(self, test_data, targets):
        raise NotImplementedError

    def self_influence(self, batch_size=32):
        raise AssertionError("the explainer has its own")


@pytest.fixture
def stand_in(monkeypatch):
    """`quanda.explainers` with the class above."""
    package, module = types.ModuleType("quanda"), types.ModuleType("quanda.explainers")
    module.Explainer = Explainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quanda", package)
    monkeypatch.setitem(sys.modules, "quanda.explainers", module)
    quanda.explainer_class.cache_clear()
    yield module
    quanda.explainer_class.cache_clear()


def explainer(**given):
    return quanda.BIFExplainer(
        **{"model": network(), "train_dataset": Pairs(*TRAIN), "settings": TINY, **given}
    )


def expected(*observables):
    """The derivative of the first observable, [Q, N]."""
    problem = bif.Problem(
        network(),
        bif.losses.cross_entropy,
        train=TRAIN,
        queries=QUERIES,
        observables=observables or None,
    )
    settings = bif.calibrate(problem, TINY).settings
    dataset = bif.attribute(problem, settings).influence.dataset
    return dataset["derivative"].values[0], dataset["self_influence"].values


def test_it_is_an_explainer_of_quandas_with_the_shape_and_sign_that_quanda_wants(stand_in):
    subject = explainer()
    assert isinstance(subject, stand_in.Explainer) and type(subject).__name__ == "BIFExplainer"
    found = subject.explain(*QUERIES)
    derivative, _ = expected()
    assert found.shape == (5, 20) and found.dtype == torch.float32
    assert np.array_equal(found.numpy(), (-derivative).astype(np.float32))


def test_a_margin_is_not_flipped(stand_in):
    found = explainer(observable=bif.MARGIN).explain(*QUERIES)
    derivative, _ = expected(bif.MARGIN)
    assert np.array_equal(found.numpy(), derivative.astype(np.float32))


def test_a_copy_of_the_query_helps_it(stand_in):
    x, y = TRAIN
    scores = explainer(settings=bif.Settings(chains=8, draws=60)).explain(x[:3], y[:3])
    assert (scores[range(3), range(3)] > 0).all()


def test_batches_agree_with_all_at_once_and_items_that_are_known_are_not_sampled_again(
    stand_in, monkeypatch
):
    x, y = QUERIES
    whole, pieces = explainer(), explainer()
    all_at_once = whole.explain(x, y)
    in_pieces = torch.cat([pieces.explain(x[:2], y[:2].tolist()), pieces.explain(x[2:], y[2:])])
    # the same chains; sums over other numbers of columns round in another order
    assert torch.allclose(all_at_once, in_pieces, rtol=ROUNDING, atol=0)
    module = sys.modules["bif.runs.attribute"]  # the name in the package is the function's
    monkeypatch.setattr(module, "attribute", lambda *_: pytest.fail("sampled again"))
    assert torch.equal(whole.explain(x[[4, 0]], y[[4, 0]]), all_at_once[[4, 0]])
    with pytest.raises(pytest.fail.Exception, match="sampled again"):
        whole.explain(x[:1], (y[:1] + 1) % 3)  # another label is another query


def test_self_influence_is_the_variance_of_the_losses_and_positive(stand_in):
    subject = explainer()
    found = subject.self_influence(batch_size=7)
    _, self_influence = expected()
    assert (found > 0).all() and found.shape == (20,)
    assert np.allclose(found.numpy(), -self_influence, rtol=ROUNDING, atol=0)
    subject.explain(*QUERIES)
    assert torch.allclose(subject.self_influence(), found, rtol=ROUNDING, atol=0)


def test_dict_batches_get_the_targets_as_labels(stand_in):
    class Dicts(Pairs):
        def __getitem__(self, index):
            return {"x": self.tensors[0][index], "labels": self.tensors[1][index]}

    def loss(model, batch):
        return bif.losses.cross_entropy(model, (batch["x"], batch["labels"]))

    subject = explainer(train_dataset=Dicts(*TRAIN), loss=loss, task="text_classification")
    found = subject.explain({"x": QUERIES[0]}, QUERIES[1])
    # Known losses of bif.losses go through a proxy; a user's own does not.
    itself = bif.Observable("loss", bif.losses.cross_entropy, "lower")
    expected = explainer(observable=itself).explain(*QUERIES)
    assert torch.allclose(found, expected, rtol=ROUNDING, atol=0)


def test_model_and_data_are_left_as_they_are(stand_in):
    model = network()
    before = [p.clone() for p in model.parameters()]
    explainer(model=model).explain(*QUERIES)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_tasks_and_observables_that_cannot_be_explained_are_refused(stand_in):
    with pytest.raises(ValueError, match="Task causal_lm not supported"):
        explainer(task="causal_lm")
    undirected = bif.Observable("logit", bif.losses.margin)
    with pytest.raises(ValueError, match="observable 'logit' does not say whether lower or higher"):
        explainer(observable=undirected)


def test_without_quanda_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "quanda", None)
    quanda.explainer_class.cache_clear()
    with pytest.raises(
        ModuleNotFoundError, match="BIFExplainer needs quanda, .* pip install quanda"
    ):
        quanda.BIFExplainer  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        quanda.Other  # noqa: B018
