"""What a run has recorded at its draws, for whatever is computed from it later."""

from __future__ import annotations

from bif.runs.run import Run


def refuse_without_traces(run: Run, what: str) -> None:
    """Raise where a run has no traces of all items.

    Args:
        run: Any run.
        what: That needs them, such as "a loss kernel".

    Raises:
        ValueError: It was solved, keeps sums or has lost its traces.
    """
    sums = run.manifest.keep == "sums"
    if sums or not run.traces.blocks:
        how = "kept sums alone" if sums else "was solved, or has lost its traces"
        raise ValueError(
            f"the run {how}: {what} needs the traces of all items. Attribute with "
            "Settings(estimator='covariance') and keep='traces'."
        )


def query_columns(run: Run, observable: str | None) -> tuple[str, slice]:
    """Return an observable's name and its columns among the traces of queries.

    Args:
        run: Whose queries.
        observable: Name; the first one by default.

    Raises:
        KeyError: No such observable.
    """
    dataset = run.influence.dataset
    names = [str(name) for name in dataset["observable"].values]
    name = names[0] if observable is None else observable
    if name not in names:
        raise KeyError(f"there is no observable {name!r}: there are {', '.join(names)}.")
    first = names.index(name) * dataset.sizes["query"]
    return name, slice(first, first + dataset.sizes["query"])
