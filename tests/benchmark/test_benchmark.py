"""The harness that judges methods by retraining, on tiny problems."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn

import bif
from benchmark_cases import RECIPE, SETTINGS, convex
from bif.bank import BankPart, Plan, load
from bif.baselines import ExactInfluence, TracIn
from bif.benchmark import Proxy, benchmark, benchmark_sizes, judge_file
from bif.benchmark.harness import ABOUT, RESULTS, TABLE, retrain_banks, write
from bif.benchmark.judge import budget_table, names_at_edge, rows, table, verdict
from bif.benchmark.measure import measure_cost
from bif.benchmark.methods import Judge, Scored, Unsuited, all_methods
from bif.benchmark.methods.base import FittedMethod
from bif.benchmark.plots import plots
from bif.benchmark.task import RESIDUAL
from bif.evaluate import lds, train
from rival_problems import GN
from small_problems import labelled

# One worker: each would run the whole benchmark for itself.
pytestmark = pytest.mark.xdist_group("benchmark")
# Everything given, near what calibration would choose: it has tests of its own.
METHODS = [
    "random", "gradient_product", "ekfac", "exact_hessian", "bif", "bif_response", "bif_auto"
]  # fmt: skip

H = 1.0
"""Step of the responses, of the size that their pilot chooses."""


@cache
def judged():
    # The pilot that chooses h has tests of its own, and would be most of the work here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.benchmark.methods.response.respond", partial(bif.respond, h=H))
        return benchmark(convex(), methods=METHODS)


@cache
def bank():
    return retrain_banks(convex())[0][0]


def tuning():
    part = bank().tuning
    assert part is not None
    return Judge([part])


class TestTask:
    def test_too_few_tuning_subsets_are_refused(self):
        with pytest.raises(ValueError, match="8 are needed"):
            replace(convex(), plan=Plan(num_subsets=12, num_tuning_subsets=4))

    @pytest.mark.parametrize("name", ["settings", "targets"])
    def test_nothing_to_run_is_refused(self, name):
        with pytest.raises(ValueError, match="at least one|give"):
            replace(convex(), **{name: ()})

    def test_tuning_queries_may_be_a_batch(self):
        assert isinstance(convex().tuning_queries, bif.Items)

    def test_proxies_can_be_replaced(self):
        assert replace(convex(), proxies={}).proxies_of(convex().problem.observables[0]) == ()


class TestProxies:
    def test_residuals_keep_their_sign(self):
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        batch = torch.zeros(2, 2), torch.tensor([1.0, -2.0])
        assert RESIDUAL.function(model, batch).tolist() == [[-1.0], [2.0]]

    def test_what_an_outcome_goes_through_is_compared_with_the_outcome_itself(self):
        task = replace(convex(), problem=convex().problem.asking(
            convex().problem.query_groups,
            observables=[bif.Observable("loss", bif.losses.cross_entropy, "lower",
                                        bif.known_proxy(bif.losses.cross_entropy))],
        ))  # fmt: skip
        (found,) = benchmark(task, methods=["bif"]).scored
        (expected, _) = (s for s in judged().scored if s.method == "bif")
        ways = [[t["choice"]["through"] for t in s.tuned] for s in (found, expected)]
        assert ways == [["loss", "margin"], ["loss", "margin"]]
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-9)

    def test_a_proxy_with_the_name_of_its_outcome_is_refused(self):
        proxy = Proxy("loss", bif.losses.margin, bif.losses.margin)
        with pytest.raises(ValueError, match="names of their own"):
            replace(convex(), proxies={"loss": (proxy,)})


class TestJudge:
    def test_the_judge_refuses_the_reported_part(self):
        masks = np.eye(3, dtype=bool)
        part = BankPart(
            "reported", masks, {"loss": np.zeros((1, 3, 2))}, (0,), np.arange(3), np.arange(2), 0.0,
            "scratch",
        )  # fmt: skip
        with pytest.raises(ValueError, match="expected the tuning part"):
            Judge([part])

    def test_scores_that_are_not_finite_are_worth_nothing(self):
        losses = np.random.default_rng(0).normal(size=(1, 3, 2))
        part = BankPart(
            "tuning", np.eye(3, dtype=bool), {"loss": losses}, (0,), np.arange(3), np.arange(2),
            0.0, "scratch",
        )  # fmt: skip
        assert Judge([part])(np.full((2, 3), np.nan), "loss") == 0.0


class TestBenchmark:
    def test_every_row_says_what_the_reader_needs(self):
        found = judged().rows
        assert [(r["method"], r["observable"]) for r in found] == [
            (m, o) for m in METHODS for o in ("loss", "margin")
        ]
        for row in found:
            assert row["target"] == "checkpoint" and row["num_models"] == 1
            assert row["ci_low"] <= row["lds"] <= row["ci_high"]
            assert row["seconds"] > 0 and row["peak_memory_gib"] >= 0
            assert ("minus_ekfac" in row) == (row["method"] != "ekfac")

    def test_a_row_says_of_its_run_whether_it_is_trusted(self):
        for row in judged().rows:
            of_a_run = row["method"] in ("bif", "bif_auto") and "estimator" not in row["choice"]
            assert {
                "rhat_max",
                "reliability",
                "trusted",
                "failed_gates",
            } <= row.keys() or not of_a_run
            if row["method"] == "bif":
                assert row["trusted"] is (row["failed_gates"] == [])
                assert row["rhat_max"] > 1

    def test_any_method_can_be_the_one_that_others_are_compared_with(self):
        found = [s for s in judged().scored if s.method in ("random", "bif", "ekfac")]
        by_ekfac, by_bif = (
            {(r["method"], r["observable"]): r for r in rows(found, [bank()], rival=rival)}
            for rival in ("ekfac", "bif")
        )
        of_bif, of_ekfac = by_ekfac["bif", "loss"], by_bif["ekfac", "loss"]
        assert of_ekfac["minus_bif"] == pytest.approx(-of_bif["minus_ekfac"], abs=1e-12)
        assert "minus_bif" not in by_bif["bif", "loss"]

    def test_better_methods_come_out_better(self):
        by = {(r["method"], r["observable"]): r["lds"] for r in judged().rows}
        for outcome in ("loss", "margin"):
            assert by["exact_hessian", outcome] > 0.85
            assert by["bif", outcome] > 0.75
            assert by["bif_response", outcome] > 0.85
            assert by["bif_auto", outcome] > 0.75
            assert abs(by["random", outcome]) < 0.4

    def test_rows_are_the_lds_of_the_scores_on_the_reported_part(self, tmp_path):
        task = convex()
        results = benchmark(task, methods=["exact_hessian"], out=tmp_path)
        part = load(tmp_path / "bank-checkpoint").reported
        expected = lds(results.scored[0].scores, part.masks, part.outcomes["loss"])
        assert results.rows[0]["lds"] == expected.mean
        assert results.rows[0]["ci_low"] == expected.ci_low

    def test_dampings_are_chosen_by_the_tuning_part(self):
        ekfac = next(s for s in judged().scored if s.method == "ekfac")
        best = max(ekfac.tuned, key=lambda t: t["lds"])
        assert dict(ekfac.choice) == best["choice"] and len(ekfac.tuned) > 4

    def test_the_curve_ends_at_the_run_itself(self):
        bif_scores = next(s for s in judged().scored if s.method == "bif")
        last = bif_scores.curve[-1]
        np.testing.assert_allclose(last.scores, bif_scores.scores, rtol=1e-6)  # float32
        draws = [point.facts["draws"] for point in bif_scores.curve]
        seconds = [point.cost.seconds for point in bif_scores.curve]
        assert draws == sorted(draws) and draws[-1] == 8 * 30
        assert seconds == sorted(seconds)
        assert seconds[-1] == pytest.approx(bif_scores.cost.seconds)

    def test_several_settings_are_piloted(self):
        narrow = replace(SETTINGS, gamma=2e6, step_size=5e-4, friction=2000.0)
        task = replace(convex(), settings=(SETTINGS, narrow))
        (loss, _) = benchmark(task, methods=["bif"]).scored
        assert loss.choice["gamma/nbeta"] == pytest.approx(0.01)
        assert loss.tuning_seconds > 0 and len(loss.tuned) == 4

    @pytest.mark.parametrize(("long", "expected"), [(5.0, [4]), (0.0, [2, 4])])
    def test_what_there_is_so_far_is_handed_out_after_long_methods(
        self, monkeypatch, long, expected
    ):
        monkeypatch.setattr("bif.benchmark.harness._LONG_SECONDS", long)
        seen: list[int] = []
        methods = ["random", "gradient_product"]
        benchmark(convex(), methods=methods, after_each=lambda found: seen.append(len(found.rows)))
        assert seen == expected  # rows: two outcomes a method

    def test_unknown_methods_are_refused_before_any_training(self):
        with pytest.raises(ValueError, match="no methods"):
            benchmark(convex(), methods=["magic"])

    def test_an_unsuited_method_is_named_with_its_reason(self):
        def refuse(problem):
            raise ValueError("too many weights")

        with pytest.raises(Unsuited, match="too many weights"):
            FittedMethod("big", refuse).run(convex(), Judge([]), [])

    def test_fractions_make_a_curve(self, tmp_path):
        results = benchmark(
            convex(), methods=["gradient_product"], fractions=[0.25, 0.75], out=tmp_path
        )
        assert [c["fraction"] for c in results.curves] == [0.25, 0.25, 0.75, 0.75]
        assert (tmp_path / "bank-checkpoint-0.25" / "bank.json").is_file()


class TestFiles:
    def test_results_are_a_list_of_rows_beside_a_table_and_plots(self, tmp_path):
        write(judged(), tmp_path)
        assert len(json.loads((tmp_path / RESULTS).read_text())) == len(judged().rows)
        about = json.loads((tmp_path / ABOUT).read_text())
        assert about["plan"]["num_subsets"] == 12 and about["versions"]["torch"]
        assert "| bif |" in (tmp_path / TABLE).read_text()
        for name in ("seconds", "draws", "effective-draws"):
            picture = (tmp_path / f"lds-against-{name}.png").read_bytes()
            assert picture.startswith(b"\x89PNG") and len(picture) > 5000

    def test_a_second_call_uses_the_banks_that_are_there(self, tmp_path):
        first = benchmark(convex(), methods=["gradient_product"], out=tmp_path)
        before = (tmp_path / "bank-checkpoint" / "bank.json").stat().st_mtime_ns
        again = benchmark(convex(), methods=["gradient_product"], out=tmp_path)
        assert (tmp_path / "bank-checkpoint" / "bank.json").stat().st_mtime_ns == before
        assert [r["lds"] for r in first.rows] == [r["lds"] for r in again.rows]

    def test_sizes_make_a_curve_over_the_train_items(self, tmp_path):
        results = benchmark_sizes(convex, [20, 40], out=tmp_path, methods=["gradient_product"])
        assert [r["num_train"] for r in results.rows] == [20, 20, 40, 40]
        assert (tmp_path / "20" / RESULTS).is_file() and (tmp_path / RESULTS).is_file()
        assert (tmp_path / "lds-against-train-items.png").is_file()

    def test_anybodys_matrix_is_judged_by_a_bank(self, tmp_path):
        results = benchmark(convex(), methods=["exact_hessian"], out=tmp_path)
        np.save(tmp_path / "mine.npy", results.scored[0].scores)
        row = judge_file(tmp_path / "mine.npy", tmp_path / "bank-checkpoint", sign="loss")
        assert row["lds"] == pytest.approx(results.rows[0]["lds"], abs=1e-12)
        with pytest.raises(ValueError, match="no outcome"):
            judge_file(
                tmp_path / "mine.npy", tmp_path / "bank-checkpoint", sign="loss", observable="x"
            )


class TestMeasured:
    def test_seconds_and_memory_are_those_of_the_work(self, monkeypatch):
        ticks = iter([3.0, 5.5])
        monkeypatch.setattr("bif.benchmark.measure.time.perf_counter", lambda: next(ticks))
        with measure_cost(torch.device("cpu")) as cost:
            # Beyond 32 MiB malloc maps fresh pages; below, it may reuse what earlier work freed.
            kept = np.ones(64 * 2**20 // 8)
        monkeypatch.undo()
        assert kept.size and cost.seconds == 2.5
        assert cost.peak_memory_gib >= 0.9 * 64 / 1024


def test_methods_are_in_the_order_of_the_table_and_named_once():
    assert [method.name for method in all_methods().values()] == list(all_methods())


def test_a_table_without_the_rival_has_no_differences():
    found = [s for s in judged().scored if s.method == "random"]
    assert isinstance(found[0], Scored)
    assert "–" in table([r for r in judged().rows if r["method"] == "random"])
    assert rows([], []) == []


def test_rows_without_curves_have_one_plot():
    assert set(plots(judged().rows, [], title="x")) == {"lds-against-seconds"}


def test_a_proxy_of_ones_own_is_tried():
    task = convex()
    mine = Proxy("twice", lambda m, b: 2 * bif.losses.margin(m, b),
                 lambda m, b: torch.full((len(b[1]),), -0.5))  # fmt: skip
    found = benchmark(replace(task, proxies={"loss": (mine,)}), methods=["bif"]).scored
    assert {t["choice"]["through"] for t in found[0].tuned} == {"loss", "twice"}


def test_a_budget_cuts_curves_short_and_leaves_out_what_takes_longer():
    where = {"target": "scratch", "observable": "loss"}
    made = [
        {**where, "method": "bif", "lds": 0.8, "seconds": 100.0},
        {**where, "method": "slow", "lds": 0.9, "seconds": 200.0},
    ]
    curve = [
        {**where, "method": "bif", "lds": 0.5, "seconds": 5.0},
        {**where, "method": "bif", "lds": 0.7, "seconds": 50.0},
        {**where, "method": "bif", "lds": 0.1, "fraction": 0.5},
    ]
    lines = budget_table(made, curve).splitlines()
    assert lines[2] == "| method | 10 s | 1 min | 10 min |"
    assert lines[4:] == ["| slow | – | – | 0.9 |", "| bif | 0.5 | 0.7 | 0.8 |"]


def test_effective_draws_beyond_the_draws_are_not_drawn():
    row = {"method": "bif", "target": "scratch", "observable": "loss", "seconds": 1.0, "lds": 0.5,
           "ci_low": 0.4, "ci_high": 0.6, "ceiling": 1.0}  # fmt: skip
    broken = [{**row, "draws": 64, "ess_median": ess} for ess in (500.0, float("nan"))]
    assert "lds-against-effective-draws" not in plots([row], broken, title="x")
    good = [{**row, "draws": 640, "ess_median": 500.0}]
    assert "lds-against-effective-draws" in plots([row], good, title="x")


def candidates(name, tried):
    return [{"choice": {name: x}, "lds": score} for x, score in tried]


class TestEdges:
    @pytest.mark.parametrize(
        ("chosen", "expected"), [(1.0, []), (0.1, ["damping"]), (10.0, ["damping"])]
    )
    def test_the_smallest_and_the_largest_of_a_grid_are_its_edges(self, chosen, expected):
        tried = candidates("damping", [(0.1, 0.2), (1.0, 0.2), (10.0, 0.2)])
        tried[[0.1, 1.0, 10.0].index(chosen)]["lds"] = 0.5
        assert names_at_edge({"damping": chosen}, tried) == expected

    def test_an_edge_that_is_no_better_than_the_inside_is_none(self):
        tried = candidates("dimension", [(512, 0.4), (2048, 0.4), (4096, 0.4)])
        assert names_at_edge({"dimension": 512}, tried) == []

    def test_words_and_what_was_never_varied_have_no_edges(self):
        tried = candidates("kind", [("cosine", 0.1), ("dot", 0.2)])
        assert names_at_edge({"kind": "dot", "damping": 1.0}, tried) == []
        assert names_at_edge({"damping": 1.0}, candidates("damping", [(1.0, 0.2)])) == []

    def test_candidates_that_a_task_refuses_count_as_tried(self):
        class Choosy:
            def scores(self, problem, outcome, choice):
                if choice["damping"] < 1:
                    raise ValueError("not positive")
                return np.zeros((problem.num_queries, problem.num_train))

        method = FittedMethod(
            "choosy", lambda _: Choosy(), tuple({"damping": d} for d in (0.1, 1.0, 10.0))
        )
        (found, _) = method.run(convex(), tuning(), [])
        assert found.choice == {"damping": 1.0} and len(found.tuned) == 3
        assert np.isnan(found.tuned[0]["lds"]) and names_at_edge(found.choice, found.tuned) == []

    def test_the_harness_and_the_table_name_edges(self, monkeypatch):
        said: list[str] = []
        monkeypatch.setattr("bif.benchmark.harness.say", said.extend)
        tried = next(s for s in judged().scored if s.method == "ekfac").tuned
        best = max(tried, key=lambda t: t["lds"])["choice"]
        rival = all_methods()["ekfac"]
        assert isinstance(rival, FittedMethod)
        edge = replace(rival, candidates=(best, {"damping_scale": 1e6}))
        monkeypatch.setattr("bif.benchmark.harness.all_methods", lambda: {"ekfac": edge})
        found = benchmark(convex(), methods=["ekfac"], show_progress=True)
        assert any("tuned to the edge of its grid: damping_scale" in line for line in said)
        assert "(edge of the grid)" in table(found.rows)


class TestVerdict:
    def test_a_refused_run_names_its_gates(self):
        row = {"trusted": False, "failed_gates": ["mixing", "step"], "rhat_max": 1.2}
        assert verdict(row) == "no: mixing, step"
        assert verdict({"trusted": True, "failed_gates": []}) == "yes"

    def test_an_older_row_is_refused_by_its_rhat_and_else_not_judged(self):
        assert verdict({"rhat_max": 1.199}) == "no: R-hat above 1.05"
        assert verdict({"rhat_max": 1.01}) == "–" and verdict({}) == "–"

    def test_the_table_shows_the_verdict_beside_the_lds(self):
        lines = table([{**r, "trusted": False, "failed_gates": ["step"]} for r in judged().rows
                       if r["method"] == "bif"]).splitlines()  # fmt: skip
        header, row = lines[4], lines[6]
        found = dict(zip(header.split(" | "), row.split(" | "), strict=True))
        assert found["trusted"] == "no: step" and float(found["R-hat"]) > 1


class TestSameDamping:
    def test_scores_are_gauss_newton_influence_at_the_damping_of_the_run(self):
        task = convex()
        ours = [s for s in judged().scored if s.method == "bif"]
        (loss, _) = all_methods()["exact_ggn@bif"].run(task, Judge([]), ours)
        damping = 20.0 / 2000.0 + 1e-2  # gamma/nbeta, and the weight decay
        assert loss.choice["damping"] == pytest.approx(damping)
        fitted = ExactInfluence.fit(task.problem, curvature=GN)
        expected = fitted.scores(task.problem, damping=damping, observable="loss").numpy()
        np.testing.assert_allclose(loss.scores, expected, rtol=1e-10, atol=1e-14)

    def test_without_the_run_the_method_is_left_out(self):
        with pytest.raises(Unsuited, match="name that before it"):
            all_methods()["exact_ggn@bif"].run(convex(), Judge([]), [])


def test_by_default_a_tasks_own_temperatures_do_not_count(monkeypatch):
    asked: list[bif.Settings] = []

    def quick(problem, settings):
        asked.append(settings)
        return bif.attribute(problem, replace(settings, chains=4, draws=20, mass="identity"))

    monkeypatch.setattr("bif.benchmark.methods.fluctuation.attribute", quick)
    (loss, _) = all_methods()["bif_default"].run(convex(), tuning(), [])
    assert asked == [bif.Settings(estimator="covariance", weight_decay=1e-2)]
    complete = bif.calibrate(convex().problem, replace(asked[0], mass="identity")).settings
    assert complete.nbeta is not None
    assert loss.choice["nbeta/n"] == pytest.approx(complete.nbeta / 40)
    assert loss.facts["damping"] == pytest.approx(loss.choice["gamma/nbeta"] + 1e-2)


def test_models_with_fewer_weights_than_a_projection_are_not_projected():
    task = convex()
    method = all_methods()["trak"]
    assert isinstance(method, FittedMethod)
    fitted = method.fit(task.problem)
    small, large = (
        fitted.scores(task.problem, "loss", {"dimension": d, "damping_scale": 1.0})
        for d in (128, 4096)
    )
    assert list(fitted.by_dimension) == [None]
    np.testing.assert_array_equal(small, large)


class TestSettingsOfATask:
    def test_a_reliability_to_aim_at_is_one_of_the_settings_as_any(self, monkeypatch):
        def brief(problem, settings, *, steps, h=H, **asked):
            """No pilot for h, and few steps."""
            return bif.respond(problem, settings, h=h, steps=20, **asked)

        monkeypatch.setattr("bif.benchmark.methods.response.respond", brief)
        monkeypatch.setattr("bif.runs.estimator_costs.respond", partial(brief, steps=None))
        aimed = replace(SETTINGS, draws=None, reliability=0.5)
        task = replace(
            convex(), settings=(aimed, replace(aimed, nbeta=1000.0, gamma=10.0)),
            problem=convex().problem.asking(
                convex().problem.query_groups, observables=convex().problem.observables[:1]
            ),
        )  # fmt: skip
        found = benchmark(task, methods=["bif", "bif_response", "bif_auto"])
        assert not found.unsuited
        assert all(np.isfinite(row["lds"]) for row in found.rows)

    def test_one_alone_needs_no_tuple_and_anything_else_is_refused(self):
        assert replace(convex(), settings=SETTINGS).settings == (SETTINGS,)
        with pytest.raises(TypeError, match="settings must be bif.Settings, one or more"):
            replace(convex(), settings=({"nbeta": 1.0},))

    @pytest.mark.parametrize("fault", ["batch", "item"])
    def test_what_cannot_run_is_refused_before_anything_is_trained(self, fault, monkeypatch):
        task = convex()
        if fault == "batch":
            given = bif.Settings(gradient="minibatch", batch_size=1000)
            task, words = replace(task, settings=(given,)), "batch_size=1000 exceeds the 40"
        else:
            x, y = labelled(40, seed=0)
            x[17] = float("nan")
            problem = bif.Problem(
                task.problem.model, task.problem.loss, train=(x, y), queries=labelled(8, seed=1)
            )
            task, words = replace(task, problem=problem), "loss is NaN .* '17'"
        monkeypatch.setattr(
            "bif.benchmark.harness.retrained", lambda *a, **k: pytest.fail("it was trained")
        )
        with pytest.raises(ValueError, match=words):
            benchmark(task, methods=["bif"])

    def test_settings_that_no_response_takes_are_said_to_be_so(self):
        task = replace(convex(), settings=(replace(SETTINGS, sampler="sgnht"),))
        found = benchmark(task, methods=["random", "bif_response"])
        assert "sampler is 'sgnht', whose state answers" in found.unsuited["bif_response"]


class TestAlongPath:
    """Rivals that follow the way of training, one way a target."""

    def test_each_target_has_scores_along_its_own_path(self):
        pytest.importorskip("curvlinops", reason="the extra `baselines` is not installed")
        task = replace(convex(), targets=("scratch", "checkpoint"))
        found = benchmark(task, methods=["tracin", "source", "random"])
        ways = [(s.method, s.outcome, s.target) for s in found.scored]
        assert ways == [
            *((m, o, t) for m in ("tracin", "source") for t in task.targets
              for o in ("loss", "margin")),
            ("random", "loss", None), ("random", "margin", None),
        ]  # fmt: skip
        assert len(found.rows) == 12
        by = {(s.method, s.target): s for s in found.scored if s.outcome == "loss"}
        for row in found.rows:
            if row["method"] == "source":
                assert row["lds"] > 0.8
        model, checkpoints = task.path("scratch")
        ended = task.problem.with_model(model)
        tracin = by["tracin", "scratch"]
        kept = checkpoints[-tracin.choice["num_checkpoints"] :]
        expected = TracIn.fit(ended, kept).scores(ended)
        np.testing.assert_allclose(tracin.scores, expected.numpy(), rtol=1e-12, atol=0)
        assert not np.allclose(tracin.scores, by["tracin", "checkpoint"].scores)
        # It is tuned on the networks of its own target.
        (part,) = (b.tuning for b in retrain_banks(task)[0] if b.target == "scratch")
        assert part is not None
        for tried in tracin.tuned:
            fitted = TracIn.fit(ended, checkpoints[-tried["choice"]["num_checkpoints"] :])
            asked = fitted.scores(task.tuning_problem.with_model(model)).numpy()
            assert tried["lds"] == pytest.approx(Judge([part])(asked, "loss"), abs=1e-12)
        targets = [t.get("target") for t in found.tuned]
        assert targets == ["scratch", "scratch", "checkpoint", "checkpoint"] * 2

    def test_a_path_is_trained_as_the_networks_of_its_target(self):
        task = convex()
        whole = task.problem.train.first(40)
        for target in ("scratch", "checkpoint"):
            model, checkpoints = task.path(target)
            expected = train(
                task.problem.model, task.problem.loss, whole, RECIPE, seed=0, init=target
            )
            pairs = zip(model.parameters(), expected.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
            assert [c.num_steps for c in checkpoints] == [5] * 12

    def test_a_training_function_keeps_no_checkpoints(self):
        task = replace(convex(), retraining=lambda start, items, seed: start)
        with pytest.raises(Unsuited, match=r"give the task paths=\{'checkpoint': \(model, check"):
            all_methods()["source"].run(task, tuning(), [])

    def test_a_path_of_ones_own_is_followed(self):
        task = convex()
        model, checkpoints = task.path("checkpoint")
        given = replace(
            task,
            retraining=lambda start, items, seed: start,
            paths={"checkpoint": (model, checkpoints)},
        )
        own = all_methods()["tracin"].run(given, tuning(), [])
        expected = all_methods()["tracin"].run(task, tuning(), [])
        assert all(np.array_equal(a.scores, b.scores) for a, b in zip(own, expected, strict=True))

    def test_a_path_of_another_model_is_unsuited(self):
        other = nn.Linear(5, 3).double()
        task = replace(convex(), paths={"checkpoint": (other, [])})
        with pytest.raises(Unsuited, match="must have the weights of the problem's"):
            all_methods()["tracin"].run(task, tuning(), [])

    @pytest.mark.parametrize("method", ["tracin", "source"])
    def test_a_path_without_checkpoints_is_unsuited(self, method):
        task = replace(convex(), paths={"checkpoint": (convex().problem.model, [])})
        with pytest.raises(Unsuited, match="checkpoints is empty"):
            all_methods()[method].run(task, tuning(), [])

    def test_a_path_that_diverges_is_unsuited(self):
        task = replace(convex(), retraining=replace(RECIPE, learning_rate=1e200))
        with pytest.raises(Unsuited, match="diverged"):
            all_methods()["tracin"].run(task, tuning(), [])

    def test_too_many_weights_for_the_matrix_are_unsuited_in_one_sentence(self, monkeypatch):
        monkeypatch.setattr("bif.baselines.exact._MAX_WEIGHTS", 10)
        with pytest.raises(Unsuited, match=r"^the exact Gauss-Newton matrix of 15 weights"):
            all_methods()["source_ggn"].run(convex(), tuning(), [])
