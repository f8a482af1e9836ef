"""The commands that choose settings and say why, or what a run will take, without sampling."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from bif import store
from bif.cli.language import Language, posed
from bif.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Choose what the settings leave open, from model and data, and say why.

    With --budget or --reliability a short pilot forecasts draws, seconds and reliability.
    `bif attribute` with the same options does the same before it samples.
    """

    target: tyro.conf.Positional[str | None] = None
    """FILE.py:FUNCTION, unless there is a --model."""
    out: str
    """Folder or fsspec URL for calibration.json."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.calibrate import calibrate

        found = calibrate(*posed(self.target, self.language, self.settings, query=self.query))
        for line in found.explanations:
            print(line)
        store.write_calibration(
            self.out, settings=found.settings.as_dict(), explanations=found.explanations
        )
        print(f"written to {self.out.rstrip('/')}/{store.CALIBRATION}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run of a live module will take: bytes on the device, seconds.

    `bif attribute` with the same options says the same before it samples.
    """

    target: tyro.conf.Positional[str | None] = None
    """FILE.py:FUNCTION, unless there is a --model."""
    query: tuple[str, ...] = ()
    """With --model: files of queries, each a group named after its file."""
    language: Language = field(default_factory=Language)
    settings: Settings = field(default_factory=Settings)

    def run(self) -> None:
        from bif.plan import plan

        found = plan(*posed(self.target, self.language, self.settings, query=self.query))
        for line in found.in_words():
            print(line)
