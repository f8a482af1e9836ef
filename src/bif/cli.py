"""The command line, thin: the same objects as in Python."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from bif import store
from bif.settings import Settings

if TYPE_CHECKING:
    from bif.problem import Problem

_USER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    RuntimeError,
)


def main() -> None:
    """`bif demo`, `bif attribute`, `bif show`; exits with 2 on bad input."""
    commands = Annotated[
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Attribute, tyro.conf.subcommand("attribute")]
        | Annotated[Show, tyro.conf.subcommand("show")],
        tyro.conf.OmitArgPrefixes,
    ]
    command = tyro.cli(commands, prog="bif", description="Bayesian influence functions.")  # type: ignore[arg-type]
    try:
        command.run()
    except KeyboardInterrupt:  # outside the sampling, which ends with what there is
        print("bif: interrupted; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except _USER_ERRORS as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"bif: {message}", file=sys.stderr)
        sys.exit(2)


@dataclass(frozen=True)
class Demo:
    """Train a small network on digits, some of them mislabelled, and find out who is to blame."""

    out: Path = Path("bif-demo")
    """Folder for the results."""
    seed: int = 0
    """Of split, moved labels, training and sampling."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""

    def run(self) -> None:
        from bif.demo import run_demo

        folder = run_demo(self.out, seed=self.seed, overwrite=self.overwrite)
        _announce(folder, self.out)


@dataclass(frozen=True)
class Attribute:
    """Attribute a problem of your own: a Python function that returns a `bif.Problem`."""

    target: tyro.conf.Positional[str]
    """FILE.py:FUNCTION."""
    out: Path
    """Folder for the results."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.attribute import attribute
        from bif.manifest import identity

        problem = load_problem(self.target)
        if store.check_folder(self.out, identity(problem, self.settings), overwrite=self.overwrite):
            return _announce(None, self.out)
        run = attribute(problem, self.settings, show_progress=True)
        _announce(run.save(self.out, overwrite=self.overwrite), self.out)


@dataclass(frozen=True)
class Show:
    """Print what a run's folder holds: figures, warnings and top items of some queries."""

    folder: tyro.conf.Positional[Path]
    """A run's folder."""
    query: tuple[str, ...] = ()
    """Ids of queries to rank; the first three by default."""
    observable: str | None = None
    """The first one by default."""
    top: int = 5
    """Items on either side."""

    def run(self) -> None:
        from bif.influence import Influence

        run = store.read_run(self.folder)
        _print_summary(run["summary"], run["manifest"])
        influence = Influence(run["influence"])
        print(influence)
        ids = self.query or tuple(str(i) for i in run["influence"]["query_id"].values[:3])
        for query in ids:
            print()
            print(influence.top(query, self.top, observable=self.observable))


def load_problem(target: str) -> Problem:
    """Import FILE.py and call FUNCTION.

    Raises:
        ValueError: The target is not `FILE.py:FUNCTION`, or the file has no such function.
        FileNotFoundError: There is no such file.
        TypeError: The function does not return a Problem.
    """
    from bif.problem import Problem

    path, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"expected FILE.py:FUNCTION, got {target!r}.")
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no file {path!r}: expected FILE.py:FUNCTION, got {target!r}.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is not a Python file: expected FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path!r} has no function {name!r}.")
    problem = function()
    if not isinstance(problem, Problem):
        raise TypeError(f"{target} must return a bif.Problem, got {type(problem).__name__}.")
    return problem


def _announce(folder: Path | None, out: Path) -> None:
    run = store.read_run(out)
    if folder is None:
        print(f"{out} already holds this run, complete: nothing to do.")
    _print_summary(run["summary"], run["manifest"])
    print(f"report: {out / store.REPORT}")
    if not run["manifest"]["complete"]:
        sys.exit(130)


def _print_summary(summary: dict[str, object], manifest: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    for warning in manifest.get("warnings", []):  # type: ignore[attr-defined]
        console.print("warning:", warning, style="yellow", markup=False)
    table = Table(show_header=False, box=None)
    for name, value in summary.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), shown)
    console.print(table)
