"""Benchmark your own model: `bif lds examples/benchmark_my_model.py:task --out my-benchmark`."""

import torch
from sklearn.datasets import load_wine

import bif
from bif.bank import Plan
from bif.benchmark import Task

LOSS = bif.losses.cross_entropy


def train(start, items, seed):
    """Your own training, on these items: from `start`, or from fresh weights if it is None."""
    torch.manual_seed(seed)  # so that the same command goes on with the same model
    layers = torch.nn.Linear(13, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
    model = torch.nn.Sequential(*layers) if start is None else start
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        LOSS(model, items).mean().backward()
        optimizer.step()
    return model


def task():
    """The trained model, what is asked of it, and how many networks are to judge the answers."""
    x, y = (torch.tensor(values) for values in load_wine(return_X_y=True))
    x = ((x - x.mean(dim=0)) / x.std(dim=0)).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    items, queries, tuning = ((x[i], y[i]) for i in order.split([100, 48, 30]))
    problem = bif.Problem(train(None, items, 0), LOSS, train=items, queries=queries)
    plan = Plan(num_subsets=40, seeds=2, num_tuning_subsets=16)
    return Task("wine", problem, tuning, retraining=train, plan=plan)
