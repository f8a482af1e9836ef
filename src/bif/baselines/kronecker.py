"""Kronecker factors and corrected eigenvalues of layers, by curvlinops, at one or more weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bif.curvature.fisher import FisherType, squared_fisher
from bif.curvature.library import import_curvlinops
from bif.curvature.outputs import Criterion
from bif.problem.problem import Problem

_KINDS = ("input_covariances", "gradient_covariances")


class Factors(NamedTuple):
    """One layer's eigenvectors and corrected eigenvalues; no input vectors for a bias alone."""

    input_vectors: Tensor | None
    output_vectors: Tensor
    eigenvalues: Tensor


def kronecker_operator(
    problem: Problem,
    names: Sequence[str],
    *,
    fisher_type: FisherType,
    criterion: Criterion | None,
    num_samples: int,
    seed: int,
    chunk_size: int,
) -> Any:
    """Return curvlinops' operator of a problem's curvature, with nothing computed yet.

    Args:
        problem: Model, loss and train items.
        names: Parameters that have factors.
        fisher_type: As for `EKFAC.fit`, and so are the others.
        criterion: How the loss curves in the model's outputs.
        num_samples: For "mc".
        seed: For "mc".
        chunk_size: Items a pass.
    """
    model = problem.evaluation_copy(problem.device).requires_grad_()
    wrapped, data = squared_fisher(problem, model, fisher_type, criterion, chunk_size)
    parameters = dict(model.named_parameters())
    return import_curvlinops().EKFACLinearOperator(
        wrapped,
        nn.MSELoss(reduction="sum"),
        [parameters[name] for name in names],
        data,
        check_deterministic=False,
        seed=seed,
        fisher_type="mc" if fisher_type == "mc" else "type-2",
        mc_samples=num_samples if fisher_type == "mc" else 1,
        num_per_example_loss_terms=1,
        separate_weight_and_bias=False,
        num_data=problem.num_train,
        batch_size_fn=lambda x: len(x["weights"]),
    )


def compute_factors(
    operators: Sequence[Any], shares: Sequence[float], layers: Mapping[str, list[str]]
) -> dict[str, Factors]:
    """Return the eigenbasis of the mean factors, and the mean corrected eigenvalues in it.

    Args:
        operators: One a checkpoint.
        shares: Weight of each in the means.
        layers: Names of layers, and of their weights.
    """
    vectors: dict[str, dict[str, Tensor]] = {}
    for operator in operators:
        operator.compute_kronecker_factors()
    for kind in _KINDS:
        # The operators' own dicts: emptied for memory, and given the common vectors below.
        own = [operator.state_dict()[kind] for operator in operators]
        vectors[kind] = {
            key: _eigenvectors(mean_of([one.pop(key) for one in own], shares))
            for key in list(own[0])
        }
    for operator in operators:
        for kind in _KINDS:
            operator.state_dict()[f"{kind}_eigenvectors"].update(vectors[kind])
        operator.compute_eigenvalue_correction()
    corrected = [operator.state_dict()["corrected_eigenvalues"] for operator in operators]
    found = {}
    for layer in layers:
        key = f"model.{layer}".rstrip(".")
        values = [
            next(iter(one[key].values())) if isinstance(one[key], dict) else one[key]
            for one in corrected
        ]  # a dict for the weight or the bias alone
        found[layer] = Factors(
            vectors["input_covariances"].get(key),
            vectors["gradient_covariances"][key],
            mean_of(values, shares),
        )
    return found


def _eigenvectors(factor: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix, in double precision where float32 fails.

    So it does where much of a layer is nearly dead: eigenvalues that are rounding repeat.
    """
    try:
        return torch.linalg.eigh(factor).eigenvectors
    except torch.linalg.LinAlgError:
        return torch.linalg.eigh(factor.double()).eigenvectors.to(factor)


def mean_of(leaves: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return `Σ share · leaf`."""
    total = torch.zeros_like(leaves[0])
    for leaf, share in zip(leaves, shares, strict=True):
        total += share * leaf
    return total
