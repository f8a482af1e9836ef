"""Observables that are recorded through a proxy: what is recorded, shown and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bif
from bif.baselines import ExactInfluence, gradient_product
from bif.problem.identity import identity
from bif.report import render_report
from bif.sampling.engine import Engine
from bif.store import FolderInUse
from command_line import failed
from exact_problems import settings_for
from rival_problems import GN
from small_problems import TINY, NotStackable, Pairs, classification, filled, labelled, normal
from small_problems import stack_near as near
from token_problems import problem as of_texts

CROSS_ENTROPY, SQUARED_ERROR = bif.losses.cross_entropy, bif.losses.squared_error
LOSS = bif.Observable("loss", CROSS_ENTROPY, "lower")
THROUGH = replace(LOSS, through=bif.known_proxy(CROSS_ENTROPY))
RESIDUALS = bif.Observable("loss", SQUARED_ERROR, "lower", bif.known_proxy(SQUARED_ERROR))


def regression(num_outputs: int = 2, **changed: Any) -> bif.Problem:
    """20 items and 5 queries of a tanh network with several outputs, float64."""
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, num_outputs)))
    sizes = {"train": 20, "queries": 5}
    given = {
        name: (normal(n, 4, seed=n), normal(n, num_outputs, seed=n + 1))
        for name, n in sizes.items()
    }
    return bif.Problem(model, SQUARED_ERROR, **{"observables": [RESIDUALS], **given, **changed})


def sampled(problem: bif.Problem, **changed: Any) -> Engine:
    """The machinery of a tiny run."""
    return Engine(problem, bif.calibrate(problem, replace(TINY, **changed)).settings)


def at(model: nn.Module, params: dict[str, Tensor], chain: int) -> nn.Module:
    """The model with one chain's weights."""
    model.load_state_dict({name: leaf[chain] for name, leaf in params.items()})
    return model


def slopes(problem: bif.Problem, batch: tuple[Tensor, Tensor]) -> np.ndarray:
    """`-(1 - p)` at w*."""
    return -torch.sigmoid(-bif.losses.margin(problem.model, batch)).detach().numpy()


class TestWhatIsRecorded:
    @pytest.mark.parametrize("num_outputs", [1, 3])
    def test_squared_errors_are_linearised_in_every_output(self, num_outputs):
        problem = regression(num_outputs)
        run = sampled(problem)
        params = near(run.posterior.center, 3)
        recorded = run.observer.queries(params)
        x, y = problem.query_groups["query"].data
        with torch.no_grad():
            center = problem.model(x)
            for chain in range(3):
                outputs = at(problem.evaluation_copy(problem.device), params, chain)(x)
                change = ((center - y) * (outputs - center)).sum(dim=1)
                expected = SQUARED_ERROR(problem.model, (x, y)) + change
                torch.testing.assert_close(recorded[chain], expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARED_ERROR])
    def test_value_and_gradient_at_the_center_are_those_of_the_loss(self, loss):
        problem = classification(observables=[THROUGH])
        problem = problem if loss is CROSS_ENTROPY else regression()
        run = sampled(problem)
        batch = problem.query_groups["query"].data
        ones = torch.ones(5, dtype=torch.float64)
        (asked,) = run.observer.asked
        values = loss(problem.model, batch)
        torch.testing.assert_close(run.observer.query_center, values.detach(), rtol=1e-14, atol=0)
        parameters = list(problem.model.parameters())
        expected = torch.autograd.grad(values, parameters, ones)
        copy = problem.evaluation_copy(problem.device).requires_grad_(True)
        recorded = asked.function(copy, asked.groups[0].first(5))
        found = torch.autograd.grad(recorded, list(copy.parameters()), ones[:, None])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    def test_the_record_of_a_linear_model_is_the_first_order_loss(self):
        model = filled(nn.Linear(4, 2))
        problem = bif.Problem(
            model, SQUARED_ERROR, train=(normal(9, 4, seed=1), normal(9, 2, seed=2)),
            queries=(normal(3, 4, seed=3), normal(3, 2, seed=4)), observables=[RESIDUALS],
        )  # fmt: skip
        run = sampled(problem)
        params = near(run.posterior.center, 2)
        for q in range(3):
            item = tuple(leaf[q : q + 1] for leaf in problem.query_groups["query"].data)
            value = SQUARED_ERROR(model, item).sum()
            gradient = torch.autograd.grad(value, list(model.parameters()))
            away = [params[n] - p.detach() for n, p in model.named_parameters()]
            change = sum((g * d).flatten(1).sum(1) for g, d in zip(gradient, away, strict=True))
            recorded = run.observer.queries(params)[:, q]
            torch.testing.assert_close(recorded, value.detach() + change, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("oracle", ["stacked", "sequential", "live"])
    def test_scores_are_the_slope_times_those_of_the_margin(self, oracle):
        problem = classification(observables=[THROUGH, bif.MARGIN])
        found = bif.attribute(problem, replace(TINY, oracle=oracle)).influence.dataset
        expected = slopes(problem, labelled(5, seed=2))[:, None] * found["influence"].values[1]
        np.testing.assert_allclose(found["influence"].values[0], expected, rtol=1e-5, atol=1e-12)

    @pytest.mark.parametrize("how", ["chunks", "dataset", "groups", "not stackable"])
    def test_values_do_not_depend_on_how_the_queries_come(self, how):
        parts = {"a": tuple(x[:2] for x in labelled(5, seed=2)),
                 "b": tuple(x[2:] for x in labelled(5, seed=2))}  # fmt: skip
        given: dict[str, Any] = {
            "chunks": {},
            "dataset": {
                "train": Pairs(*labelled(20, seed=1)), "queries": Pairs(*labelled(5, seed=2))
            },
            "groups": {"queries": parts},
            "not stackable": {"model": NotStackable()},
        }[how]  # fmt: skip
        observables = [THROUGH, bif.MARGIN]
        whole = sampled(classification(observables=observables))
        other = sampled(classification(observables=observables, **given), chunk_size=2)
        params = near(whole.posterior.center, 1)
        expected = whole.observer.queries(params)
        if how == "not stackable":
            params = {f"inner.{name}": leaf for name, leaf in params.items()}
        torch.testing.assert_close(other.observer.queries(params), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("tokens", [None, "query", "both"])
    def test_a_proxy_of_tokens_has_a_value_for_each(self, tokens):
        def cubed(model: nn.Module, batch: Any) -> Tensor:
            return bif.losses.next_token(model, batch) ** 3 / 3

        proxy = bif.Proxy(
            "nats", bif.losses.next_token, lambda m, b: bif.losses.next_token(m, b) ** 2
        )
        observables = [bif.Observable("cube", cubed, through=proxy),
                       bif.Observable("nats", bif.losses.next_token)]  # fmt: skip
        problem = of_texts("both" if tokens is None else tokens, observables=observables)
        run = sampled(problem if tokens else problem.by_item())
        recorded, nats = run.observer.queries(near(run.posterior.center, 2)).chunk(2, dim=1)
        value, center = run.observer.query_center.chunk(2)
        if tokens:
            expected = value + center**2 * (nats - center)
            torch.testing.assert_close(recorded, expected, rtol=1e-12, atol=1e-12)
            return
        by_token = (
            sampled(problem).observer.queries(near(run.posterior.center, 2)).chunk(2, dim=1)[0]
        )
        counts = problem.query_columns.item
        sums = torch.stack([by_token[:, counts == q].sum(1) for q in range(3)], dim=1)
        torch.testing.assert_close(recorded, sums, rtol=1e-12, atol=1e-12)

    def test_train_items_are_recorded_themselves(self):
        problem = classification(observables=[THROUGH])
        with_proxy = bif.attribute(problem, TINY).influence
        without = bif.attribute(problem.without_proxies(), TINY).influence
        np.testing.assert_array_equal(with_proxy.self_influence(), without.self_influence())
        assert not np.allclose(with_proxy.dataset["influence"], without.dataset["influence"])

    def test_baselines_are_those_of_the_observable_itself(self):
        problem = classification(observables=[THROUGH])
        itself = problem.without_proxies()
        assert torch.equal(gradient_product(problem), gradient_product(itself))
        both = [
            ExactInfluence.fit(p, curvature=GN).scores(p, damping=0.5) for p in (problem, itself)
        ]
        assert torch.equal(*both)

    def test_groups_of_train_items_are_sums_of_their_items(self):
        influence = bif.attribute(classification(observables=[THROUGH]), TINY).influence
        halves = influence.sum_over(["a"] * 10 + ["b"] * 10).dataset
        expected = influence.dataset["influence"].values.reshape(1, 5, 2, 10).sum(-1)
        np.testing.assert_allclose(halves["influence"], expected, rtol=1e-4, atol=1e-9)
        assert halves["through"].values.tolist() == ["margin"]


class TestAgainstRetraining:
    """Least squares with a proximal term: the derivative is that of the retrained loss."""

    NBETA, GAMMA, STEP = 30.0, 3.0, 1e-4

    def problem(self) -> bif.Problem:
        x, y = normal(12, 3, seed=1), normal(12, 1, seed=2)
        model = filled(nn.Linear(3, 1, bias=False))
        model.load_state_dict({"weight": torch.linalg.lstsq(x, y).solution.T.contiguous()})
        queries = normal(4, 3, seed=3), normal(4, 1, seed=4)
        return bif.Problem(
            model, SQUARED_ERROR, train=(x, y), queries=queries, observables=[RESIDUALS]
        )

    def retrained(self, problem: bif.Problem, weights: Tensor) -> Tensor:
        """Losses of the queries at the minimum of U with these weights of the items, `[Q]`."""
        (x, y), (a, b) = problem.train.data, problem.query_groups["query"].data
        scale, center = self.NBETA / 12 * weights[:, None], problem.center()["weight"][0]
        matrix = x.T @ (scale * x) + self.GAMMA * torch.eye(3, dtype=torch.float64)
        w = torch.linalg.solve(matrix, x.T @ (scale * y)[:, 0] + self.GAMMA * center)
        return 0.5 * (a @ w - b[:, 0]) ** 2

    def differences(self, problem: bif.Problem) -> np.ndarray:
        """Central differences of the retrained losses in every item's weight, `[Q, N]`."""
        columns = []
        for step in self.STEP * torch.eye(12, dtype=torch.float64):
            up, down = self.retrained(problem, 1 + step), self.retrained(problem, 1 - step)
            columns.append((up - down) / (2 * self.STEP))
        return torch.stack(columns, dim=1).numpy()

    def test_the_response_of_the_minimum_is_its_derivative(self):
        problem = self.problem()
        settings = bif.Settings(nbeta=self.NBETA, gamma=self.GAMMA)
        found = bif.respond(problem, settings, temperature=0.0, h=1e-4)
        derivative = found.influence.dataset["derivative"].values[0]
        expected = self.differences(problem)
        np.testing.assert_allclose(derivative, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())

    def test_the_derivative_is_within_its_errors_and_without_the_slope_it_is_not(self):
        problem = self.problem()
        x, _ = problem.train.data
        precision = self.NBETA / 12 * x.T @ x + self.GAMMA * torch.eye(3, dtype=torch.float64)
        settings = settings_for(precision, nbeta=self.NBETA, gamma=self.GAMMA)
        proxy = bif.known_proxy(SQUARED_ERROR)
        assert proxy is not None
        ones = replace(proxy, slope=lambda m, b: torch.ones_like(proxy.slope(m, b)))
        mutant = bif.Observable("without slope", SQUARED_ERROR, "lower", ones)
        asked = problem.asking(problem.query_groups, observables=[RESIDUALS, mutant])
        found = bif.attribute(asked, settings).influence.dataset
        error = self.NBETA / 12 * found["standard_error"].values
        off = abs(found["derivative"].values - self.differences(problem)) / error
        assert off[0].max() < 6 < off[1].max()


class TestResponse:
    def test_responses_are_of_what_the_fluctuations_record(self):
        settings = bif.Settings(nbeta=20.0, gamma=5.0)
        problem = classification(observables=[THROUGH, bif.MARGIN])
        found = {
            name: bif.respond(problem, settings, observable=name, temperature=0.0, h=1e-4)
            for name in ("loss", "margin")
        }
        expected = slopes(problem, labelled(5, seed=2))[:, None] * found["margin"].scores
        np.testing.assert_allclose(found["loss"].scores, expected, rtol=1e-3, atol=1e-5)
        dataset = found["loss"].influence.dataset
        assert dataset["through"].values.tolist() == ["margin"]
        values = CROSS_ENTROPY(problem.model, labelled(5, seed=2)).detach().numpy()
        np.testing.assert_allclose(dataset["query_center"].values[0], values, rtol=1e-6)


class TestWhereItShows:
    def test_a_cross_entropy_goes_through_its_margin_by_default_and_a_squared_error_does_not(self):
        assert classification(observables=None).proxy_names == ["margin"]
        assert regression(observables=None).proxy_names == [""]
        assert regression().proxy_names == ["residual"]
        assert classification(observables=[LOSS]).proxy_names == [""]

    def test_a_loss_of_ones_own_has_no_proxy_unless_one_is_given(self):
        def mine(model: nn.Module, batch: Any) -> Tensor:
            return CROSS_ENTROPY(model, batch)

        assert classification(loss=mine, observables=None).proxy_names == [""]
        given = bif.Observable("loss", mine, "lower", bif.known_proxy(CROSS_ENTROPY))
        assert classification(loss=mine, observables=[given]).proxy_names == ["margin"]
        assert bif.known_proxy(bif.losses.next_token) is None

    def test_the_result_names_it(self, tmp_path: Path, call):
        problem = classification(observables=[THROUGH, bif.MARGIN])
        run = bif.attribute(problem, TINY, out=tmp_path / "run")
        assert run.influence.dataset["through"].values.tolist() == ["margin", ""]
        assert "loss through the margin (lower better), margin (higher better)" in repr(run)
        assert any("goes through the margin" in line for line in run.manifest["explanations"])
        assert run.manifest["identity"]["through"]["loss"][0] == "margin"
        code, said, _ = call("show", tmp_path / "run", "--verbose")
        assert code == 0 and "loss through the margin" in said
        page = (tmp_path / "run" / "report.html").read_text()
        assert "The loss was recorded through the margin" in page
        assert "The margin was recorded" not in page and "loss <small>through the margin" in page

    def test_a_result_without_the_coordinate_is_shown_as_before(self):
        run = bif.attribute(classification(observables=[THROUGH]), TINY)
        old = run.influence.dataset.drop_vars("through")
        assert "observables: loss (lower better)" in repr(bif.Influence(old))
        page = render_report(
            old, diagnostics=run.diagnostics, summary=run.summary, manifest=dict(run.manifest)
        )
        assert "was recorded through" not in page

    def test_the_strongest_scores_name_it_too(self):
        run = bif.attribute(classification(observables=[THROUGH]), TINY, top=3)
        assert "loss through the margin" in repr(run.influence)


class TestOneRunIsNotTheOther:
    def test_without_a_proxy_a_run_is_the_one_that_earlier_versions_made(self):
        assert "through" not in identity(classification(observables=[LOSS]), TINY.as_dict())
        names = {"through"} ^ set(identity(classification(observables=[THROUGH]), TINY.as_dict()))
        assert names == set(identity(classification(observables=[LOSS]), TINY.as_dict()))

    @pytest.mark.parametrize("order", [(LOSS, THROUGH), (THROUGH, LOSS)])
    def test_a_run_is_not_gone_on_with_the_other_way(self, tmp_path: Path, order):
        first, second = (classification(observables=[o]) for o in order)
        bif.attribute(first, TINY, out=tmp_path)
        for again in (
            lambda: bif.attribute(second, TINY, out=tmp_path),
            lambda: bif.extend(tmp_path, second, draws=8),
        ):
            with pytest.raises(FolderInUse, match=r"another through \(what stands in .*proxies"):
                again()
        assert bif.load(tmp_path).influence.dataset.sizes["query"] == 5

    def test_runs_of_both_kinds_are_not_merged(self, tmp_path: Path):
        for seed, observable in enumerate((LOSS, THROUGH)):
            bif.attribute(classification(observables=[observable]), replace(TINY, seed=seed),
                          out=tmp_path / str(seed))  # fmt: skip
        with pytest.raises(FolderInUse, match="another through"):
            bif.merge([tmp_path / "0", tmp_path / "1"])

    def test_further_queries_are_recorded_as_from_the_start(self, tmp_path: Path):
        problem = classification(observables=[THROUGH])
        bif.attribute(problem, TINY, out=tmp_path / "grown")
        more = problem.extended(queries={"more": labelled(3, seed=7)})
        grown = bif.extend(tmp_path / "grown", more)
        fresh = bif.attribute(more, TINY)
        np.testing.assert_array_equal(
            grown.influence.dataset["influence"], fresh.influence.dataset["influence"]
        )

    def test_the_command_line_can_do_without(self, tmp_path: Path, call):
        file, out = tmp_path / "mine.py", tmp_path / "out"
        tests = str(Path(__file__).parents[1])
        file.write_text(
            f"import sys\nsys.path.insert(0, {tests!r})\n"
            "from small_problems import classification\n"
            "def problem():\n    return classification(observables=None)\n"
        )
        flags = [f"{file}:problem", "--out", out, "--chains", 4, "--draws", 6, "--burn-in", 4,
                 "--thin", 2, "--step-size", 0.02, "--friction", 2, "--gamma", 5]  # fmt: skip
        assert call("attribute", *flags, "--without-proxies")[0] == 0
        assert bif.load(out).influence.dataset["through"].values.tolist() == [""]
        assert "--without-proxies" in failed(call("attribute", *flags))
        assert call("attribute", *flags, "--overwrite")[0] == 0
        assert bif.load(out).influence.dataset["through"].values.tolist() == ["margin"]


class TestRefused:
    @pytest.mark.parametrize(
        ("function", "slope"),
        [
            (bif.losses.margin, lambda m, b: m(b[0])),
            (lambda m, b: m(b[0]), bif.losses.margin),
        ],
    )
    def test_slopes_that_do_not_fit_the_proxy_are_refused(self, function, slope):
        proxy = bif.Proxy("mine", function, slope)
        with pytest.raises(ValueError, match="expected a slope for every value of the proxy"):
            classification(observables=[replace(LOSS, through=proxy)])

    def test_a_proxy_that_is_not_finite_is_named(self):
        proxy = bif.Proxy("mine", bif.losses.margin, lambda m, b: bif.losses.margin(m, b) / 0)
        with pytest.raises(ValueError, match="slope of the proxy 'mine' of the observable 'loss'"):
            classification(observables=[replace(LOSS, through=proxy)])

    def test_another_kind_of_proxy_is_refused(self):
        wrong: Any = SimpleNamespace(name="margin")
        with pytest.raises(TypeError, match="through must be a bif.Proxy"):
            bif.Observable("loss", CROSS_ENTROPY, "lower", wrong)
