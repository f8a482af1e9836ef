"""The harness that judges methods by retraining, on tiny problems."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import bif
from bif.bank import BankPart, Plan, load
from bif.benchmark import Proxy, Task, benchmark, benchmark_sizes, judge_file
from bif.benchmark.harness import ABOUT, RESULTS, TABLE, write
from bif.benchmark.judge import budget_table, rows, table
from bif.benchmark.measure import measured
from bif.benchmark.methods import Judge, Scored, Unsuited, all_methods
from bif.benchmark.methods.base import FittedMethod
from bif.benchmark.plots import plots
from bif.benchmark.task import PROXIES, RESIDUAL
from bif.evaluate import Recipe, lds, train
from small_problems import labelled

# One worker: each would run the whole benchmark for itself.
pytestmark = pytest.mark.xdist_group("benchmark")
RECIPE = Recipe(60, 0.5, momentum=0.9, weight_decay=1e-2)
SETTINGS = bif.Settings(
    nbeta=2000.0, gamma=20.0, weight_decay=1e-2, chains=8, draws=30, burn_in=20, thin=2,
)  # fmt: skip
METHODS = [
    "random", "gradient_product", "ekfac", "exact_hessian", "bif", "bif_response", "bif_auto"
]  # fmt: skip


def convex(num_train: int = 40) -> Task:
    """Logistic regression in four dimensions: classical influence is nearly the truth."""
    items, queries, tuning = (labelled(n, seed=s) for n, s in ((num_train, 0), (8, 1), (6, 2)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Linear(4, 3).double()
    model = train(network, bif.losses.cross_entropy, items, RECIPE, seed=0)
    problem = bif.Problem(
        model, bif.losses.cross_entropy, train=items, queries=queries,
        observables=[bif.Observable("loss", bif.losses.cross_entropy, "lower"), bif.MARGIN],
    )  # fmt: skip
    plan = Plan(num_subsets=12, seeds=1, num_tuning_subsets=8)
    return Task(
        "convex", problem, tuning, RECIPE, plan, targets=("checkpoint",), settings=(SETTINGS,)
    )


@cache
def judged():
    return benchmark(convex(), methods=METHODS)


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
    @pytest.mark.parametrize("loss", [bif.losses.cross_entropy, bif.losses.squared_error])
    def test_the_chain_rule_holds(self, loss):
        torch.manual_seed(0)
        model = nn.Linear(4, 3 if loss is bif.losses.cross_entropy else 1).double()
        x = torch.randn(6, 4, dtype=torch.float64)
        y = torch.randint(3, (6,)) if loss is bif.losses.cross_entropy else torch.randn(6).double()
        (proxy,) = PROXIES[loss]
        problem = bif.Problem(model, loss, train=(x, y), queries=(x, y))
        slopes = proxy.slopes(problem)
        weight = model.weight
        for q in range(6):
            item = (x[q : q + 1], y[q : q + 1])
            (of_loss,) = torch.autograd.grad(loss(model, item).sum(), weight)
            (of_proxy,) = torch.autograd.grad(proxy.observable.function(model, item).sum(), weight)
            torch.testing.assert_close(of_loss, slopes[q] * of_proxy, rtol=1e-10, atol=1e-12)

    def test_residuals_keep_their_sign(self):
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        batch = torch.zeros(2, 2), torch.tensor([1.0, -2.0])
        assert RESIDUAL.function(model, batch).tolist() == [-1.0, 2.0]


class TestJudge:
    def test_it_refuses_the_reported_part(self):
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
        task = replace(convex(), settings=(SETTINGS, replace(SETTINGS, gamma=2e6)))
        (loss, _) = benchmark(task, methods=["bif"]).scored
        assert loss.choice["gamma/nbeta"] == pytest.approx(0.01)
        assert loss.tuning_seconds > 0 and len(loss.tuned) == 4

    @pytest.mark.parametrize(("long", "expected"), [(5.0, [4]), (0.0, [2, 4])])
    def test_what_there_is_so_far_is_handed_out_after_long_methods(
        self, monkeypatch, long, expected
    ):
        monkeypatch.setattr("bif.benchmark.harness._LONG", long)
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
    def test_seconds_and_memory_are_those_of_the_work(self):
        import time

        with measured(torch.device("cpu")) as cost:
            # Beyond 32 MiB malloc maps fresh pages; below, it may reuse what earlier work freed.
            kept = np.ones(64 * 2**20 // 8)
            time.sleep(0.1)
        assert kept.size and cost.seconds >= 0.1
        assert cost.peak_memory_gib >= 0.9 * 64 / 1024


def test_methods_are_in_the_order_of_the_table_and_named_once():
    assert [method.name for method in all_methods().values()] == list(all_methods())


def test_a_table_without_the_rival_has_no_differences():
    found = [s for s in judged().scored if s.method == "random"]
    assert isinstance(found[0], Scored)
    assert "–" in table([r for r in judged().rows if r["method"] == "random"])
    assert rows([], []) == []


def test_plots_of_nothing_but_rows():
    assert set(plots(judged().rows, [], title="x")) == {"lds-against-seconds"}


def test_a_proxy_of_ones_own_is_tried():
    task = convex()
    mine = Proxy(bif.Observable("twice", lambda m, b: 2 * bif.losses.margin(m, b)),
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


class TestSettingsOfATask:
    def test_a_reliability_to_aim_at_is_one_of_the_settings_as_any(self):
        aimed = replace(SETTINGS, draws=None, reliability=0.5)
        task = replace(convex(), settings=(aimed, replace(aimed, nbeta=1000.0, gamma=10.0)))
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
