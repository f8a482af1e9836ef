"""A map of ImageNet as Inception-v1 sees it, and influential images beside those of EK-FAC.

The case of Adam et al. (arXiv 2509.26537): losses of 10,000 training images at draws around the
trained network, their correlations as a map, held against WordNet.  `--data` has `train/CLASS/`
and `val/CLASS/` with images; the weights are the state dict of torchvision's googlenet.

    python -m benchmarks.imagenet --data IMAGENET --weights googlenet.pth \
        --hierarchy wordnet.json --out imagenet --device cuda --budget 3600

`run` in the folder is a run like any other (`bif show`, `bif report`); `kernel` has the map, the
neighbours and the agreement with the tree; `influential.png` and the JSON file show the most
influential training images of queries.  The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import bif
from benchmarks.common import parser, print_table, trust_figures, write
from benchmarks.imagenet.folder import Images, class_names, read_images
from benchmarks.imagenet.googlenet import read_googlenet
from bif.baselines import EKFAC
from bif.cli.kernel import Kernel

_SHOWN = 5
"""Images of a query that are shown by each method."""


def options() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = parser(__doc__ or "")
    made.add_argument("--weights", type=Path, required=True, help="state dict of googlenet")
    made.add_argument("--hierarchy", type=Path, help="tree of the classes, networkx JSON")
    made.add_argument("--wnids", type=Path, help="names of all classes in order, one a line, where "
                      "train/ has not all of them")  # fmt: skip
    made.add_argument("--classes", type=int, help="that are read, evenly over all; all by default")
    made.add_argument("--per-class", type=int, default=10, help="training images of a class")
    made.add_argument("--queries", type=int, default=16, help="validation images, of a class each")
    made.add_argument("--size", type=int, default=224, help="pixels a side")
    made.add_argument("--budget", type=float, help="seconds of sampling; the default's draws else")
    made.add_argument("--chains", type=int)
    made.add_argument("--draws", type=int)
    made.add_argument("--nbeta", type=float)
    made.add_argument("--gamma", type=float)
    made.add_argument("--step-size", type=float)
    made.add_argument("--burn-in", type=int)
    made.add_argument("--sampler", choices=("baoab", "sgld", "rmsprop_sgld"))
    made.add_argument("--damping-scale", type=float, default=0.1, help="of EK-FAC")
    return made


def problem_of(arguments: argparse.Namespace) -> bif.Problem:
    """Read network and images.

    Raises:
        FileNotFoundError, ValueError: What is missing, or does not fit.
    """
    a = arguments
    model = read_googlenet(a.weights)
    names = a.wnids.read_text().split() if a.wnids else class_names(a.data / "train")
    if len(names) != model.fc.out_features:
        raise ValueError(
            f"{len(names)} classes, and the network tells {model.fc.out_features} apart: name "
            "all of them in order by --wnids."
        )
    there = [name for name in names if (a.data / "train" / name).is_dir()]
    count = min(a.classes or len(there), len(there))
    chosen = [there[i * len(there) // count] for i in range(count)]
    asked = [chosen[i * count // min(a.queries, count)] for i in range(min(a.queries, count))]
    train = read_images(a.data / "train", names, chosen=chosen, per_class=a.per_class, size=a.size)
    queries = read_images(a.data / "val", names, chosen=asked, per_class=1, size=a.size)
    return bif.Problem(
        model.to(a.device), bif.losses.cross_entropy, train=_items(train), queries=_items(queries)
    )


def _items(images: Images) -> bif.Items:
    return bif.Items(
        (images.pixels, images.targets), ids=images.ids, labels=images.labels,
        images=images.pictures,
    )  # fmt: skip


def beside_ekfac(
    problem: bif.Problem, run: bif.Run, *, damping_scale: float
) -> list[dict[str, Any]]:
    """Return, a row a query, the images that help and harm most by both methods."""
    fitted = EKFAC.fit(problem, fisher_type="mc", other_layers="diagonal")
    ekfac = fitted.scores(problem, damping_scale=damping_scale).numpy()
    dataset = run.influence.dataset
    ids, rows = dataset["train_id"].values, []
    for place, query in enumerate(dataset["query_id"].values):
        scores = {"bif": dataset["influence"].values[0, place], "ekfac": ekfac[place]}
        row: dict[str, Any] = {"query": str(query)}
        for method, values in scores.items():
            order = np.argsort(values)
            # The loss of the query falls most with what has the most negative influence.
            row[f"{method}_helps"] = [str(x) for x in ids[order[:_SHOWN]]]
            row[f"{method}_harms"] = [str(x) for x in ids[order[::-1][:_SHOWN]]]
        found: Any = spearmanr(*scores.values())
        row["rank_correlation"] = float(found.statistic)
        same = set(row["bif_helps"]) & set(row["ekfac_helps"])
        row["helpful_images_shared"] = len(same) / _SHOWN
        rows.append(row)
    return rows


def draw(problem: bif.Problem, rows: list[dict[str, Any]], file: Path) -> None:
    """Draw each query with the images that help it most by both methods."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    groups = [problem.train, *problem.query_groups.values()]
    pictures = {
        str(name): image
        for items in groups
        for name, image in zip(items.ids, [] if items.images is None else items.images, strict=True)
    }
    figure = Figure(figsize=(1 + 2 * _SHOWN, 1.1 * len(rows) + 0.6))
    axes = figure.subplots(len(rows), 1 + 2 * _SHOWN, squeeze=False)
    for across, row in zip(axes, rows, strict=True):
        shown = [row["query"], *row["bif_helps"], *row["ekfac_helps"]]
        for place, name in zip(across, [*shown, *[""] * (len(across) - len(shown))], strict=True):
            place.axis("off")
            if name:
                place.imshow(pictures[name])
    for place, title in ((0, "query"), (1, "helps by the BIF"), (1 + _SHOWN, "by EK-FAC")):
        axes[0, place].set_title(title, fontsize=8, loc="left")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    a = options().parse_args()
    problem = problem_of(a)
    settings = bif.Settings(
        estimator="covariance", budget=a.budget, chains=a.chains, draws=a.draws, seed=a.seed,
        nbeta=a.nbeta, gamma=a.gamma, step_size=a.step_size, burn_in=a.burn_in, sampler=a.sampler,
    )  # fmt: skip
    run = bif.attribute(problem, settings, out=a.out / "run", show_progress=True)
    tree = None if a.hierarchy is None else str(a.hierarchy)
    Kernel(folder=str(a.out / "run"), out=str(a.out / "kernel"), hierarchy=tree).run()
    rows = beside_ekfac(problem, run, damping_scale=a.damping_scale)
    draw(problem, rows, a.out / "influential.png")
    write(
        "imagenet", a, rows, num_train=problem.num_train, pixels=a.size, **trust_figures(run),
        damping_scale=a.damping_scale, mean_rank_correlation=float(
            np.mean([row["rank_correlation"] for row in rows])
        ),
    )  # fmt: skip
    print_table([{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows])


if __name__ == "__main__":
    main()
