"""Influence over your own training: `python examples/own_checkpoints.py` saves and attributes."""

import torch
from sklearn.datasets import load_wine

import bif

x, y = (torch.tensor(values) for values in load_wine(return_X_y=True))
x = ((x - x.mean(dim=0)) / x.std(dim=0)).float()
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, queries = order[:150], order[150:]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(13, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
save = bif.SaveCheckpoints("own-checkpoints/saved", bif.log_spaced_steps(1000, count=12))
for step in range(1001):
    save(step, model)
    optimizer.zero_grad()
    bif.losses.cross_entropy(model, (x[train], y[train])).mean().backward()
    optimizer.step()

problem = bif.Problem(
    model, bif.losses.cross_entropy, train=(x[train], y[train]), queries=(x[queries], y[queries])
)
series = bif.CheckpointSeries.from_folder("own-checkpoints/saved")
trajectory = bif.trajectory(problem, series, out="own-checkpoints/stages", show_progress=True)
for event in trajectory.events()[:5]:
    print(event.in_words())
