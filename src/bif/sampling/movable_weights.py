"""Decide which weights move, and what a run says of it."""

from __future__ import annotations

from dataclasses import replace
from glob import escape

import torch
from torch import Tensor

from bif.problem.problem import Problem
from bif.problem.weights import NARROW
from bif.sampling.choices import Choices
from bif.sampling.posterior import LocalPosterior, choose
from bif.sampling.settings import Settings


def moving(problem: Problem, movable: tuple[str, ...] | None) -> dict[str, bool | Tensor]:
    """Return the parameters that move, in the model's order: True, or a mask `[*shape]`.

    Padding rows stay: the gradient by an embedding's row `padding_idx` is zero by construction,
    although losses depend on the row, so that it would spread to the prior.  Slices that name it
    move it.

    Args:
        problem: Whose model.
        movable: Globs as in `Settings`; None for what requires gradients.

    Raises:
        ValueError: As `bif.LocalPosterior`; tied weights that nobody has decided on.
    """
    parameters = problem.parameters()
    chosen = choose(parameters, _trainable(problem) if movable is None else movable)
    found: dict[str, bool | Tensor] = {}
    for name, mask in chosen.items():
        if mask is None and name in problem.padding_rows:
            mask = torch.ones_like(parameters[name], dtype=torch.bool)
            mask[problem.padding_rows[name]] = False
            if not mask.any():
                continue
        found[name] = True if mask is None else mask
    problem.refuse_tied(found.keys())
    return found


def num_moving(problem: Problem, settings: Settings) -> int:
    """Return the number of weights that move."""
    found, parameters = moving(problem, settings.movable), problem.parameters()
    return LocalPosterior(
        {name: parameters[name] for name in found}, 1.0, 1.0, found, copies_center=False
    ).num_moving


def with_movable(problem: Problem, settings: Settings, choices: Choices) -> Settings:
    """Return settings that name the weights that move, and record how many do, and why."""
    found, parameters = moving(problem, settings.movable), problem.parameters()
    num = num_moving(problem, settings)
    total = sum(leaf.numel() for leaf in parameters.values())
    frozen = {name for name, p in problem.model.named_parameters() if not p.requires_grad}
    of_frozen = f"{len(frozen)} of {len(parameters)} parameters are frozen (requires_grad=False)"
    if settings.movable is not None:
        why = "as movable names them"
        if frozen & found.keys():
            why += f", {len(frozen & found.keys())} frozen ones (requires_grad=False) among them"
    elif len(frozen) == len(parameters):
        kind = "all" if len(found) == len(parameters) else "the adapter's"
        why = f"{of_frozen}, none is left to tell what was trained, so {kind} move: name others in "
        why += "movable"
    elif frozen:
        why = f"{of_frozen} and stay: name them in movable to move them"
    else:
        why = "all that there are" if num == total else "all but padding rows"
    choices.choose("movable", f"{num:,} of {total:,} weights", why)
    held = [name for name in problem.padding_rows if isinstance(found.get(name, True), Tensor)]
    if held and num < total:
        row = problem.padding_rows[held[0]]
        choices.remark(
            f"padding rows stay: {', '.join(held)} have gradients of zero there by construction "
            f"(padding_idx); name a row, {held[0]}[{row}:{row + 1}], to move it"
        )
    if problem.narrow_types and settings.memory != "lean":
        narrow = " and ".join(problem.narrow_types)
        if any(parameters[name].dtype in NARROW for name in found):
            choices.choose(
                "weights", "float32", f"the model's {narrow} is too coarse for the steps of a "
                "chain (memory='lean' alone keeps matrices in bfloat16)",
            )  # fmt: skip
        else:
            choices.remark(
                f"what stays is {narrow}, and is read as float32 of the same values; what moves "
                "keeps the model's own type"
            )
    if settings.movable is not None:
        return settings
    whole = len(problem.trainable) == len(parameters)
    return replace(settings, movable=("*",) if whole else _trainable(problem))


def _trainable(problem: Problem) -> tuple[str, ...]:
    """Return the parameters that require gradients, as globs."""
    return tuple(map(escape, problem.trainable))
