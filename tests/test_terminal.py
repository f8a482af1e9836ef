"""What long runs say while they run."""

from __future__ import annotations

import pytest
import rich.progress  # noqa: F401  # before its clock is replaced, as in a run

from bif import terminal
from bif.terminal import ProgressBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute_and_once_how_to_ask_for_less(capsys, clock):
    with ProgressBar(1000, reliability=lambda: 0.5, shown=True, hint="ask for less") as bar:
        for _ in range(9):
            clock[0] += 10
            bar.advance(10)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("sampling: ")]
    assert [line.split(" draws")[0] for line in told] == [
        "sampling: 40 of 1,000", "sampling: 80 of 1,000",
    ]  # fmt: skip
    assert told[0].endswith("1 draws/s, 16 min left, reliability 0.50")
    assert [line for line in lines if "ask for less" in line] == ["about 16 min left; ask for less"]


def test_a_short_run_is_not_told_to_ask_for_less(capsys, clock):
    with ProgressBar(100, reliability=lambda: float("nan"), shown=True, hint="ask for less") as bar:
        clock[0] += 40
        bar.advance(50)
    said = capsys.readouterr().err
    assert "50 of 100 draws" in said and "not mixed yet" in said and "ask for less" not in said


def test_nothing_is_shown_unless_asked_for(capsys, clock):
    with ProgressBar(100, reliability=lambda: 0.5, shown=False) as bar:
        clock[0] += 40
        bar.advance(50)
    assert capsys.readouterr() == ("", "")
