"""All rivals side by side: one shape, one sign, and the direction in which retraining moves."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import bif
from bif.baselines import (
    EKFAC,
    TRAK,
    Checkpoint,
    ConjugateGradients,
    EmpiricalFisher,
    ExactInfluence,
    Source,
    TracIn,
    gradient_cosine,
    gradient_product,
    random_scores,
    representation_similarity,
)
from rival_problems import GN, problem_of, scores_of
from small_problems import filled, normal

pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")

RIVALS: dict[str, Callable[..., Tensor]] = {
    "exact": lambda p, **kw: scores_of(ExactInfluence, p, damping=0.1, **kw),
    GN: lambda p, **kw: scores_of(ExactInfluence, p, damping=0.1, curvature=GN, **kw),
    "cg": lambda p, **kw: scores_of(ConjugateGradients, p, damping=0.1, curvature=GN, **kw),
    "empirical_fisher": lambda p, **kw: scores_of(EmpiricalFisher, p, damping=0.1, **kw),
    "ekfac": lambda p, **kw: scores_of(EKFAC, p, damping=0.1, **kw),
    "ekfac_mc": lambda p, **kw: scores_of(EKFAC, p, damping=0.1, fisher_type="mc", **kw),
    "ekfac_empirical": lambda p, **kw: scores_of(
        EKFAC, p, damping=0.1, fisher_type="empirical", **kw
    ),
    "trak": lambda p, **kw: scores_of(TRAK, p, damping_scale=10.0, dimension=None, **kw),
    "tracin": lambda p, **kw: TracIn.fit(p, path_to(p)).scores(p, **kw),
    "source": lambda p, **kw: Source.fit(p, path_to(p)).scores(p, damping=1e-3, **kw),
    "product": gradient_product,
    "cosine": gradient_cosine,
    "representation": representation_similarity,
    "representation_labels": lambda p, **kw: representation_similarity(p, labels="match", **kw),
}


def path_to(problem: bif.Problem) -> list[Checkpoint]:
    """Four checkpoints on the straight line from small weights to w*."""
    return [
        Checkpoint({n: share * leaf for n, leaf in problem.center().items()}, 0.2, 50)
        for share in (0.1, 0.4, 0.7, 1.0)
    ]


@cache
def blobs() -> tuple[bif.Problem, Tensor]:
    """Three overlapping classes, an MLP fitted to them, and which query and item are of one."""
    centers = 1.5 * torch.eye(3, 4).double()
    y, qy = torch.arange(60) % 3, torch.arange(9) % 3
    x, qx = centers[y] + 0.6 * normal(60, 4, seed=1), centers[qy] + 0.6 * normal(9, 4, seed=2)
    with torch.random.fork_rng(devices=[]):
        model = filled(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), scale=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    problem = problem_of(model, train=(x, y), queries=(qx, qy))
    return problem, qy[:, None] == y


@pytest.mark.parametrize("observable", ["loss", "margin"])
@pytest.mark.parametrize("name", RIVALS)
def test_items_of_a_querys_class_lower_its_loss_and_raise_its_margin(name, observable):
    problem, same = blobs()
    scores = RIVALS[name](problem, observable=observable)
    assert scores.shape == (9, 60) and scores.dtype == torch.float64
    assert scores.device.type == "cpu" and scores.isfinite().all()
    helps = -1 if observable == "loss" else 1
    gap = (helps * scores * same).sum(dim=1) / same.sum(dim=1)
    others = (helps * scores * ~same).sum(dim=1) / (~same).sum(dim=1)
    assert (gap > others).all()


@pytest.mark.parametrize("name", [n for n in RIVALS if not n.startswith("representation")])
def test_an_item_lowers_its_own_loss(name):
    problem, _ = blobs()
    own = problem_of(problem.model, train=problem.train, queries=problem.train)
    assert (RIVALS[name](own).diagonal() < 0).all()


def test_random_scores_know_nothing():
    # The difference of two means of 180 and 360 standard normal numbers.
    problem, same = blobs()
    scores = random_scores(problem)
    gap = float(scores[same].mean() - scores[~same].mean())
    assert abs(gap) < 5 * (1 / 180 + 1 / 360) ** 0.5


@pytest.mark.parametrize("name", RIVALS)
def test_a_flipped_sign_is_noticed(name, monkeypatch):
    true = RIVALS[name]
    monkeypatch.setitem(RIVALS, name, lambda p, **kw: -true(p, **kw))
    with pytest.raises(AssertionError):
        test_items_of_a_querys_class_lower_its_loss_and_raise_its_margin(name, "loss")


def test_curvature_based_rivals_agree_where_they_should():
    problem, _ = blobs()
    flat = {n: RIVALS[n](problem).flatten() for n in (GN, "cg", "ekfac", "trak")}
    exact = flat.pop(GN)
    agreement = {
        n: float(torch.corrcoef(torch.stack([exact, other]))[0, 1]) for n, other in flat.items()
    }
    assert agreement["cg"] > 1 - 1e-6 and agreement["ekfac"] > 0.9 and agreement["trak"] > 0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", [n for n in RIVALS if n != "ekfac_mc"])
def test_on_a_gpu_the_scores_are_the_cpus(name):
    problem, _ = blobs()
    data = {"train": problem.train.data, "queries": problem.query_groups["query"].data}
    here = RIVALS[name](problem_of(problem.model, **data))
    there = RIVALS[name](problem_of(deepcopy(problem.model).cuda(), **data))
    assert there.device.type == "cpu" and there.dtype == torch.float64
    assert (here - there).abs().max() < 1e-6 * here.abs().max()
