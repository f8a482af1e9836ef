"""A shift of the data, predicted and sampled: `python examples/shift.py` takes about a minute."""

import torch
from sklearn.datasets import load_wine

import bif
from bif.susceptibility import group_shifts, predicted_change

x, y = (torch.tensor(values) for values in load_wine(return_X_y=True))
x = ((x - x.mean(dim=0)) / x.std(dim=0)).double()
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, queries = order[:120], order[120:]
torch.manual_seed(0)
model = torch.nn.Linear(13, 3).double()
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")


def objective() -> torch.Tensor:
    """Mean loss with weight decay."""
    optimizer.zero_grad()
    loss = bif.losses.cross_entropy(model, (x[train], y[train])).mean()
    loss = loss + 0.005 * sum(p.square().sum() for p in model.parameters())
    loss.backward()
    return loss


optimizer.step(objective)
items = bif.Items((x[train], y[train]), labels=[f"wine {k}" for k in y[train]])
itself = bif.Observable("loss", bif.losses.cross_entropy, "lower")  # not through its margin


def run_at(weights: torch.Tensor) -> bif.Run:
    """Sample around the trained weights on weighted data."""
    problem = bif.Problem(
        model, bif.losses.cross_entropy, train=items, queries=(x[queries], y[queries]),
        observables=[itself], train_weights=weights,
    )  # fmt: skip
    settings = bif.Settings(nbeta=120.0, gamma=1.2, chains=64, draws=200, estimator="covariance")
    return bif.attribute(problem, settings)


ones = torch.ones(len(train), dtype=torch.float64)
run = run_at(ones)
everything = {"all": range(len(queries))}
shifts = group_shifts(run, "label", train_weights=ones)
found = predicted_change(run, shifts, [-1.0, -0.5, 1.0], queries=everything)
for size in found["size"].values:
    rho = ones + size * shifts.weights[0]
    there = run_at(rho * len(rho) / rho.sum()).influence.dataset["query_mean"].values.mean()
    row = found.sel(size=size).isel(observable=0, query=0, shift=0)
    told = ", ".join(
        f"{name} {float(row[name]):+.4f}" for name in ("first", "second", "reweighted")
    )
    draws, sampled = float(row["effective_draws"]), there - float(row["mean"])
    print(f"wine 0 at {size:+}: {told} of {draws:.0f} draws' worth, sampled {sampled:+.4f}")
