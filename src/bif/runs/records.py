"""Records of a run: the manifest, `run.json`, and the figures, `summary.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

NAN = float("nan")


def is_solved(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run's scores were solved for, not sampled, asked for or by default."""
    chosen = manifest.get("settings") or manifest.get("identity", {}).get("settings", {})
    return chosen.get("estimator") == "response"


def refuse_solved(manifest: Mapping[str, Any], what: str) -> None:
    """Raise where a run's scores were solved for and chains are needed.

    Raises:
        ValueError: They were; `what` cannot be done, and what to do.
    """
    if is_solved(manifest):
        raise ValueError(f"the run was solved with estimator='response' and cannot be {what}.")


@dataclass(frozen=True, kw_only=True)
class Record(Mapping[str, Any]):
    """A dataclass that reads as the mapping in its JSON file.

    Attributes:
        others: Entries without a field, as other versions or other parts of the library have them.
    """

    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Return the record of a mapping; what it lacks keeps its default."""
        known = {f.name for f in fields(cls)} - {"others"}
        others = {n: v for n, v in found.items() if n not in known}
        return cls(**{n: v for n, v in found.items() if n in known}, others=others)

    def with_entries(self, **entries: Any) -> Self:
        """Return a record with some entries replaced or added."""
        return self.read({**self, **entries})

    def __getitem__(self, name: str) -> Any:
        own = name in self.__dataclass_fields__ and name != "others"
        return getattr(self, name) if own else self.others[name]

    def __iter__(self) -> Iterator[str]:
        yield from (f.name for f in fields(self) if f.name != "others")
        yield from self.others

    def __len__(self) -> int:
        return len(fields(self)) - 1 + len(self.others)


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """The figures of a run, one number each.

    Attributes:
        trusted: Whether no gate failed.
        complete: Whether it was sampled to its end.
        draws: Draws of all surviving chains together.
        chains: Chains that survived.
        seconds: Seconds of the whole run.
        draws_per_second: Draws over all these seconds.
        sampling_seconds: Seconds of the chains alone.
        ess_median: Effective sample size of the items' losses, their median.
        autocorrelation_steps: Steps to an independent draw, by `ess_median`.
        rhat_max: Largest R-hat of items, queries and the mean loss.
        reliability: Correlation of the scores with those of another such run.
        diverged_chains: Chains that diverged and were left out.
    """

    trusted: bool = True
    complete: bool = True
    draws: int = 0
    chains: int = 0
    seconds: float = NAN
    draws_per_second: float = NAN
    sampling_seconds: float = NAN
    ess_median: float = NAN
    autocorrelation_steps: float = NAN
    rhat_max: float = NAN
    reliability: float = NAN
    diverged_chains: Sequence[int] = ()

    @property
    def solved(self) -> bool:
        """Whether the scores were solved for, not sampled."""
        return self.others.get("estimator") == "response"


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The settings and findings of a run.

    Attributes:
        identity: Fingerprints of problem and settings as they were asked for.
        keep: "traces", "sums" or "weights".
        top: Number of scores of every row that are kept either way; None for all.
        settings: Complete settings.
        explanations: A line for each choice.
        forecast: Forecast of memory and disk, in words.
        gates: All gates, with value, limit and verdict.
        warnings: What a reader should see beside the result.
        complete: Whether it was sampled to its end.
        versions: Versions of bif and of the libraries that it computes with.
        hardware: Description of the device.
        device: Name of the device.
        num_train: Train items of the posterior; num_queries: queries.
        num_moving_weights: Weights that the chains move; num_weights: of the model.
        weight_types: Types of the weights that move.
        panels: Columns of the traces by groups.
        left_out: Chains that are no part of the scores.
    """

    identity: Mapping[str, Any]
    keep: str = "traces"
    top: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    explanations: Sequence[str] = ()
    forecast: Sequence[str] = ()
    gates: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    complete: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    num_train: int = 0
    num_queries: int = 0
    num_moving_weights: int = 0
    num_weights: int = 0
    weight_types: Sequence[str] = ()
    panels: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[int] = ()
