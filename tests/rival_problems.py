"""Small float64 problems and dense references that the tests of the rivals share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import bif
from bif import losses
from small_problems import filled, integers, normal

EXACT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-12}
"""Relative, as two float64 solves of one well-conditioned system agree."""

GN = "gauss_newton"


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, **EXACT)


def mlp(*, seed: int = 0) -> nn.Module:
    """64 inputs, 16 tanh units, 10 classes: 1,210 weights."""
    with torch.random.fork_rng(devices=[]):
        return filled(
            nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)), seed=seed, scale=0.2
        )


def mlp_problem(**changed: Any) -> bif.Problem:
    """40 items and 6 queries of the MLP, loss and margin."""
    return problem_of(
        mlp(),
        train=(normal(40, 64, seed=1), integers(10, 40, seed=2)),
        queries=(normal(6, 64, seed=3), integers(10, 6, seed=4)),
        **changed,
    )


def problem_of(model: nn.Module, **changed: Any) -> bif.Problem:
    """A problem with loss and margin as observables."""
    given: dict[str, Any] = {
        "loss": losses.cross_entropy,
        "observables": [bif.Observable("loss", losses.cross_entropy, "lower"), bif.MARGIN],
        **changed,
    }
    return bif.Problem(model, given.pop("loss"), **given)


def regression_problem(
    num_outputs: int = 1, **changed: Any
) -> tuple[bif.Problem, Tensor, Tensor, Tensor]:
    """Linear regression without bias: the problem, inputs `[N, 4]`, residuals `[N, K]`, weights."""
    with torch.random.fork_rng(devices=[]):
        model = filled(nn.Linear(4, num_outputs, bias=False))
    x, y = normal(30, 4, seed=1), normal(30, num_outputs, seed=2)
    queries = (normal(7, 4, seed=3), normal(7, num_outputs, seed=4))
    problem = bif.Problem(model, losses.squared_error, train=(x, y), queries=queries, **changed)
    w = next(model.parameters()).detach()
    return problem, x, y - x @ w.T, w


def scores_of(method: Any, problem: bif.Problem, **given: Any) -> Tensor:
    """Return the scores of a rival that is fitted first to the same problem."""
    names = ("damping", "damping_scale", "observable")
    asked = {name: given.pop(name) for name in names if name in given}
    return method.fit(problem, **given).scores(problem, **asked)


def flat_function(problem: bif.Problem, function: Any, batch: Any) -> tuple[Any, Tensor]:
    """`function` of all weights as one vector, and that vector."""
    model = problem.evaluation_copy(problem.device)
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def of(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        at = {n: x.view(p.shape) for (n, p), x in zip(named.items(), parts, strict=True)}
        call: Any = lambda *args, **kw: functional_call(model, at, args, kw)  # noqa: E731
        return function(call, batch)

    return of, torch.cat([p.detach().flatten() for p in named.values()])


def dense_gradients(problem: bif.Problem, function: Any, batch: Any) -> Tensor:
    """`[N, P]`, by one Jacobian."""
    of, flat = flat_function(problem, lambda m, b: losses.per_item(function(m, b)), batch)
    return jacrev(of)(flat)


def dense_hessian(problem: bif.Problem) -> Tensor:
    """Of the weighted mean train loss, row by row.

    `torch.func.hessian` takes all rows at once by vmap, under which the second derivative of an
    affine LayerNorm is wrong in torch 2.13.
    """
    rho = torch.ones(problem.num_train).double()
    rho = rho if problem.train_weights is None else problem.train_weights
    of, flat = flat_function(
        problem,
        lambda m, b: (rho * losses.per_item(problem.loss(m, b))).mean(),
        problem.train.data,
    )
    found: Any = torch.autograd.functional.hessian(of, flat)
    return found


def dense_gauss_newton(problem: bif.Problem, *, softmax: bool = True) -> Tensor:
    """`(1/n) Σ rho_i Jᵀ H J` of outputs `[N, C]` or `[N, T, C]`; H of softmax or the identity."""
    of, flat = flat_function(problem, lambda m, b: m(b[0]), problem.train.data)
    outputs, jacobian = of(flat), jacrev(of)(flat)
    classes = outputs.shape[-1]
    curvature = torch.eye(classes).double().expand(*outputs.shape, classes)
    if softmax:
        p = outputs.softmax(dim=-1)
        curvature = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    if problem.train_weights is not None:
        extra = (1,) * (curvature.dim() - 1)
        curvature = curvature * problem.train_weights.view(-1, *extra)
    product = curvature @ jacobian
    return jacobian.flatten(0, -2).T @ product.flatten(0, -2) / len(outputs)


def dense_scores(problem: bif.Problem, damped: Tensor, function: Any = None) -> Tensor:
    """`-g_phiᵀ damped⁻¹ g_i`, by one solve."""
    function = function or problem.loss
    train = dense_gradients(problem, problem.loss, problem.train.data)
    queries = torch.cat(
        [dense_gradients(problem, function, g.data) for g in problem.query_groups.values()]
    )
    return -queries @ torch.linalg.solve(damped, train.T)


def damped(matrix: Tensor, damping: float) -> Tensor:
    return matrix + damping * torch.eye(len(matrix)).to(matrix)


class TokenModel(nn.Module):
    """A vocabulary of 5, embedded in 3 dimensions, a layer, logits: like a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(input_ids))))


def tokens(weights: Tensor | None = None) -> tuple[bif.Problem, Tensor]:
    """20 sequences of 4 tokens, the last of some masked; and which positions count `[N, 4]`."""
    with torch.random.fork_rng(devices=[]):
        model = filled(TokenModel())
    mask = torch.ones(20, 4, dtype=torch.int64)
    mask[::3, 3] = 0
    train = {"input_ids": integers(5, 20, 4, seed=1), "attention_mask": mask}
    queries = {"input_ids": integers(5, 6, 4, seed=2),
               "attention_mask": torch.ones(6, 4, dtype=torch.int64)}  # fmt: skip
    problem = bif.Problem(
        model, losses.next_token, train=train, queries=queries, train_weights=weights
    )
    counted = torch.cat([mask[:, 1:], torch.zeros(20, 1, dtype=torch.int64)], dim=1)
    return problem, counted.double()


def token_jacobian(problem: bif.Problem) -> Tensor:
    """`[N, T, C, P]`."""
    params = {n: p.detach() for n, p in problem.model.named_parameters()}
    ids = problem.train.data["input_ids"]
    parts = jacrev(lambda p: functional_call(problem.model, p, (ids,)))(params)
    return torch.cat([parts[n].flatten(3) for n in params], dim=3)
