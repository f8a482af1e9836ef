"""Checkpoints of one training in the order of their steps, from files or from memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bif.problem.problem import Problem

Weights = Mapping[str, Tensor]
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Endings of files of weights."""
_WRAPPED = ("state_dict", "model_state_dict", "model")
"""Names under which training loops keep a state dict among other things."""
_STEP = re.compile(r"step[^0-9]{0,2}(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, eq=False)
class Stage:
    """One checkpoint of a series, whose weights are read when they are asked for.

    Attributes:
        step: Steps of training before it.
        name: Of its file or revision.
        read: Returns its state dict.
    """

    step: int
    name: str
    read: Callable[[], Weights]


class CheckpointSeries:
    """Checkpoints of one training, in order of their steps.

        series = bif.CheckpointSeries.from_folder("checkpoints")
        series = bif.CheckpointSeries.from_weights({0: first, 100: second})

    Args:
        stages: In any order.
        unusable: Reasons, by the names of what was left out already.

    Attributes:
        stages: One a step.
        unusable: Reasons by name, as of a second checkpoint of a step.
    """

    def __init__(
        self, stages: Iterable[Stage], *, unusable: Mapping[str, str] | None = None
    ) -> None:
        self.unusable = dict(unusable or {})
        kept: dict[int, Stage] = {}
        for stage in sorted(stages, key=lambda s: (s.step, s.name)):
            if stage.step in kept:
                other = kept[stage.step].name
                self.unusable[stage.name] = f"step {stage.step:,} is that of {other!r} too"
            else:
                kept[stage.step] = stage
        self.stages = tuple(kept.values())

    @classmethod
    def from_folder(cls, folder: str | Path) -> CheckpointSeries:
        """Return the checkpoints in a folder: files of weights, or folders as transformers saves.

        The step is the number after "step" in the name, or the last number in it.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: It holds no checkpoint.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {str(folder)!r}.")
        found, unusable = [], {}
        for path in sorted(folder.iterdir()):
            if path.suffix not in FILES and not (path.is_dir() and weight_files(path)):
                continue
            step = step_of(path.stem if path.is_file() else path.name)
            if step is None:
                unusable[path.name] = "its name has no number of steps"
            else:
                found.append(Stage(step, path.name, partial(read_weights, path)))
        if not found:
            raise ValueError(
                f"{str(folder)!r} holds no checkpoint with its steps in the name, such as "
                f"step-100.pt or checkpoint-100/model.safetensors ({', '.join(FILES)})."
            )
        return cls(found, unusable=unusable)

    @classmethod
    def from_weights(cls, weights: Mapping[int, Weights]) -> CheckpointSeries:
        """Return checkpoints that are in memory, state dicts by step."""
        return cls(
            Stage(int(step), f"step-{int(step)}", partial(dict, found))
            for step, found in weights.items()
        )

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def usable(self, problem: Problem) -> CheckpointSeries:
        """Return the checkpoints that are of the problem's model; the reasons against the others.

        Raises:
            ValueError: Fewer than two are left.
        """
        kept, unusable = [], dict(self.unusable)
        for stage in self.stages:
            try:
                problem.require_weights(_finite(stage.read()))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a damaged file makes of its reader
                unusable[stage.name] = str(error).strip() or type(error).__name__
            else:
                kept.append(stage)
        if len(kept) < 2:
            why = "".join(f" {name}: {reason}" for name, reason in [*unusable.items()][:3])
            raise ValueError(
                f"a series needs two checkpoints of the problem's model, and has {len(kept)}.{why}"
            )
        return CheckpointSeries(kept, unusable=unusable)


def stage_problem(problem: Problem, stage: Stage) -> Problem:
    """Return the same problem at a checkpoint's weights.

    Raises:
        ValueError: Weights of another model, or some that are not finite.
    """
    return problem.at_weights(_finite(stage.read()))


def _finite(weights: Weights) -> Weights:
    bad = [n for n, x in weights.items() if x.is_floating_point() and not x.isfinite().all()]
    if bad:
        raise ValueError(f"weights are NaN or infinite in {', '.join(bad[:5])}")
    return weights


def step_of(name: str) -> int | None:
    """Return the number after "step" in a name, or the last number in it."""
    found = _STEP.findall(name) or _NUMBER.findall(name)
    return int(found[-1]) if found else None


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in a folder that transformers saved."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def read_weights(path: Path) -> Weights:
    """Return the state dict of a file, or of the files of a folder, on the host.

    Raises:
        ValueError: Something else is in the file.
    """
    if path.is_dir():
        return {n: leaf for file in weight_files(path) for n, leaf in read_weights(file).items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError("it holds no state dict: a mapping from names to tensors")
    return found
