"""Record what was chosen for the user, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

_WARNING = "warning: "


@dataclass(frozen=True)
class Choice:
    """A chosen value or a remark, with its reason.

    Attributes:
        name: Name of the setting; empty for a remark.
        value: The value as a reader should see it.
        reason: The reason in words.
        is_warning: Whether it belongs beside the result.
    """

    name: str
    value: str
    reason: str
    is_warning: bool = False

    def __str__(self) -> str:
        line = f"{self.name} = {self.value}: {self.reason}" if self.name else self.reason
        return _WARNING + line if self.is_warning else line

    @classmethod
    def from_line(cls, line: str) -> Choice:
        """Return the remark that a manifest's line is."""
        return cls("", "", line.removeprefix(_WARNING), line.startswith(_WARNING))


class Choices:
    """The choices in the order in which they were made.

    Args:
        tell: Gets the line of each choice as it is made.
    """

    def __init__(self, tell: Callable[[list[str]], None] | None = None) -> None:
        self._made: list[Choice] = []
        self._tell = tell

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._made)

    def choose(self, name: str, value: str | float, reason: str) -> None:
        """Record a setting's value; a number is shown with four digits."""
        shown = value if isinstance(value, str) else _digits(value)
        self.extend([Choice(name, shown, reason)])

    def remark(self, text: str) -> None:
        """Record what a reader should know beside the choices."""
        self.extend([Choice("", "", text)])

    def warn(self, text: str) -> None:
        """Record what a reader should see beside the result."""
        self.extend([Choice("", "", text, is_warning=True)])

    def extend(self, choices: Iterable[Choice], *, under: str = "") -> None:
        """Record choices that were made elsewhere, as remarks under a heading if there is one."""
        for choice in choices:
            if under:
                text = str(replace(choice, is_warning=False))
                choice = Choice("", "", f"{under}: {text}", choice.is_warning)
            self._made.append(choice)
            if self._tell is not None:
                self._tell([str(choice)])

    def forget(self, *names: str) -> None:
        """Drop the choices of these settings, which are about to be made anew."""
        self._made = [choice for choice in self._made if choice.name not in names]


def _digits(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"
