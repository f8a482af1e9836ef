"""What the pages of the documentation share: types, a table, a picture, colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Mapping[str, Any]
Cell = Callable[[Any], str]
MADE = (
    "Made by `python benchmarks/tables.py` from the dated JSON files of `benchmarks/results/`, "
    "which hold full settings, versions and hardware."
)
NOT_YET = (
    "!!! note\n    Not measured on a GPU yet: there is no such file in `benchmarks/results/`, and "
    "no number is written here by hand. The command is\n    `{command}`."
)
COLOURS = {"bif": "#c2410c", "devinterp": "#1d4ed8", "ekfac": "#15803d"}


def png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def colour(method: str) -> str:
    """Of a method; all forms of the BIF share theirs."""
    return COLOURS["bif"] if method.startswith("bif") else COLOURS.get(method, "#475569")


def markdown(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], cell: Cell
) -> list[str]:
    """A table: of the named keys those that any row has."""
    keys = [key for key in columns if any(row.get(key) not in (None, "") for row in rows)]
    return [
        "| " + " | ".join(columns[key] for key in keys) + " |",
        "|" + " --- |" * len(keys),
        *("| " + " | ".join(_escaped(cell(row.get(key))) for key in keys) + " |" for row in rows),
    ]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|") or "–"
