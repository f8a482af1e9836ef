"""TracIn: gradient products summed over the checkpoints of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bif.baselines.fitted import require_same_fit
from bif.problem.checkpoints import Checkpoint, at_checkpoint, require_checkpoints
from bif.problem.problem import Problem, find_observable
from bif.sampling.item_gradients import signed_products


class TracIn:
    """`-Σ_k learning_rate_k · num_steps_k · g_i(w_k) · g_phi(w_k)` over checkpoints w_k.

    The change of the observable by the steps on an item's loss, to first order in each step; what
    a step changes in later ones is left out.  n times the derivative by the item's weight in the
    mean loss, as for the other methods of `bif.baselines`.

        fitted = TracIn.fit(problem, checkpoints)
        fitted.scores(problem)

    Source: Pruthi et al. 2020 (arXiv 2002.08484), TracInCP.
    """

    def __init__(self, problem: Problem, checkpoints: Sequence[Checkpoint]) -> None:
        self._problem, self._checkpoints = problem, tuple(checkpoints)

    @classmethod
    def fit(cls, problem: Problem, checkpoints: Sequence[Checkpoint]) -> TracIn:
        """Check the checkpoints; the gradients are taken by `scores`.

        Args:
            problem: Model, loss and train items.
            checkpoints: Weights on the way of training, each with the learning rate and the number
                of steps that it stands for.

        Raises:
            ValueError: No checkpoint, or one of another model.
            TypeError: One that is no `Checkpoint`.
        """
        require_checkpoints(problem, checkpoints)
        return cls(problem, checkpoints)

    def scores(self, problem: Problem, *, observable: str | None = None) -> Tensor:
        """Return the scores of any queries.

        Args:
            problem: The one that was fitted, or one that differs in queries and observables.
            observable: Name of one of the problem's observables; the first by default.

        Returns:
            `[Q, N]` on the CPU, in float64.

        Raises:
            KeyError: No such observable.
            ValueError: Another model or train items.
        """
        require_same_fit(self._problem, problem)
        function = find_observable(problem, observable).function
        total = torch.zeros(problem.num_queries, problem.num_train, dtype=torch.float64)
        for checkpoint in self._checkpoints:
            here = at_checkpoint(problem, checkpoint)
            total += checkpoint.duration * signed_products(here, function)
        return total
