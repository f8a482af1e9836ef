"""nbeta and gamma by a few retrained networks: forecasts, search, what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

import bif
from benchmark_cases import convex
from bif.bank import Bank, BankPart, Plan, retrained
from bif.calibration.pilot import pilot
from bif.calibration.tune import MIN_SUBSETS, Tried, _climb, forecast
from command_line import Answer, failed

# One worker: each would tune for itself.
pytestmark = pytest.mark.xdist_group("tune")
GIVEN = bif.Settings(weight_decay=1e-2, chains=8, draws=60, mass="identity")


@cache
def bank() -> Bank:
    task = convex()
    plan = Plan(num_subsets=2, seeds=1, num_tuning_subsets=12)
    return retrained(task.problem, task.tuning_queries, task.retraining, plan, target="checkpoint")


def tuning_part() -> BankPart:
    part = bank().tuning
    assert part is not None
    return part


@cache
def tuned(settings: bif.Settings = GIVEN) -> bif.Tuned:
    return bif.tune(convex().problem, settings, part=tuning_part(), queries=convex().tuning_queries)


@pytest.fixture
def brief(monkeypatch):
    """Pilots of a few draws, where what they find is not looked at."""
    monkeypatch.setattr(importlib.import_module("bif.calibration.tune"), "_DRAWS", 6)
    monkeypatch.setitem(globals(), "tuned", tuned.__wrapped__)  # pilots of full length are kept


class TestForecast:
    def test_it_undoes_what_noise_does_to_a_correlation(self):
        """Predictions t + noise/sqrt(k): their correlation with t at k, from what is seen at 1."""
        rng = np.random.default_rng(0)
        truth = rng.normal(size=200_000)
        seen = {k: truth + rng.normal(size=truth.size) * 1.5 / np.sqrt(k) for k in (1, 9)}
        outcome = truth + 0.5 * rng.normal(size=truth.size)
        reliability = 1 / (1 + 1.5**2)
        expected = np.corrcoef(seen[9], outcome)[0, 1]
        found = forecast(np.corrcoef(seen[1], outcome)[0, 1], reliability, 9.0)
        assert found == pytest.approx(expected, abs=0.01)
        # A mutant that forgets the pilot's own noise is far off.
        assert abs(np.corrcoef(seen[1], outcome)[0, 1] - expected) > 0.1

    @pytest.mark.parametrize("reliability", [0.3, 1.0])
    def test_the_same_length_changes_nothing(self, reliability):
        assert forecast(0.4, reliability, 1.0) == pytest.approx(0.4)

    def test_a_noiseless_pilot_is_its_own_forecast(self):
        assert forecast(0.4, 1.0, 50.0) == pytest.approx(0.4)


class TestSearch:
    @staticmethod
    def climbed(peak: int, *, pilots: int = 99) -> tuple[int, list[int]]:
        """Where a search on a hill with its top at `peak` ends, and what it tried."""
        seen: list[int] = []

        def run(step: int) -> Tried:
            seen.append(step)
            return Tried(float(step), 1.0, 0.0, 1.0, -abs(step - peak), 0.1)

        best = _climb(run, lambda: len(seen) < pilots)
        return int(best.nbeta), seen

    @pytest.mark.parametrize("peak", [-3, -1, 0, 1, 4])
    def test_it_finds_a_peak_on_either_side(self, peak):
        assert self.climbed(peak)[0] == peak

    @pytest.mark.parametrize(("dip", "ends_at"), [(0.79, 2), (0.70, 0)])
    def test_the_search_goes_on_past_a_dip_that_may_be_noise_and_no_deeper_one(self, dip, ends_at):
        forecasts = {-1: 0.5, 0: 0.80, 1: dip, 2: 0.85, 3: 0.5}
        best = _climb(
            lambda step: Tried(float(step), 1.0, 0.0, 1.0, forecasts[step], 0.1), lambda: True
        )
        assert best.nbeta == ends_at

    def test_the_search_tries_no_lower_nbeta_where_a_higher_one_was_better(self):
        assert self.climbed(2)[1] == [0, 1, 2, 3]

    def test_the_search_ends_with_its_budget(self):
        assert self.climbed(4, pilots=2) == (1, [0, 1])


class TestTune:
    def test_every_candidate_is_told_and_the_best_forecast_is_taken(self):
        found = tuned()
        best = max(found.tried, key=lambda t: t.forecast)
        assert (found.settings.nbeta, found.settings.gamma) == (best.nbeta, best.gamma)
        assert len(found.choices) == len(found.tried) + 1
        assert len(found.tried) >= 3
        assert len({(t.nbeta, t.gamma) for t in found.tried}) == len(found.tried)

    @pytest.mark.parametrize(
        ("target", "nbetas", "in_the_ball"),
        [("scratch", [10.0, 2.5], [1 / 4, 1 / 16]), ("checkpoint", [160.0, 640.0], [1, 1])],
    )
    def test_it_starts_at_n_over_4_for_networks_from_scratch_and_else_at_4_n(
        self, brief, target, nbetas, in_the_ball
    ):
        """And goes on so by factors of 4: colder keeps the ball of n = 40, warmer gamma/nbeta."""
        problem, part = convex().problem, replace(tuning_part(), target=target)
        tried = bif.tune(problem, GIVEN, part=part, queries=convex().tuning_queries).tried
        x, _ = problem.train.data
        inputs = torch.cat([x, torch.ones(40, 1)], dim=1).double()
        p = problem.model(x).detach().softmax(dim=1)
        of_logits = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        hessian = torch.einsum("nab,ni,nj->aibj", of_logits, inputs, inputs).reshape(15, 15) / 40
        matrix, bias = (p.detach().double() for p in problem.model.parameters())
        w = torch.cat([matrix, bias[:, None]], dim=1)
        wrong = p.double() - torch.nn.functional.one_hot(problem.train.data[1], 3)
        left = ((wrong.T @ inputs) / 40 + 0.01 * w).flatten()
        part = float(torch.linalg.eigvalsh(hessian)[-1]) / 50
        slow = float((hessian @ left + 0.01 * left).norm() / left.norm())
        # Damping times 40, or as wide as three |w*|.
        ball = max(40 * (part * min(part, slow)) ** 0.5, 15 / (9 * float(w.square().sum())))
        assert [t.nbeta for t in tried[:2]] == nbetas
        assert [t.gamma / ball for t in tried[:2]] == pytest.approx(in_the_ball, rel=1e-3)

    def test_the_curvature_is_measured_for_wider_posteriors_only(self, brief, monkeypatch):
        """A narrower one takes the step of the widest so far: measuring costs a pilot.

        The problem and global randomness stay as they were.
        """
        module = importlib.import_module("bif.calibration.calibrate")
        measured: list[tuple[float, float]] = []

        def counted(problem: bif.Problem, settings: bif.Settings, *given: Any, **more: Any) -> Any:
            found = pilot(problem, settings, *given, **more)
            assert settings.nbeta is not None
            measured.append((settings.nbeta, found.gamma))
            return found

        monkeypatch.setattr(module, "pilot", counted)
        task, part, settings = convex(), tuning_part(), replace(GIVEN, seed=1)
        weights, before = deepcopy(task.problem.model.state_dict()), torch.get_rng_state()
        found = bif.tune(task.problem, settings, part=part, queries=task.tuning_queries)
        assert torch.equal(torch.get_rng_state(), before)
        after = task.problem.model.state_dict()
        assert all(torch.equal(after[name], leaf) for name, leaf in weights.items())
        assert len(measured) < len(found.tried)
        for place, (nbeta, gamma) in enumerate(measured):
            wider = [n <= nbeta and g <= gamma for n, g in measured[:place]]
            assert not any(wider)

    def test_what_it_chooses_predicts_other_subsets_better_than_a_bad_choice(self):
        task, chosen = convex(), tuned().settings
        plan = Plan(num_subsets=24, seeds=1, mask_seed=5, num_tuning_subsets=0)
        part = retrained(task.problem, None, task.retraining, plan, target="checkpoint").reported
        values = {}
        for name, settings in (
            ("tuned", chosen), ("flat", replace(chosen, gamma=300 * (chosen.gamma or 0)))
        ):  # fmt: skip
            run = bif.attribute(task.problem, settings)
            scores = run.influence.dataset["influence"].sel(observable="loss").values
            values[name] = bif.evaluate.lds(scores, part.masks, part.outcomes["loss"]).mean
        assert values["tuned"] > 0.7
        assert values["tuned"] > values["flat"]

    def test_what_the_bank_says_may_be_said_too_and_other_settings_stay_as_given(self, brief):
        given = replace(GIVEN, seed=3, thin=4)
        found = tuned(replace(given, retrained_from=tuning_part().target)).settings
        assert found.nbeta is not None and found.gamma is not None
        assert replace(found, nbeta=None, gamma=None) == given

    def test_the_time_it_takes_is_taken_from_the_budget(self, brief):
        found = tuned(replace(GIVEN, draws=None, budget=15.0))
        assert isinstance(found.settings.budget, float)
        assert 5 < found.settings.budget < 15 - sum(t.seconds for t in found.tried) + 0.1


class TestRefusals:
    @pytest.mark.parametrize("given", [{"nbeta": 5.0}, {"gamma": 5.0}])
    def test_a_given_nbeta_or_gamma_leaves_nothing_to_tune(self, given):
        with pytest.raises(ValueError, match="nothing is left to tune"):
            tuned(replace(GIVEN, **given))

    def test_networks_that_start_elsewhere_than_was_said_are_refused(self):
        with pytest.raises(
            ValueError, match="'scratch', but the bank's networks start from 'check"
        ):
            tuned(replace(GIVEN, retrained_from="scratch"))

    def test_the_reported_part_is_refused(self):
        with pytest.raises(ValueError, match="expected the tuning part"):
            bif.tune(convex().problem, GIVEN, part=bank().reported, queries=convex().tuning_queries)

    def test_a_bank_of_other_queries_is_refused(self):
        with pytest.raises(ValueError, match="of other queries"):
            bif.tune(
                convex().problem, GIVEN, part=tuning_part(),
                queries=next(iter(convex().problem.query_groups.values())),
            )  # fmt: skip

    def test_a_bank_of_other_items_is_refused(self):
        with pytest.raises(ValueError, match="of other train items"):
            bif.tune(convex(41).problem, GIVEN, part=tuning_part(), queries=convex().tuning_queries)

    def test_a_bank_of_too_few_subsets_is_refused(self):
        part = tuning_part()
        few = replace(part, masks=part.masks[: MIN_SUBSETS - 1])
        with pytest.raises(ValueError, match="has 7 subsets"):
            bif.tune(convex().problem, GIVEN, part=few, queries=convex().tuning_queries)

    def test_outcomes_of_other_observables_are_refused(self):
        part = tuning_part()
        other = replace(part, outcomes={"height": part.outcomes["loss"]})
        with pytest.raises(ValueError, match="at least one in common"):
            bif.tune(convex().problem, GIVEN, part=other, queries=convex().tuning_queries)


class TestCommandLine:
    CODE = """
        import sys
        sys.path.insert(0, {tests!r})
        from benchmark_cases import convex

        def tuning():
            task = convex()
            return task.problem.asking({{"tuning": task.tuning_queries}})
    """

    def command(self, folder: Path, bank: Path) -> list[str]:
        code = folder / "mine.py"
        code.write_text(dedent(self.CODE).format(tests=str(Path(__file__).parents[1])))
        return [
            "calibrate", f"{code}:tuning", "--out", str(folder / "out"), "--bank", str(bank),
            "--weight-decay", "0.01", "--draws", "20",
        ]  # fmt: skip

    @staticmethod
    def bank_on_disk(folder: Path, subsets: int) -> Path:
        task = convex()
        retrained(
            task.problem, task.tuning_queries if subsets else None, task.retraining,
            Plan(num_subsets=2, seeds=1, num_tuning_subsets=subsets), target="checkpoint",
            out=folder,
        )  # fmt: skip
        return folder

    def test_bif_calibrate_tunes_with_a_bank(
        self, brief, tmp_path: Path, call: Callable[..., Answer]
    ):
        bank = self.bank_on_disk(tmp_path / "bank", 8)
        code, out, _ = call(*self.command(tmp_path, bank))
        assert code == 0
        assert "the best forecast of" in out
        assert "8 retrained networks and 6 queries" in out
        assert (tmp_path / "out" / "calibration.json").exists()

    def test_calibrate_for_what_is_retrained(self, tmp_path: Path, call: Callable[..., Answer]):
        bank = self.bank_on_disk(tmp_path / "bank", 8)
        command = [*self.command(tmp_path, bank), "--retrained-from", "scratch"]
        assert "the bank's networks start from 'checkpoint'" in failed(call(*command))
        code, out, _ = call(*(a for a in command if a not in ("--bank", str(bank))))
        assert code == 0 and "for networks retrained from scratch" in out

    def test_a_bank_without_a_tuning_part_is_refused(
        self, tmp_path: Path, call: Callable[..., Answer]
    ):
        bank = self.bank_on_disk(tmp_path / "bank", 0)
        assert "has no tuning part" in failed(call(*self.command(tmp_path, bank)))
