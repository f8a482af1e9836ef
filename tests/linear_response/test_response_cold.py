"""Responses at temperature 0 against dense Hessians and Gauss-Newton matrices, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import bif
from bif.linear_response.bregman import bregman_divergence
from bif.response import respond
from bif.sampling.oracles import StackedOracle
from bif.types import Batch, ItemLoss, Params
from response_problems import Dense
from small_problems import classification, filled, labelled, network, normal

# The error of finite h is quadratic in it; results are stored in float32.
SMALL = 1e-4
PRECISION = 1e-6
# Everything given, so that no pilot run is needed; the friction is critical for gamma.
SETTINGS = bif.Settings(nbeta=20.0, gamma=4.0, step_size=0.13, friction=4.0, burn_in=50, thin=2)


def regression(num_outputs: int = 1) -> bif.Problem:
    """12 items and 4 queries of a tanh network with one output, or several."""
    with torch.random.fork_rng(devices=[]):
        model = filled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, num_outputs)), seed=4)

    def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
        targets = normal(count, num_outputs, seed=seed + 1)
        return normal(count, 3, seed=seed), targets if num_outputs > 1 else targets[:, 0]

    return bif.Problem(model, bif.losses.squared_error, train=pairs(12, 30), queries=pairs(4, 40))


PROBLEMS = {
    "classification": classification,
    "regression": regression,
    "regression of three outputs": lambda: regression(3),
}


DECAYS = (0.05, 0.0, 0.0)
CASES = list(zip(PROBLEMS.values(), DECAYS, strict=True))
NAMES = [f"{name}, decay {decay}" for name, decay in zip(PROBLEMS, DECAYS, strict=True)]


def assert_same(scores: np.ndarray, expected: Tensor) -> None:
    """Relative to the largest score of each query."""
    scale = expected.abs().amax(dim=1, keepdim=True)
    assert float(((torch.as_tensor(scores) - expected) / scale).abs().max()) < PRECISION


# --- The true Hessian -----------------------------------------------------------------------------


@pytest.mark.parametrize("make, decay", CASES, ids=NAMES)
def test_it_is_influence_with_the_damped_hessian_at_the_minimum(make, decay: float):
    problem, settings = make(), replace(SETTINGS, weight_decay=decay)
    found = respond(problem, settings, temperature=0.0, h=SMALL)
    assert found.warnings == ()
    dense = Dense.of(problem, settings, problem.loss)
    w = dense.minimum()
    curvature = hessian(dense.potential)(w)
    exact = dense.influence(w, curvature)
    assert_same(found.scores, exact)
    # Neither the Hessian nor gradients at w*, which is no minimum, nor one without decay will do.
    elsewhere = dense.influence(dense.center, gauss_newton(dense, problem, dense.center))
    for wrong in (-exact, elsewhere):
        with pytest.raises(AssertionError):
            assert_same(found.scores, wrong)


def test_from_a_trained_model_it_is_the_classical_influence():
    problem = classification()
    dense = Dense.of(problem, SETTINGS, problem.loss)
    # Train the mean loss with an L2 penalty of its own, so that w* is a minimum of U with decay.
    trained = penalised_minimum(dense)
    parts = trained.split([p.numel() for p in problem.model.parameters()])
    model = network()
    with torch.no_grad():
        for p, x in zip(model.parameters(), parts, strict=True):
            p.copy_(x.view_as(p))
    settings = replace(SETTINGS, gamma=0.4, weight_decay=0.02, friction=1.8)
    problem = classification(model=model)
    dense = Dense.of(problem, settings, problem.loss)
    assert jacrev(dense.potential)(dense.center).norm() < 1e-9
    found = respond(problem, settings, temperature=0.0, h=SMALL)
    exact = dense.influence(dense.center, hessian(dense.potential)(dense.center))
    assert_same(found.scores, exact)


def penalised_minimum(dense: Dense) -> Tensor:
    """The minimum of `nbeta·(L + 0.01·|w|²)`."""
    pulled = replace(dense, center=0 * dense.center, gamma=0.02 * dense.nbeta)
    return pulled.minimum(start=dense.center)


@pytest.mark.parametrize("name", ["margin"])
def test_other_observables_are_perturbed_as_themselves(name: str):
    problem = classification()
    found = respond(problem, SETTINGS, temperature=0.0, h=SMALL, observable=name)
    dense = Dense.of(problem, SETTINGS, bif.losses.margin)
    w = dense.minimum()
    assert_same(found.scores, dense.influence(w, hessian(dense.potential)(w)))


def test_train_weights_enter_the_potential_only():
    weights = torch.linspace(0, 2, 20).double()
    problem = classification(train_weights=weights)
    found = respond(problem, SETTINGS, temperature=0.0, h=SMALL)
    dense = Dense.of(problem, SETTINGS, problem.loss)
    unweighted = dense.train
    weighted = replace(dense, train=lambda w: weights * unweighted(w))
    w = weighted.minimum()
    assert_same(found.scores, dense.influence(w, hessian(weighted.potential)(w)))


def test_the_error_of_finite_h_is_quadratic_and_its_estimate_is_right():
    problem = classification()
    dense = Dense.of(problem, SETTINGS, problem.loss)
    w = dense.minimum()
    exact = dense.influence(w, hessian(dense.potential)(w)).numpy()
    gaps = [
        np.sqrt(np.mean((respond(problem, SETTINGS, temperature=0.0, h=h).scores - exact) ** 2))
        for h in (0.2, 0.1)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)
    chosen = respond(problem, SETTINGS, temperature=0.0)
    gap = np.sqrt(np.mean((chosen.scores - exact) ** 2, axis=1) / np.mean(exact**2, axis=1))
    assert chosen.bias < 1e-4
    # The bias is the root mean square over the pilot's queries, four of these five.
    assert chosen.bias / 3 < np.sqrt(np.mean(gap**2)) < 3 * chosen.bias
    norms = Dense.of(problem, SETTINGS, problem.loss)
    slopes = jacrev(norms.queries)(norms.center).norm(dim=1).numpy()
    np.testing.assert_allclose(chosen.h * slopes, chosen.h[0] * slopes[0], rtol=1e-6)


def test_what_calibration_chooses_gets_there_too():
    problem, asked = classification(), bif.Settings(nbeta=20.0, gamma=4.0)
    found = respond(problem, asked, temperature=0.0, h=SMALL)
    assert found.settings.friction == pytest.approx(4.0)
    dense = Dense.of(problem, asked, problem.loss)
    w = dense.minimum()
    assert_same(found.scores, dense.influence(w, hessian(dense.potential)(w)))


def test_a_descent_that_is_cut_short_says_so():
    found = respond(classification(), SETTINGS, temperature=0.0, h=SMALL, steps=6)
    assert found.num_steps == 6
    assert "were not reached to 1 % in 6 steps: raise steps" in found.warnings[0]


def test_errors_know_how_coarsely_losses_are_computed():
    problem = classification(model=network().float(), train=single(20, 1), queries=single(5, 2))
    coarse = replace(SETTINGS, gradient_precision="bfloat16", loss_precision="bfloat16")
    exact, found = (respond(problem, s, temperature=0.0, h=0.1) for s in (SETTINGS, coarse))
    off = np.abs(found.scores - exact.scores)
    assert off.max() > 100 * exact.standard_error.max()
    assert (off <= 2 * found.standard_error).all()


def single(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Items in float32, which autocast computes otherwise."""
    inputs, classes = labelled(count, seed=seed)
    return inputs.float(), classes


def test_there_is_no_correlation_without_a_spread():
    dataset = respond(classification(), SETTINGS, temperature=0.0, h=SMALL).influence.dataset
    assert dataset["correlation"].isnull().all() and dataset["self_influence"].isnull().all()
    assert dataset["influence"].notnull().all() and dataset.attrs["temperature"] == 0.0


# --- Bregman divergence: the Gauss-Newton matrix --------------------------------------------------


def outputs(problem: bif.Problem, w: Tensor) -> Tensor:
    """The model's outputs on the train items, `[N, K]`."""
    shapes = {n: p.shape for n, p in problem.model.named_parameters()}
    parts = w.split([s.numel() for s in shapes.values()])
    named = {n: x.view(s) for (n, s), x in zip(shapes.items(), parts, strict=True)}
    return functional_call(problem.model, named, (problem.train.data[0],))


def gauss_newton(dense: Dense, problem: bif.Problem, w: Tensor) -> Tensor:
    """`nbeta/n·Σ Jᵢᵀ (∂²l/∂f²) Jᵢ + gamma + nbeta·decay`, written out."""
    jacobian = jacrev(lambda w: outputs(problem, w))(w)  # [N, K, P]
    f = outputs(problem, w)
    if problem.loss is bif.losses.cross_entropy:
        p = f.softmax(dim=-1)
        middle = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    else:
        middle = torch.eye(f.shape[1]).double().expand(len(f), -1, -1)
    matrix = torch.einsum("nkp,nkl,nlq->pq", jacobian, middle, jacobian) / len(f)
    pull = dense.gamma + dense.nbeta * dense.decay
    return dense.nbeta * matrix + pull * torch.eye(len(w)).double()


@pytest.mark.parametrize("make, decay", CASES, ids=NAMES)
def test_bregman_is_influence_with_the_gauss_newton_matrix_at_the_center(make, decay: float):
    problem, settings = make(), replace(SETTINGS, weight_decay=decay)
    found = respond(problem, settings, temperature=0.0, curvature="gauss_newton", h=SMALL)
    dense = Dense.of(problem, settings, problem.loss)
    exact = dense.influence(dense.center, gauss_newton(dense, problem, dense.center))
    assert_same(found.scores, exact)
    hessian_there = hessian(dense.potential)(dense.center)
    if torch.linalg.eigvalsh(hessian_there)[0] > 0:
        with pytest.raises(AssertionError):
            assert_same(found.scores, dense.influence(dense.center, hessian_there))


def token_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return filled(nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)), seed=9)


class Tokens(nn.Module):
    """Logits of the next token, by keyword as language models are called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = token_model()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.inner(input_ids)


def token_batch(count: int, *, seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, (count, 5), generator=source)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    labels = ids.clone()
    labels[1, 2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


TOKEN_LOSSES = [bif.losses.next_token, bif.losses.next_token_mean]
REGRESSION = normal(6, 4, seed=2), normal(6, seed=3)
FLAT_CASES = [
    (network, bif.losses.cross_entropy, labelled(6, seed=1)),
    (lambda: filled(nn.Linear(4, 1)), bif.losses.squared_error, REGRESSION),
    *((Tokens, loss, token_batch(6, seed=5)) for loss in TOKEN_LOSSES),
]


@pytest.mark.parametrize("make, loss, batch", FLAT_CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_the_divergence_is_flat_at_the_center_and_differs_by_a_linear_term(make, loss, batch):
    center, model = make(), make()
    divergence = bregman_divergence(loss, center)
    own = bif.losses.per_item(divergence(model, batch))
    assert own.abs().max() < 1e-14
    gradients = torch.autograd.grad(own.sum(), list(model.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-14
    # Away from the center it is the loss's increase without its first-order term in the outputs.
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.3 * normal(*p.shape, seed=60 + i)
    got = bif.losses.per_item(divergence(model, batch))
    expected = increase_beyond_first_order(loss, model, center, batch)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert (got >= -1e-14).all() and (got > 1e-4).any()


def increase_beyond_first_order(
    loss: ItemLoss, model: nn.Module, center: nn.Module, batch: object
) -> Tensor:
    """`l(f) - l(f*) - ∇l(f*)·(f - f*)` by automatic differentiation in the outputs."""

    class Fixed(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, *inputs: object, **named: object) -> Tensor:
            return self.logits

    inputs = (batch["input_ids"],) if isinstance(batch, dict) else (batch[0],)  # type: ignore[index]
    f, f_center = model(*inputs).detach(), center(*inputs).detach().requires_grad_()
    at_center = bif.losses.per_item(loss(Fixed(f_center), batch))
    (slope,) = torch.autograd.grad(at_center.sum(), [f_center])
    linear = (slope * (f - f_center)).flatten(1).sum(dim=1)
    return (bif.losses.per_item(loss(Fixed(f), batch)) - at_center - linear).detach()


def test_a_loss_without_a_known_form_is_refused():
    problem = classification(loss=lambda model, batch: bif.losses.cross_entropy(model, batch))
    with pytest.raises(ValueError, match="Bregman divergence .* expected one of bif.losses.cross"):
        respond(problem, SETTINGS, temperature=0.0, curvature="gauss_newton")


def test_token_losses_respond_too():
    problem = bif.Problem(
        Tokens(),
        bif.losses.next_token,
        train=token_batch(8, seed=7),
        queries=token_batch(3, seed=8),
    )
    found = respond(problem, SETTINGS, temperature=0.0, curvature="gauss_newton", h=SMALL)
    assert np.isfinite(found.scores).all() and found.warnings == ()


def test_the_pilot_holds_no_more_at_once_than_a_block_of_chains(monkeypatch):
    """It has a pair for each of several sizes of the perturbation, all in one stack."""
    at_once: list[int] = []
    gradient = StackedOracle.gradient

    def seen(self: StackedOracle, params: Params, batch: Batch, weights: Tensor, **more: bool):
        if not more["per_chain"]:
            at_once.append(len(next(iter(params.values()))) * len(weights))
        return gradient(self, params, batch, weights, **more)

    monkeypatch.setattr(StackedOracle, "gradient", seen)
    settings = bif.Settings(
        nbeta=60.0, gamma=20.0, block_size=8, chunk_size=10, oracle="stacked", burn_in=1, thin=1,
        step_size=0.1, friction=8.0,
    )  # fmt: skip
    found = respond(classification(), settings, temperature=0.0)
    assert at_once and max(at_once) <= 8 * 10
    wide = respond(
        classification(), replace(settings, block_size=64, chunk_size=20), temperature=0.0
    )
    np.testing.assert_allclose(found.scores, wide.scores, rtol=1e-3, atol=1e-6)
