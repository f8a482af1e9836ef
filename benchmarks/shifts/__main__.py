"""How far does influence predict a shift of the training data?

Groups of items gain or lose weight, from 1 % to removal, and digits that were not trained on are
added.  Networks are retrained on the shifted data with five seeds, and the changes of the test loss
are held against the first and the second order, re-weighted draws, and Gauss-Newton influence.

* `digits`, `fashion`: small networks on images, retrained from scratch and from the checkpoint; the
  groups are classes.
* `text`: a small transformer on TinyStories and Shakespeare, fine-tuned from the checkpoint; the
  groups are these two, and queries of WikiText are asked for, too.

R² is `1 - Σ(told - changed)²/Σ changed²` without refitting, so "no change" has 0, over queries ×
groups; the variance of the mean of the seeds is taken out of both sums.  nbeta, gamma and dampings
are chosen by the same R² of other queries, up to half of a group's weight.

    python -m benchmarks.shifts digits --out benchmarks/results
    python -m benchmarks.shifts fashion --data DIR --out benchmarks/results
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.common import add_banks, parser, print_table, write
from benchmarks.shifts import images, text
from benchmarks.shifts.setting import Setting
from benchmarks.shifts.study import keeper, study

SETTINGS: dict[str, Callable[..., Setting]] = {
    "digits": images.digits,
    "fashion": images.fashion,
    "text": text.text,
}


def options() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = parser(__doc__ or "")
    made.add_argument("setting", choices=SETTINGS)
    made.add_argument("--tiny", action="store_true", help="sizes for a few seconds")
    add_banks(made)
    return made


def main() -> None:
    arguments = options().parse_args()
    if arguments.data is None and arguments.setting != "digits":
        options().error("--data is needed: the folder with the standard data files.")
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Carry out the study of a setting into `shifts-NAME-DATE.json`."""
    setting = SETTINGS[arguments.setting](arguments.data, arguments.device, tiny=arguments.tiny)
    kept = keeper(arguments.banks)
    found = study(setting, device=arguments.device, seed=arguments.seed, kept=kept)
    rows = found.pop("radii")
    print_table(rows)
    about = {
        "num_train": len(setting.of_groups(setting.groups)), "num_queries": len(setting.queries),
        "num_weights": sum(p.numel() for p in setting.start.parameters()),
        "recipes": {name: recipe.as_dict() for name, recipe in setting.retraining.items()},
        "groups": setting.groups, "outside": setting.outside,
    }  # fmt: skip
    print(write(f"shifts-{setting.name}", arguments, rows, about=about, **found))


if __name__ == "__main__":
    main()
