"""Which digits made this generated one: `python examples/generated_digits.py` draws a picture."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import bif

CODE, NOISES = 6, 4  # numbers in a digit's code; how often each digit's code is drawn


class Autoencoder(nn.Module):
    """A variational autoencoder: pixels to a Gaussian of codes, and a code to logits of pixels."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2 * CODE))
        self.decoder = nn.Sequential(nn.Linear(CODE, 64), nn.Tanh(), nn.Linear(64, 64))


def loss(model, batch):
    """Minus the evidence bound, one number a digit."""
    mean, log_scale = model.encoder(batch["pixels"]).chunk(2, dim=-1)
    # The noise comes with the digit: drawn here, it would be noise in every covariance.
    codes = mean[:, None] + log_scale.exp()[:, None] * batch["noise"]  # [B, NOISES, CODE]
    logits, pixels = model.decoder(codes), batch["pixels"][:, None]
    missed = nn.functional.softplus(logits) - pixels * logits  # cross-entropy of grey pixels
    surprise = mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale
    return missed.sum(dim=-1).mean(dim=1) + surprise.sum(dim=-1) / 2


def with_noise(pixels, seed):
    """Digits as items of a batch, each with noise of its own."""
    source = torch.Generator().manual_seed(seed)
    return {"pixels": pixels, "noise": torch.randn(len(pixels), NOISES, CODE, generator=source)}


def problem(num_train=500, num_made=8, steps=1000):
    """The trained model, the digits it learned from, digits it made, and 50 it never saw."""
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    pixels, labels = (pixels / 16).float(), labels.tolist()
    torch.manual_seed(0)
    model, batch = Autoencoder(), with_noise(pixels[:num_train], seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):  # on the same noise: chains should start at a minimum of their own loss
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
        schedule.step()
    made = model.decoder(torch.randn(num_made, CODE)).sigmoid().detach()
    seen, unseen = slice(num_train), slice(num_train, num_train + 50)

    def items(digits, seed, labels):
        images = (255 * digits).to(torch.uint8).reshape(-1, 8, 8).numpy()
        return bif.Items(with_noise(digits, seed), labels=labels, images=images)

    queries = {
        "made": items(made, 1, ["?"] * num_made),
        "unseen": items(pixels[unseen], 2, labels[unseen]),
    }
    return bif.Problem(model, loss, train=items(pixels[seen], 0, labels[seen]), queries=queries)


def picture(run, file, rows=4):
    """Every generated digit above the training digits that helped most to make it."""
    from PIL import Image

    scores = run.influence.dataset
    made = scores["query_group"].values == "made"
    helpful = scores["influence"][0].values[made].argsort(axis=1)[:, :rows]
    shown = [[image, *scores["train_image"].values[best]] for image, best
             in zip(scores["query_image"].values[made], helpful, strict=True)]  # fmt: skip
    frame = [[np.pad(image, 1, constant_values=128) for image in column] for column in shown]
    whole = Image.fromarray(np.hstack([np.vstack(column) for column in frame]))
    whole.resize((6 * whole.width, 6 * whole.height), Image.Resampling.NEAREST).save(file)


if __name__ == "__main__":
    run = bif.attribute(problem(), bif.Settings(chains=32, draws=100), show_progress=True)
    print(run)
    picture(run, "generated-digits.png")
