"""The empirical Fisher matrix in kernel form against the dense solve."""

import pytest
import torch

from bif.baselines import EKFAC, ConjugateGradients, EmpiricalFisher, ExactInfluence, item_gradients
from rival_problems import (
    GN,
    close,
    damped,
    dense_gradients,
    dense_scores,
    mlp_problem,
    scores_of,
    tokens,
)
from small_problems import classification, normal

RHO = normal(20, seed=4).exp()


@pytest.mark.parametrize("rho", [None, RHO], ids=["unweighted", "weighted"])
def test_the_kernel_form_is_the_dense_solve(rho):
    problem = classification(train_weights=rho)
    g = dense_gradients(problem, problem.loss, problem.train.data)
    weight = torch.ones(20).double() if rho is None else rho
    matrix = (weight[:, None] * g).T @ g / 20
    got = scores_of(EmpiricalFisher, problem, damping=0.05)
    close(got, dense_scores(problem, damped(matrix, 0.05)))
    fitted = EmpiricalFisher.fit(problem)
    scaled = fitted.scores(problem, damping_scale=0.05 / fitted.mean_eigenvalue)
    close(scaled, got)


def test_no_damping_is_refused():
    with pytest.raises(ValueError, match="needs a damping above 0"):
        scores_of(EmpiricalFisher, classification(), damping=0.0)


class TestPreconditioner:
    def test_a_few_steps_mend_what_ekfac_leaves(self):
        problem = mlp_problem()
        exact = scores_of(ExactInfluence, problem, damping=0.01, curvature=GN)
        ekfac = EKFAC.fit(problem)
        fitted = ConjugateGradients.fit(
            problem, curvature=GN, preconditioner=ekfac, tolerance=1e-13
        )
        close(fitted.scores(problem, damping=0.01), exact)
        errors = [ekfac.scores(problem, damping=0.01) - exact]
        errors += [fitted.scores(problem, damping=0.01, steps=k) - exact for k in (3, 10)]
        sizes = [float(error.norm() / exact.norm()) for error in errors]
        assert sizes[1] < 0.5 * sizes[0] and sizes[2] < 0.5 * sizes[1]

    def test_weights_without_factors_count_by_their_diagonal(self):
        problem, _ = tokens()
        ekfac = EKFAC.fit(problem, fisher_type="mc", other_layers="diagonal")
        fitted = ConjugateGradients.fit(
            problem, curvature=GN, preconditioner=ekfac, tolerance=1e-13
        )
        exact = scores_of(ExactInfluence, problem, damping=0.1, curvature=GN)
        close(fitted.scores(problem, damping=0.1), exact)
        g = item_gradients(problem, problem.loss, problem.train)
        names = list(problem.center())
        sizes = [leaf.numel() for leaf in problem.center().values()]
        squares = g.square().mean(dim=0).split(sizes)
        embedding = names.index("embed.weight")
        close(ekfac.eigenvalues["weights without factors"], squares[embedding])

    def test_weights_left_out_are_refused(self):
        problem, _ = tokens()
        ekfac = EKFAC.fit(problem, fisher_type="mc", other_layers="leave_out")
        with pytest.raises(ValueError, match="fit it with other_layers='diagonal'"):
            ConjugateGradients.fit(problem, preconditioner=ekfac)
