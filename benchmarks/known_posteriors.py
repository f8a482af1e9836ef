"""Posteriors that are not quadratic and whose scores are known, by quadrature or long exact runs.

Losses are written here once more in float64, and the long runs are Hamiltonian Monte Carlo with an
accept step, so nothing of the library's models, samplers or estimates is in a reference.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bif
from benchmarks.common import minimise_
from bif.types import Batch, Target

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Losses `[K, N]` of items at weights `[K, d]`."""

_GRID = {1: 4001, 2: 401, 3: 121}
"""Points along an axis, by the number of weights; half as many give the same answer."""
_NEGLIGIBLE = 1e-13
"""Density in units of the largest below which the grid ends."""
_CHAINS, _GROUPS, _WARM_UP, _DRAWS = 2048, 64, 200, 500
_LEAPFROGS, _LENGTH = 5, 1.5
_MAX_LOSSES = 2**22
"""Losses that exist at a time."""


@dataclass(frozen=True)
class KnownProblem:
    """A problem with its losses in closed form.

    Attributes:
        name: The problem's name in tables.
        model: The model at w*, in float32, as a user has it.
        loss: The loss of the model.
        losses: The same loss in float64, of flat weights.
        train: Items `(x, y)`, float64.
        queries: Queries `(x, y)`, float64.
        retrained_from: The answer that settings are given.
    """

    name: str
    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    losses: Losses
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    retrained_from: Target | None = None

    @property
    def center(self) -> Tensor:
        """w*, flat: as rounded as the model has it."""
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).double()

    def problem(self) -> bif.Problem:
        """Return the problem as the library takes it."""
        single = [tuple(_to_float32(x) for x in part) for part in (self.train, self.queries)]
        # The references are of the loss itself, not through its margin.
        return bif.Problem(
            self.model, self.loss, train=single[0], queries=single[1]
        ).without_proxies()

    def potential(self, weights: Tensor, *, nbeta: float, gamma: float) -> Tensor:
        """Return the potential U `[K]`."""
        away = (weights - self.center).square().sum(dim=1)
        return nbeta * self.losses(weights, *self.train).mean(dim=1) + 0.5 * gamma * away


@dataclass(frozen=True)
class Reference:
    """The exact answer.

    Attributes:
        scores: `-Cov(l_i, phi_q)`, `[Q, N]`.
        self_influence: `-Var(l_i)`, `[N]`.
        scores_error: Standard error of a long run, 0 by quadrature, `[Q, N]`.
        self_error: Standard error of the self-influence, likewise, `[N]`.
        rhat: Largest R-hat of a long run, 1 by quadrature.
    """

    scores: np.ndarray
    self_influence: np.ndarray
    scores_error: np.ndarray
    self_error: np.ndarray
    rhat: float


def reference(known: KnownProblem, *, nbeta: float, gamma: float, folder: Path | None) -> Reference:
    """Return the exact answer: by quadrature up to three weights, else by a long run.

    A long run is kept in `folder`.
    """
    weights = len(known.center)
    if weights in _GRID:
        return quadrature(known, nbeta=nbeta, gamma=gamma)
    content = [known.center, *known.train, *known.queries]
    facts = b"".join(x.numpy().tobytes() for x in content) + f"{nbeta:.12g} {gamma:.12g}".encode()
    name = f"{known.name.replace(' ', '-')}-{hashlib.sha256(facts).hexdigest()[:16]}.npz"
    path = None if folder is None else folder / name
    if path is not None and path.exists():
        with np.load(path) as kept:
            return Reference(**{k: kept[k] for k in kept.files if k != "rhat"}, rhat=kept["rhat"])
    found = long_run(known, nbeta=nbeta, gamma=gamma)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(found))
    return found


def quadrature(known: KnownProblem, *, nbeta: float, gamma: float) -> Reference:
    """Return the exact answer by sums over a grid that ends where the density is negligible."""
    center, d = known.center, len(known.center)
    w = center.clone().unsqueeze(0).requires_grad_()
    (gradient,) = torch.autograd.grad(known.potential(w, nbeta=nbeta, gamma=gamma).sum(), w)
    reach = 8 / math.sqrt(gamma) + float(gradient.norm()) / gamma
    low, high = center - reach, center + reach
    per_axis = _GRID[d]
    for _ in range(8):
        axes = [torch.linspace(float(a), float(b), per_axis, dtype=torch.float64)
                for a, b in zip(low, high, strict=True)]  # fmt: skip
        points = torch.cartesian_prod(*axes).reshape(-1, d)
        U = torch.cat([known.potential(part, nbeta=nbeta, gamma=gamma)
                       for part in _chunks(points, known)])  # fmt: skip
        there = U - U.min() < -math.log(_NEGLIGIBLE)
        spacing = (high - low) / (per_axis - 1)
        new_low = points[there].min(dim=0).values - 2 * spacing
        new_high = points[there].max(dim=0).values + 2 * spacing
        settled = bool(((new_high - new_low) > 0.9 * (high - low)).all())
        if settled:
            break
        low, high = new_low, new_high
    points, U = points[there], U[there]
    density = torch.exp(U.min() - U)
    density /= density.sum()
    parts = list(zip(_chunks(points, known), density.split(_chunk_size(known)), strict=True))
    mean_train = torch.stack([p @ known.losses(w, *known.train) for w, p in parts]).sum(0)
    mean_query = torch.stack([p @ known.losses(w, *known.queries) for w, p in parts]).sum(0)
    products = torch.zeros(len(mean_query), len(mean_train), dtype=torch.float64)
    squares = torch.zeros_like(mean_train)
    for w, p in parts:
        train = known.losses(w, *known.train) - mean_train
        query = known.losses(w, *known.queries) - mean_query
        products += (query * p.unsqueeze(1)).T @ train
        squares += p @ train.square()
    scores, selves = -products.numpy(), -squares.numpy()
    return Reference(scores, selves, np.zeros_like(scores), np.zeros_like(selves), 1.0)


def long_run(
    known: KnownProblem, *, nbeta: float, gamma: float, draws: int = _DRAWS, seed: int = 0
) -> Reference:
    """Return the answer of a long Hamiltonian Monte Carlo run of thousands of chains.

    Its coordinates make U round at w*.

    Half of the chains start at w*, half all over the Gaussian around it, so R-hat would tell of
    modes between which none of them moves.
    """
    source = torch.Generator().manual_seed(seed)
    center, d = known.center, len(known.center)
    normal = lambda *shape: torch.randn(*shape, generator=source, dtype=torch.float64)  # noqa: E731
    one = lambda w: known.potential(w.unsqueeze(0), nbeta=nbeta, gamma=gamma)[0]  # noqa: E731
    values, vectors = torch.linalg.eigh(torch.func.hessian(one)(center))
    to_weights = vectors * values.abs().clamp(min=gamma).rsqrt()

    def weights_of(x: Tensor) -> Tensor:
        return center + x @ to_weights.T

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        U = known.potential(weights_of(x), nbeta=nbeta, gamma=gamma)
        (force,) = torch.autograd.grad(U.sum(), x)
        return U.detach(), force

    start = normal(_CHAINS, d) / math.sqrt(gamma)
    start[: _CHAINS // 2] = 0
    x = torch.linalg.solve(to_weights, start.T).T
    U, force = potential(x)
    step, sums = _LENGTH / _LEAPFROGS, _Sums(known, draws)
    for index in range(_WARM_UP + draws):
        velocity = normal(_CHAINS, d)
        jitter = step * (0.7 + 0.6 * torch.rand(_CHAINS, 1, generator=source, dtype=torch.float64))
        new, v, new_force = x, velocity, force
        for _ in range(_LEAPFROGS):
            v = v - 0.5 * jitter * new_force
            new = new + jitter * v
            new_U, new_force = potential(new)
            v = v - 0.5 * jitter * new_force
        change = U + 0.5 * velocity.square().sum(1) - new_U - 0.5 * v.square().sum(1)
        uniform = torch.rand(_CHAINS, generator=source, dtype=torch.float64)
        accepted = uniform.log() < change.nan_to_num(-math.inf)
        x = torch.where(accepted.unsqueeze(1), new, x)
        U, force = (
            torch.where(accepted, new_U, U),
            torch.where(accepted.unsqueeze(1), new_force, force),
        )
        if index < _WARM_UP:  # tuned on the way only, so that what is kept is exact
            step *= math.exp(0.05 * (float(accepted.double().mean()) - 0.85))
        else:
            sums.add(weights_of(x))
    return sums.reference()


class _Sums:
    """Sums of losses and products of groups of chains."""

    def __init__(self, known: KnownProblem, draws: int) -> None:
        self.known, self.draws = known, draws
        num_train, num_queries = len(known.train[0]), len(known.queries[0])
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
        # About the losses at w*, so that little is lost in differences of squares.
        center = known.center.unsqueeze(0)
        self.shift = known.losses(center, *known.train), known.losses(center, *known.queries)
        self.chain_sum = zeros(_CHAINS, num_train + num_queries)
        self.chain_squares = torch.zeros_like(self.chain_sum)
        self.products = zeros(_GROUPS, num_queries, num_train)

    def add(self, weights: Tensor) -> None:
        train = self.known.losses(weights, *self.known.train) - self.shift[0]
        query = self.known.losses(weights, *self.known.queries) - self.shift[1]
        both = torch.cat([train, query], dim=1)
        self.chain_sum += both
        self.chain_squares += both.square()
        q, t = (part.unflatten(0, (_GROUPS, -1)) for part in (query, train))
        self.products += torch.einsum("gcq,gcn->gqn", q, t)

    def reference(self) -> Reference:
        num_train = len(self.known.train[0])
        count = self.draws * _CHAINS // _GROUPS
        means = self.chain_sum.unflatten(0, (_GROUPS, -1)).sum(1) / count
        squares = self.chain_squares.unflatten(0, (_GROUPS, -1)).sum(1) / count
        products, total = self.products / count, means.mean(0)

        def of(keep: Tensor) -> tuple[Tensor, Tensor]:
            mean = means[keep].mean(0)
            outer = mean[num_train:, None] * mean[None, :num_train]
            variance = squares[keep].mean(0) - mean.square()
            return -(products[keep].mean(0) - outer), -variance[:num_train]

        every = torch.arange(_GROUPS)
        scores, selves = of(every)
        left_out = [of(every[every != g]) for g in range(_GROUPS)]
        errors = [
            ((torch.stack([found[i] for found in left_out]) - full).square().sum(0)
             * (_GROUPS - 1) / _GROUPS).sqrt()
            for i, full in enumerate((scores, selves))
        ]  # fmt: skip
        within = self.chain_squares / self.draws - (self.chain_sum / self.draws).square()
        between = (self.chain_sum / self.draws - total).square().mean(0) * _CHAINS / (_CHAINS - 1)
        W = within.mean(0) * self.draws / (self.draws - 1)
        rhat = ((W * (self.draws - 1) / self.draws + between) / W).sqrt()
        return Reference(
            scores.numpy(), selves.numpy(), errors[0].numpy(), errors[1].numpy(), float(rhat.max())
        )


def _chunks(points: Tensor, known: KnownProblem) -> tuple[Tensor, ...]:
    return points.split(_chunk_size(known))


def _chunk_size(known: KnownProblem) -> int:
    return max(1, _MAX_LOSSES // len(known.train[0]))


def _to_float32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


# --- Problems -------------------------------------------------------------------------------------


class _WeightVector(nn.Module):
    """A model of weights alone."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.float())


def _weight_vector_problem(
    name: str,
    losses: Losses,
    weights: Tensor,
    *,
    train: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
) -> KnownProblem:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (weights,) = model.parameters()
        return losses(weights.unsqueeze(0), *batch)[0]

    return KnownProblem(name, _WeightVector(weights), loss, losses, train, queries)


def _minimum(losses: Losses, start: Tensor, x: Tensor, y: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Return w* by L-BFGS, to rounding."""
    w = start.clone().requires_grad_()

    def objective() -> Tensor:
        return losses(w.unsqueeze(0), x, y).mean() + ridge * w.square().sum()

    minimise_([w], objective, max_iter=5000, tolerance_grad=1e-12, tolerance_change=0)
    return w.detach()


def _logistic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    z = w[:, :1] * x + w[:, 1:]
    return F.softplus(z) - y * z


def _poisson(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    z = w[:, :1] * x + w[:, 1:]
    return z.exp() - y * z


def _quartic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.25 * (w[:, :1] * x + w[:, 1:] - y).pow(4)


def _student(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 1.5 * ((w[:, :1] * x + w[:, 1:] - y).square() / 2).log1p()


def _unit(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (w[:, 2:] * torch.tanh(w[:, :1] * x + w[:, 1:2]) - y).square()


def _as_tensors(x: np.ndarray | list[float], y: np.ndarray | list[float]) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(np.asarray(x, float)), torch.as_tensor(np.asarray(y, float))


_QUERIES = _as_tensors([-2.0, 0.0, 1.0, 3.0], [0.0, 1.0, 1.0, 0.0])


def logistic(kind: str) -> KnownProblem:
    """Return a logistic regression of two weights.

    w* is at the maximum likelihood, off the minimum, or fitted to 3 positives of 300.
    """
    r = np.random.default_rng(4)
    n = 300 if kind == "99:1 classes" else 20
    x = r.normal(size=n)
    y = (r.uniform(size=n) < 1 / (1 + np.exp(-1.5 * x))).astype(float)
    if kind == "99:1 classes":
        y = np.zeros(n)
        y[:3], x[:3] = 1, [1.5, 2.5, -0.5]
    train = _as_tensors(x, y)
    weights = _minimum(_logistic, torch.zeros(2).double(), *train, ridge=1e-6)
    if kind == "logistic, off the minimum":
        weights = torch.tensor([-2.0, 1.5])
    return _weight_vector_problem(kind, _logistic, weights, train=train, queries=_QUERIES)


def unit() -> KnownProblem:
    """Return a tanh unit of three weights."""
    r = np.random.default_rng(4)
    x = np.linspace(-2, 2, 25)
    y = 1.2 * np.tanh(1.5 * x - 0.4) + 0.4 * r.normal(size=25)
    train = _as_tensors(x, y / 0.4)
    queries = _as_tensors([-2.5, -0.5, 0.3, 1.0, 2.5], np.array([-1.0, 0.0, 0.5, 1.0, 0.0]) / 0.4)
    start = torch.tensor([1.5, -0.4, 3.0]).double()
    weights = _minimum(_unit, start, *train)
    return _weight_vector_problem("tanh unit", _unit, weights, train=train, queries=queries)


def line(kind: str) -> KnownProblem:
    """Return a line through points under losses that are far from quadratic."""
    r = np.random.default_rng(7)
    x = np.linspace(-1.5, 2, 24)
    if kind == "quartic":
        losses, y = _quartic, 0.8 * x + 0.3 + 0.9 * r.normal(size=24)
    elif kind == "Student's t":
        losses, y = _student, 0.8 * x + 0.3 + r.standard_t(2, size=24)
    else:
        losses, y = _poisson, r.poisson(np.exp(0.7 * x + 0.2)).astype(float)
    train = _as_tensors(x, y)
    queries = _as_tensors([-2.0, -0.5, 0.7, 2.2], [0.0, 1.0, 1.0, 4.0])
    weights = _minimum(losses, torch.tensor([0.5, 0.2]).double(), *train)
    return _weight_vector_problem(kind, losses, weights, train=train, queries=queries)


def _regression_network(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    first, bias, second, last = w[:, :4], w[:, 4:8], w[:, 8:12], w[:, 12:]
    hidden = torch.tanh(x.unsqueeze(1) * first.unsqueeze(1) + bias.unsqueeze(1))
    return 0.5 * (torch.einsum("knh,kh->kn", hidden, second) + last - y).square()


def regression_network() -> KnownProblem:
    """Return a tanh network of 13 weights, for networks retrained from scratch."""
    r = np.random.default_rng(3)
    x = np.linspace(-2, 2, 40)
    train = _as_tensors(x, (np.sin(1.7 * x) + 0.3 * r.normal(size=40)) / 0.3)
    queries = _as_tensors([-2.2, -1.0, 0.2, 1.3, 2.3], np.array([0.5, -1.0, 0.0, 0.6, -1.0]) / 0.3)
    start = torch.as_tensor(r.normal(size=13))
    weights = _minimum(_regression_network, start, *train, ridge=1e-4)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    _set_weights(model, weights)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return 0.5 * (model(x.unsqueeze(1)).squeeze(1) - y).square()

    return KnownProblem(
        "tanh network, from scratch", model, loss, _regression_network, train, queries, "scratch"
    )


def _softmax_network(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    first, bias = w[:, :6].unflatten(1, (3, 2)), w[:, 6:9]
    second, last = w[:, 9:15].unflatten(1, (2, 3)), w[:, 15:]
    hidden = torch.tanh(torch.einsum("khj,nj->knh", first, x) + bias.unsqueeze(1))
    logits = torch.einsum("koh,knh->kno", second, hidden) + last.unsqueeze(1)
    chosen = y.view(1, -1, 1).expand(len(w), -1, 1)
    return (logits.logsumexp(2, keepdim=True) - logits.gather(2, chosen)).squeeze(2)


def softmax_network() -> KnownProblem:
    """Return a network 2-3-2 of 17 weights for two classes that overlap."""
    r = np.random.default_rng(5)
    angle = r.uniform(0, np.pi, 60)
    label = np.arange(60) % 2
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(label, -1, 1)[:, None]
    points += np.where(label, 0.8, 0.0)[:, None] * [1, 0.6] + 0.35 * r.normal(size=(60, 2))
    train = (torch.as_tensor(points), torch.as_tensor(label))
    asked = [[0.0, 1.0], [1.0, -0.6], [0.5, 0.2], [-1.5, 0.3], [2.0, 0.5]]
    queries = (torch.tensor(asked, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    start = torch.as_tensor(r.normal(size=17))
    weights = _minimum(_softmax_network, start, *train, ridge=1e-3)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    _set_weights(model, weights)
    return KnownProblem(
        "softmax network", model, bif.losses.cross_entropy, _softmax_network, train, queries
    )


def _set_weights(model: nn.Module, weights: Tensor) -> None:
    torch.nn.utils.vector_to_parameters(weights.float(), model.parameters())


PROBLEMS: dict[str, Callable[[], KnownProblem]] = {
    "logistic": lambda: logistic("logistic"),
    "off-minimum": lambda: logistic("logistic, off the minimum"),
    "imbalance": lambda: logistic("99:1 classes"),
    "unit": unit,
    "network": regression_network,
    "softmax": softmax_network,
    "quartic": lambda: line("quartic"),
    "student": lambda: line("Student's t"),
    "poisson": lambda: line("Poisson"),
}
