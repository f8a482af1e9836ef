"""Save checkpoints at chosen steps: from plain loops, transformers' Trainer and Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from bif import store


def log_spaced_steps(last: int, *, count: int = 30) -> tuple[int, ...]:
    """Return about `count` steps from 0 to the last one, at equal ratios from 1 on."""
    if last < 1 or count < 2:
        raise ValueError(f"last is {last} and count {count}; expected at least 1 and 2.")
    ratio = last ** (1 / max(1, count - 2))
    return tuple(sorted({0, *(round(ratio**k) for k in range(count - 1)), last}))


class SaveCheckpoints:
    """Save a model's weights at some of the steps of its training.

        save = bif.SaveCheckpoints("checkpoints", bif.log_spaced_steps(10_000))
        for step, batch in enumerate(batches):
            save(step, model)
            ...
        save(10_000, model)

    Args:
        folder: Where files go, one a step.
        steps: At which weights are saved; step 0 is before training.
    """

    def __init__(self, folder: str | Path, steps: Iterable[int]) -> None:
        self.folder, self.steps = Path(folder), frozenset(steps)

    def __call__(self, step: int, model: nn.Module) -> None:
        """Save the weights if this is one of the steps."""
        if step in self.steps:
            store.save_weights(self.folder, step, model.state_dict())

    def for_trainer(self) -> Any:
        """Return a callback of transformers' Trainer."""
        from transformers import TrainerCallback

        save = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                save(state.global_step, given["model"])

            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                save(state.global_step, given["model"])

        return Callback()

    def for_lightning(self) -> Any:
        """Return a callback of Lightning's Trainer; weights are those of the LightningModule."""
        try:
            from lightning.pytorch import Callback  # type: ignore[import-not-found]
        except ImportError:
            from pytorch_lightning import Callback  # type: ignore[import-not-found]

        save = self

        class Save(Callback):
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                save(trainer.global_step, pl_module)

            def on_train_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
                save(trainer.global_step, pl_module)

        return Save()
