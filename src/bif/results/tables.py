"""Small HTML tables for notebooks, in the colours of the notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; its texts are escaped, and columns of numbers are not told apart."""
    head = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:left">{escape(str(cell))}</td>' for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_line(text: str, *, strong: bool = False) -> str:
    """Return a paragraph of a text, which is escaped."""
    inner = f"<strong>{escape(text)}</strong>" if strong else escape(text)
    return f"<p>{inner}</p>"


def html_folded(summary: str, content: str) -> str:
    """Return HTML that is folded below a line of text until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
