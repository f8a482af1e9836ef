"""Text for the page: escaping, numbers, tables. Every string from outside passes `escape`."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

MISSING = "–"
"""Shown where a value is absent, NaN or infinite."""


def escape(value: object) -> str:
    """Return `value` as text that is safe inside elements and quoted attributes."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(text, quote=True)


def finite(value: object) -> float | None:
    """Return `value` as a float, or None where it is absent, not a number or not finite."""
    try:
        result = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def number(value: object, *, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, thousands grouped, or a dash."""
    x = finite(value)
    if x is None:
        return MISSING
    if x == 0:
        return "0"
    exponent = math.floor(math.log10(abs(x)))
    if exponent < -4 or exponent > 8:
        mantissa = f"{x / 10**exponent:.{digits - 1}f}"
        return f"{mantissa} × 10{_superscript(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - exponent)
    text = f"{x:,.{decimals}f}"
    return text.replace("-", "−")


def setting(value: object) -> str:
    """Return a setting with up to four significant digits and no trailing zeros, or a dash."""
    text = number(value, digits=4)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def count(value: object) -> str:
    """Return a whole number with thousands grouped, or a dash."""
    x = finite(value)
    return MISSING if x is None else f"{round(x):,}".replace("-", "−")


def percent(share: object) -> str:
    """Return a share in [0, 1] in per cent, or a dash."""
    x = finite(share)
    return MISSING if x is None else f"{100 * x:.0f} %"


def plural(amount: int, noun: str) -> str:
    """Return the amount with its noun, e.g. `plural(2, "query") == "2 queries"`."""
    if amount == 1:
        return f"1 {noun}"
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{amount:,} {many}"


def called(name: object, noun: str) -> str:
    """Return an id; a bare number with its noun, e.g. `called(3, "item") == "item 3"`."""
    text = str(name)
    return f"{noun} {text}" if text.isdigit() else text


def join_words(words: Sequence[str]) -> str:
    """Return the words as an enumeration: "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def shared_exponent(values: Iterable[float]) -> int:
    """Return the power of ten (a multiple of 3) that brings the largest value into [0.1, 1000)."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0 or 0.1 <= largest < 1000:
        return 0
    return 3 * math.floor(math.log10(largest) / 3)


def unit_text(exponent: int) -> str:
    """Return how a shared power of ten is announced; empty for 0."""
    return f"in units of 10{_superscript(exponent)}" if exponent else ""


def score_and_error(score: float, error: float, *, exponent: int) -> tuple[str, str]:
    """Return a signed score and its standard error, in units of `10**exponent`.

    Both are rounded to the second significant digit of the error, at most four decimals; without
    an error the score has three significant digits and the error is a dash.
    """
    scale = 10.0**exponent
    s, e = finite(score), finite(error)
    if s is None:
        return MISSING, MISSING
    leading = abs(s) / scale if e is None or e <= 0 else e / scale
    wanted = 2 if e is None or e <= 0 else 1
    decimals = wanted - math.floor(math.log10(leading)) if leading > 0 else wanted
    decimals = min(4, max(0, decimals))
    score_text = f"{s / scale:+,.{decimals}f}".replace("-", "−")
    return score_text, MISSING if e is None else f"{e / scale:,.{decimals}f}"


def rows_table(rows: Iterable[tuple[str, str]], *, name: str) -> str:
    """Return a two-column table of (escaped) names and values with row headers."""
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in rows
    )
    return f'<table aria-label="{escape(name)}"><tbody>{body}</tbody></table>'


def facts(rows: Mapping[str, str]) -> str:
    """Return the figures below the headline."""
    cells = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows.items())
    return f'<dl class="trust">{"".join(cells)}</dl>'


def notes_section(notes: Sequence[str]) -> str:
    """Return the notes as a section; empty for none."""
    if not notes:
        return ""
    rows = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section id="notes"><h2>Notes</h2><ul class="plain-list">{rows}</ul></section>'


def untrusted_box(failed_gates: Sequence[str]) -> str:
    """Return the box that warns of a run that failed its gates; empty for none."""
    if not failed_gates:
        return ""
    return (
        '<div class="warnings"><strong>Not trusted:</strong> the run failed '
        f"{escape(', '.join(failed_gates))}. What is predicted here may be noise.</div>"
    )


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
