"""The loss kernel of images beside other similarities: what does it find that they do not?

* `fashion`, `cifar`: kernels of 10,000 test images by a CNN and of 4,000 images by two networks,
  for agreement with a tree of the classes, and for maps.
* `checkpoints`: when each level of the tree appears in the kernel as a CNN is trained.
* `backdoor`: items with a patch and a wrong label, found by a few that are known.
* `mislabel`: items with a wrong label, found by the kernel, by losses and by cleanlab.

A study writes one file of arrays, which `score` turns into JSON; it goes on where it stopped.

    python -m benchmarks.kernel fashion --data DIR --out DIR --device cuda
    python -m benchmarks.kernel score --data DIR --traces DIR --out benchmarks/results
    python -m benchmarks.kernel draw --data DIR --traces DIR --out DIR
    python -m benchmarks.kernel subset --data DIR --out DIR --train 6000
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from benchmarks.common import hardware, parser
from benchmarks.kernel import backdoor, checkpoints, maps, mislabel
from benchmarks.kernel.draw import draw
from benchmarks.kernel.plan import PLANS, TINY, Plan
from benchmarks.kernel.score import score
from benchmarks.kernel.stored import Bundle
from benchmarks.kernel.subset import subset
from bif.problem.provenance import versions

Study = Callable[[Bundle, Path, Plan, str], None]
STUDIES: dict[str, Study] = {
    "cifar": maps.cifar,
    "fashion": maps.fashion,
    "mislabel-fashion": partial(mislabel.study, "fashion"),
    "mislabel-cifar": partial(mislabel.study, "cifar"),
    "backdoor-fashion": partial(backdoor.study, "fashion"),
    "backdoor-cifar": partial(backdoor.study, "cifar"),
    "checkpoints": checkpoints.study,
}
"""By what they are worth: `all` runs them in this order."""
_SIZES = ("train", "items", "seeds", "chains", "draws", "thin", "burn_in", "epochs", "batch")


def options() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = parser(__doc__ or "")
    made.add_argument("study", choices=[*STUDIES, "all", "score", "draw", "subset"])
    made.add_argument("--tiny", action="store_true", help="sizes for a few seconds")
    made.add_argument(
        "--traces", type=Path, help="folder of the studies' files, for score and draw"
    )
    made.add_argument("--suffix", help="of the names of the files that score writes")
    for name in _SIZES:
        made.add_argument(f"--{name.replace('_', '-')}", type=int, help="in place of the plan's")
    made.add_argument("--damping", type=float, help="in place of the plan's")
    made.add_argument("--one-temperature", action="store_true", help="no other nbeta and gamma")
    return made


def main() -> None:
    arguments = options().parse_args()
    if arguments.data is None:
        options().error("--data is needed: the folder with the standard data files.")
    if arguments.study == "subset":
        subset(arguments.data, arguments.out, arguments.train or PLANS["fashion"].train)
    elif arguments.study == "score":
        score(arguments.traces or arguments.out, arguments)
    elif arguments.study == "draw":
        draw(arguments.traces or arguments.out, arguments)
    else:
        names = STUDIES if arguments.study == "all" else [arguments.study]
        for name in names:
            run(name, arguments)


def run(name: str, arguments: argparse.Namespace) -> None:
    """Carry out a study into `NAME.npz`."""
    given = {size: getattr(arguments, size) for size in (*_SIZES, "damping")}
    plan = replace(
        (TINY if arguments.tiny else PLANS)[name],
        **{size: value for size, value in given.items() if value is not None},
        sensitivity=not arguments.one_temperature,
    )
    about = {
        "study": name, "plan": asdict(plan), "versions": versions(),
        "hardware": hardware(arguments.device), "date": datetime.date.today().isoformat(),
        "command": _command(name, arguments),
    }  # fmt: skip
    started = time.perf_counter()
    bundle = Bundle(arguments.out / f"{name}.npz", about)
    STUDIES[name](bundle, arguments.data, plan, arguments.device)
    bundle.about["seconds"] = bundle.about.get("seconds", 0.0) + time.perf_counter() - started
    bundle.write()
    print(f"{name}: {bundle.path.stat().st_size / 2**20:.1f} MiB", flush=True)


def _command(name: str, arguments: argparse.Namespace) -> str:
    """Return the command of one study, without folders of this machine."""
    words = ["python -m benchmarks.kernel", name, "--data DIR --out DIR --device", arguments.device]
    words += ["--tiny"] if arguments.tiny else []
    words += ["--one-temperature"] if arguments.one_temperature else []
    words += [f"--{size.replace('_', '-')} {value}" for size in (*_SIZES, "damping")
              if (value := getattr(arguments, size)) is not None]  # fmt: skip
    return " ".join(words)


if __name__ == "__main__":
    main()
