"""The report: what it says, where it says it, and that nothing from outside gets through raw."""

import base64
import gzip
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from bif.report import render_report
from bif.report.answer import moved_in_words
from bif.report.markup import number, score_and_error, setting, shared_exponent
from bif.report.source import choose_queries, read_source
from bif.report.words import WORDS, words_section
from bif.results.suspects import Suspect

HOSTILE = "<script>alert(1)</script>\"'&"
SUMMARY = {
    "draws": 4000,
    "chains": 4,
    "seconds": 12.34,
    "ess_median": 950.0,
    "rhat_max": 1.012,
    "reliability": 0.91,
    "complete": True,
    "diverged_chains": [],
}


def make_influence(
    *, better: tuple[str, ...] = ("lower",), num_query: int = 12, num_train: int = 40, seed: int = 0
) -> xr.Dataset:
    """Random scores, half of them clear of zero; no pictures, no labels."""
    rng = np.random.default_rng(seed)
    shape = (len(better), num_query, num_train)
    score = rng.normal(size=shape)
    error = np.where(rng.random(shape) < 0.5, 0.1, 0.9) * np.abs(score)
    dims = ("observable", "query", "train")
    return xr.Dataset(
        {
            "influence": (dims, score.astype("float32")),
            "standard_error": (dims, error.astype("float32")),
            "query_center": (dims[:2], rng.random(shape[:2]).astype("float32")),
            "query_mean": (dims[:2], rng.random(shape[:2]).astype("float32")),
        },
        coords={
            "observable": [f"obs{o}" for o in range(len(better))],
            "better": ("observable", list(better)),
            "train_id": ("train", [f"t{i}" for i in range(num_train)]),
            "query_id": ("query", [f"q{i}" for i in range(num_query)]),
            "query_group": ("query", ["a"] * num_query),
        },
        attrs={"nbeta": 100.0, "gamma": 2.0, "num_train": num_train, "complete": 1},
    )


def with_pictures(influence: xr.Dataset, *, side: int = 5, channels: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(1)
    tail = (side, side, channels) if channels else (side, side)
    names = ("row", "column", "channel")[: len(tail)]
    for kind in ("train", "query"):
        values = rng.integers(0, 256, (influence.sizes[kind], *tail), dtype=np.uint8)
        influence[f"{kind}_image"] = ((kind, *names), values)
    return influence


def make_diagnostics(*, num_chains: int = 4, num_draws: int = 50) -> xr.Dataset:
    rng = np.random.default_rng(2)
    return xr.Dataset(
        {
            "mean_loss": (("chain", "draw"), rng.normal(1, 0.1, (num_chains, num_draws))),
            "center_mean_loss": 0.5,
            "reliability": ("prefix", np.array([0.3, 0.6, 0.9])),
            "reliability_draws": ("prefix", np.array([400, 1000, 4000])),
            "ess": ("item", rng.uniform(500, 1500, 40)),
            "rhat": ("item", rng.uniform(1, 1.01, 40)),
        },
        coords={"chain": np.arange(num_chains), "draw": np.arange(num_draws)},
    )


def render(influence: xr.Dataset, **changes) -> str:
    settings = {"diagnostics": make_diagnostics(), "summary": SUMMARY, "manifest": {}} | changes
    return render_report(influence, **settings)


def listed(page: str, title: str) -> list[float]:
    """Scores of the items in every list with this title."""
    lists = re.findall(rf'">{title} <small>.*?</h\d><ol[^>]*>(.*?)</ol>', page, flags=re.S)
    assert lists
    return [float(v) for part in lists for v in re.findall(r'<data value="([^"]+)"', part)]


@pytest.mark.parametrize(("better", "helps"), [("lower", -1), ("higher", 1)])
def test_helpful_items_are_those_that_move_the_observable_the_better_way(better: str, helps: int):
    page = render(make_influence(better=(better,)))
    assert all(helps * score > 0 for score in listed(page, "Most helpful"))
    assert all(helps * score < 0 for score in listed(page, "Most harmful"))
    verb = {-1: "lowers", 1: "raises"}
    assert f"Most helpful <small>more weight on these {verb[helps]} the obs0" in page


def test_nothing_is_called_helpful_without_a_better_direction():
    influence = make_influence(better=("",))
    influence.attrs["sign"] = "For a loss negative is helpful."
    page = render(influence)
    assert "helpful" not in page.lower() and "harmful" not in page.lower()
    assert all(score > 0 for score in listed(page, "Most positive"))
    assert all(score < 0 for score in listed(page, "Most negative"))


def test_lists_hold_the_strongest_items_in_order():
    influence = make_influence(num_query=1)
    score = influence["influence"].values[0, 0]
    influence["standard_error"][:] = 0.0
    page = render(influence, top=3)
    np.testing.assert_allclose(listed(page, "Most helpful"), np.sort(score)[:3], rtol=1e-5)
    np.testing.assert_allclose(listed(page, "Most harmful"), -np.sort(-score)[:3], rtol=1e-5)


def test_every_observable_has_its_own_part_in_every_query():
    page = render(make_influence(better=("lower", "higher")), queries=["q0", "q3"])
    assert page.count('<div data-observable="0">') == 2
    assert page.count('<div data-observable="1">') == 2
    assert page.count(">Influence on the obs1</h4>") == 2


@pytest.mark.parametrize("quantile", [2.0, 3.2])
def test_only_items_whose_sign_is_certain_are_listed_and_the_others_counted(quantile):
    influence = make_influence(num_query=1).assign_attrs(error_quantile=quantile)
    page = render(influence, top=40)
    score, error = (influence[v].values[0, 0] for v in ("influence", "standard_error"))
    certain = np.abs(score) > quantile * error
    assert 0 < certain.sum() < 40
    shown = listed(page, "Most helpful") + listed(page, "Most harmful")
    np.testing.assert_allclose(np.sort(shown), np.sort(score[certain]), rtol=1e-5)
    hidden = re.findall(r"(\d+) items? among the strongest left out", page)
    assert sum(map(int, hidden)) == (~certain).sum()


def test_of_an_untrusted_run_the_strongest_are_listed_and_none_is_called_certain():
    influence = make_influence(num_query=1).assign_attrs(trusted=0)
    page = render(influence, top=3)
    score = influence["influence"].values[0, 0]
    np.testing.assert_allclose(listed(page, "Most helpful"), np.sort(score)[:3], rtol=1e-5)
    assert page.count("The run is not trusted: no sign is certain.") == 2
    assert "among the strongest left out" not in page
    assert re.search(r"<td>0\s?%</td></tr></tbody></table></div>", page)  # share clear of zero


def test_missing_errors_are_dashes_and_their_items_are_listed():
    influence = make_influence(num_query=1)
    influence["standard_error"][:] = np.nan
    page = render(influence)
    assert "<span>± –</span>" in page and "among the strongest left out" not in page
    assert re.search(r"<td>–</td></tr></tbody></table></div>", page)  # share clear of zero


def test_items_without_a_finite_score_are_left_out():
    influence = make_influence(num_query=1)
    influence["influence"][0, 0, :39] = np.nan
    influence["influence"][0, 0, 39] = -1.0
    influence["standard_error"][:] = 0.1
    page = render(influence)
    assert listed(page, "Most helpful") == [-1.0]
    assert "No item has a certain score of this sign." in page


def test_text_from_outside_is_escaped_everywhere():
    influence = make_influence(better=("lower", "higher"), num_query=2)
    n, q = influence.sizes["train"], influence.sizes["query"]
    influence = with_pictures(influence).assign_coords(
        observable=[HOSTILE, "other"],
        train_id=("train", [f"{i}{HOSTILE}" for i in range(n)]),
        query_id=("query", [f"{i}{HOSTILE}" for i in range(q)]),
        query_group=("query", [HOSTILE] * (q - 1) + ["other"]),
        train_label=("train", [HOSTILE] * n),
        query_label=("query", [HOSTILE] * q),
        original_label=("train", [HOSTILE] * n),
    )
    influence["suspicion"] = ("train", np.arange(n, dtype=float))
    influence["relabelled"] = ("train", np.ones(n, dtype=bool))
    influence.attrs["sign"] = HOSTILE
    manifest = {
        "warnings": [HOSTILE],
        "explanations": [HOSTILE],
        HOSTILE: {HOSTILE: {HOSTILE: [HOSTILE]}},
        "versions": {"bif": HOSTILE},
        "name": HOSTILE,
    }
    page = render(influence, manifest=manifest)
    assert page.count("<script>") == 1  # the page's own
    assert HOSTILE not in page and "\"'&" not in page
    assert page.count(html.escape(HOSTILE)) > 100


def test_lone_surrogates_do_not_stop_the_page_from_being_written():
    influence = make_influence(num_query=1)
    # Of fixed width: objects go through pandas, which asks pyarrow where that is installed.
    influence = influence.assign_coords(query_id=("query", np.array(["a\ud800"])))
    assert render(influence).encode("utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"summary": SUMMARY | {"diverged_chains": [2, 5]}}, "2 chains diverged"),
        ({"summary": SUMMARY | {"complete": False}}, "stopped before its end"),
        ({"summary": SUMMARY | {"reliability": 0.2}}, "Reliability is 0.200"),
        ({"summary": SUMMARY | {"rhat_max": 1.4}}, "R-hat reaches 1.40"),
        ({"summary": SUMMARY | {"ess_median": 20}}, "effective sample size is 20"),
        ({"manifest": {"warnings": ["losses were clipped"]}}, "losses were clipped"),
    ],
)
def test_a_warning_stands_before_everything_else(changes: dict, words: str):
    page = render(make_influence(), **changes)
    box = page.index('<aside class="warnings"')
    assert box < page.index(words) < page.index("<h1>")


def test_the_box_of_warnings_counts_failed_checks_apart_from_notes():
    why = "not trusted, mixing: R-hat is 1.4"
    manifest = {
        "gates": [{"name": "mixing", "value": 1.4, "limit": 1.05, "failed": True, "reason": why}],
        "warnings": [why, "another"],
    }
    summary = SUMMARY | {"rhat_max": 1.4, "ess_median": 20, "trusted": False}
    page = render(make_influence(), summary=summary, manifest=manifest)
    assert "1 failed check and 2 further notes, with what to change" in page
    assert "R-hat reaches" not in page


def test_words_that_occur_are_explained_as_the_glossary_does():
    shown = words_section(["<p title='UMAP'>Draws of two chains</p><script>damping</script>"])
    assert re.findall("<dt>(.*?)</dt>", shown) == ["draw", "chain"]
    assert words_section(["<p>plain English</p>"]) == ""
    assert "<summary>Words</summary>" in render(make_influence())
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert [w for w in WORDS if w.casefold() not in glossary.casefold()] == []


def test_a_clean_run_shows_no_warning():
    assert '<aside class="warnings"' not in render(make_influence())


def test_diverged_chains_are_read_from_the_diagnostics_where_the_summary_is_silent():
    diagnostics = make_diagnostics()
    diagnostics.attrs["diverged_chains"] = [1]
    page = render(make_influence(), diagnostics=diagnostics, summary={})
    assert "1 chain diverged and is left out of every number: 1." in page
    assert "Orange: left out." in page


def test_trust_line_judges_each_figure_by_its_gate():
    page = render(make_influence(), summary=SUMMARY | {"rhat_max": 1.07, "ess_median": 99})
    line = page[page.index('<dl class="trust">') : page.index("</dl>")]
    assert re.findall(r'class="verdict (\w+)"', line) == ["good", "fair", "poor"]


def test_page_survives_without_diagnostics_summary_and_manifest():
    influence = make_influence().drop_vars(["query_center", "query_mean", "query_group", "better"])
    influence.attrs = {}
    page = render_report(influence, diagnostics=xr.Dataset(), summary={}, manifest={})
    line = page[page.index('<dl class="trust">') : page.index("</dl>")]
    assert line.count("<dd>–</dd>") == 6
    assert "No diagnostics were recorded." in page and "No manifest was recorded." in page
    assert not re.search(r"\bnan\b", page, flags=re.I)


def test_diagnostics_without_finite_values_are_left_out():
    diagnostics = make_diagnostics() * np.nan
    page = render(make_influence(), diagnostics=diagnostics)
    assert "<svg" not in page


def test_page_refers_to_nothing_outside_itself():
    page = render(with_pictures(make_influence()))
    references = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert references
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in references)
    assert "http://" not in page and "https://" not in page and "@import" not in page


def test_content_policy_admits_the_script_of_the_page():
    page = render(make_influence())
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_plots_take_every_colour_and_font_from_the_page():
    drawings = re.findall(r"<svg.*?</svg>", render(make_influence()), flags=re.S)
    assert len(drawings) == 4
    for drawing in drawings:
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing)
        assert any("var(--blue)" in c for c in colours)
        assert all(c == "none" or c.startswith("var(--") for c in colours)
        assert "<text" in drawing and "font-family" not in drawing


def test_a_chain_that_was_left_out_does_not_set_the_scale_of_the_traces():
    diagnostics = make_diagnostics()
    diagnostics["mean_loss"][2, 10:] = np.inf
    diagnostics["mean_loss"][2, 5:10] = 1e30
    page = render(
        make_influence(), diagnostics=diagnostics, summary=SUMMARY | {"diverged_chains": [2]}
    )
    trace = page[page.index(">Traces<") : page.index("</svg>")]
    words = re.findall(r">([^<]+)</text>", trace)
    ticks = [float(w) for w in words if w not in ("draw", "mean training loss")]
    assert "var(--orange)" in trace
    assert 1.0 in ticks and max(ticks) <= 50  # draws to 50, losses from 0.5 to about 1.3


def test_ids_in_the_page_are_unique():
    ids = re.findall(r'\bid="([^"]*)"', render(with_pictures(make_influence())))
    assert len(ids) == len(set(ids))


def test_page_stays_small_with_many_long_chains():
    diagnostics = make_diagnostics(num_chains=64, num_draws=2000)
    page = render(
        with_pictures(make_influence(better=("lower", "higher"))), diagnostics=diagnostics
    )
    assert len(page) < 600_000


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_pictures_are_the_items_own_pixels(channels: int):
    influence = with_pictures(make_influence(num_query=1, num_train=1), channels=channels)
    page = render(influence)
    found = re.search(r'src="data:image/png;base64,([^"]+)"[^>]*alt="training item t0"', page)
    assert found
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.group(1)))))
    np.testing.assert_array_equal(pixels, influence["train_image"].values[0].squeeze())


def test_large_pictures_are_reduced_and_smoothed():
    page = render(with_pictures(make_influence(num_query=1), side=300))
    widths = [int(w) for w in re.findall(r'<img[^>]*width="(\d+)"', page)]
    assert widths and max(widths) <= 128
    assert 'class="pixels"' not in page


def test_items_without_pictures_show_id_and_label_only():
    influence = make_influence(num_query=1).assign_coords(
        train_label=("train", [f"label-{i}" for i in range(40)])
    )
    influence["standard_error"][:] = 0.0
    page = render(influence)
    best = int(np.argmin(influence["influence"].values[0, 0]))
    assert "<img" not in page
    assert f"<b>label-{best}</b> <small>t{best}</small>" in page


def test_suspects_are_ranked_and_the_known_truth_is_marked():
    influence = make_influence().assign_coords(
        train_label=("train", ["7"] * 40), original_label=("train", ["3"] * 40)
    )
    influence["suspicion"] = ("train", np.arange(40.0))
    influence["relabelled"] = ("train", np.arange(40) >= 30)
    page = render(influence, summary=SUMMARY | {"mislabel_auroc": 0.97})
    part = page[page.index('id="suspects"') : page.index('id="queries"')]
    assert re.findall(r"<small>(t\d+)</small>", part) == [f"t{i}" for i in range(39, 15, -1)]
    assert part.count('class="hit"') == 10 and part.count('class="miss"') == 14
    assert part.count("was 3 ✓") == 10
    assert "<h1>The 10 most suspicious items are all among the 10 mislabelled.</h1>" in page
    assert "0.9700 by the self-influence." in part and "gradient product" not in part


def test_moved_labels_that_do_not_stand_first_are_counted():
    moved = np.array([False, True, True, False, True, False])
    done, found, beyond = moved_in_words(moved, ["a"] * 6, np.array(list("abaaba")))
    assert done == "3 of 6 labels were made wrong on purpose."
    assert found == "Of the 3 most suspicious items 2 are among the 3 mislabelled."
    assert beyond.endswith("the right label, for 1 of the 3.")


class Listed:
    """Suspects as `bif.Run.suspects` lists them."""

    def __init__(self, scores: xr.Dataset, **lists: list[Suspect]) -> None:
        self.scores, self.left_out = scores, "Out of place could not be told."
        self.mislabelled = lists.get("mislabelled", [])
        self.duplicates = lists.get("duplicates", [])
        self.out_of_place = lists.get("out_of_place", [])


def test_suspects_of_any_run_stand_below_its_queries_with_what_is_known_of_them():
    influence = make_influence().assign_coords(
        train_label=("train", ["7"] * 40),
        train_features=("train", [f"{HOSTILE}{i}" for i in range(40)]),
    )
    scores = xr.Dataset({"loss": ("train", np.arange(40.0))})
    wrong = [Suspect("t39", "7", 3.2, "perhaps 1")]
    alone = [Suspect("t5", "7", 0.9)]
    page = render(influence, suspects=Listed(scores, mislabelled=wrong, out_of_place=alone))
    part = page[page.index('id="suspects"') :]
    assert page.index('id="queries"') < page.index('id="suspects"')
    assert re.findall(r"<small>(t\d+)</small>", part) == ["t39", "t5"]
    assert "perhaps 1" in part and "loss 3.20" in part and "isolation 0.900" in part
    assert f"{html.escape(HOSTILE)}39" in part and HOSTILE not in page
    assert "Out of place could not be told." in part


@pytest.mark.parametrize(
    ("summary", "said", "unsaid"),
    [
        (
            {"trusted": True},
            "Trusted: the scores of the run&#x27;s two halves correlate at 0.91",
            "Not trusted",
        ),
        ({"trusted": False}, "Not trusted: 1 of 2 checks failed (mixing).", "Stopped early"),
        ({"trusted": False, "complete": False}, "Stopped early, and can go on", "ot trusted"),
    ],
)
def test_one_line_below_the_answer_says_how_far_to_trust_it(summary, said, unsaid):
    gates = [
        {"name": n, "failed": not summary["trusted"] and n == "mixing"} for n in ("mixing", "drift")
    ]
    warnings = [] if summary["trusted"] else ["not trusted, mixing: R-hat is 2"]
    influence = make_influence().assign_attrs(trusted=int(summary["trusted"]))
    manifest = {"gates": gates, "warnings": warnings}
    page = render(influence, summary=SUMMARY | summary, manifest=manifest)
    top = page[: page.index("</header>")]
    assert top.index("<h1>") < top.index(f'<p class="lead trusted">{said}') and unsaid not in top


def test_the_answer_names_the_first_query_by_text_label_and_prediction_and_what_moves_it():
    influence = make_influence(num_query=2).assign_coords(
        query_text=("query", ["a <b>", "c"]),
        query_label=("query", ["cat", "dog"]),
        query_prediction=("query", ["dog", "dog"]),
    )
    influence = influence.isel(query=[0])
    score, error = (influence[v].values[0, 0] for v in ("influence", "standard_error"))
    certain = np.where(np.abs(score) > 2 * error, score, 0)
    helped, harmed = f"t{certain.argmin()}", f"t{certain.argmax()}"
    page = render(influence)
    said = (
        "Query q0, 'a <b>', labelled cat; the model says dog: it is helped most by "
        f"{helped} and harmed most by {harmed}."
    )
    top = page.index(f">{html.escape(said)}</h1>")
    assert top < page.index('id="queries"') < page.index('class="fold"')
    untrusted = render(influence.assign_attrs(trusted=0))
    assert "no item moves it for certain.</h1>" in untrusted


def unpacked(page: str) -> dict:
    """The queries that the page's script unpacks."""
    block = re.search(r'id="more-queries">([^<]*)</script>', page)
    assert block
    return json.loads(gzip.decompress(base64.b64decode(block[1])))


def test_every_query_is_on_the_page_and_its_pictures_are_there_once():
    influence = with_pictures(make_influence(num_query=30))
    page = render(influence)
    more = unpacked(page)
    up_front = re.findall(r'<article class="query" id="(query-\d+)"', page)
    assert len(up_front) == 8
    assert sorted([*up_front, *more["articles"]]) == sorted(f"query-{q}" for q in range(30))
    assert re.findall(r'<option value="(query-\d+)"', page) == [*up_front, *more["articles"]]
    shown = {int(n) for t in more["articles"].values() for n in re.findall(r'picture="(\d+)"', t)}
    assert shown == set(range(len(more["pictures"]))) and len(set(more["pictures"])) == len(shown)
    assert not any("data:image" in text for text in more["articles"].values())


def test_queries_beyond_the_room_of_the_page_are_counted(monkeypatch):
    monkeypatch.setattr("bif.report.query_switch.MAX_QUERIES", 10)
    page = render(make_influence(num_query=30))
    assert len(unpacked(page)["articles"]) == 2
    assert "The page has no room for 20 more: bif show DIR --query ID." in page


def test_items_whose_sign_is_not_certain_stand_apart():
    influence = make_influence(num_query=1)
    page = render(influence, top=40)
    score, error = (influence[v].values[0, 0] for v in ("influence", "standard_error"))
    apart = re.findall(r'<ol class="items rows unsure">(.*?)</ol>', page, flags=re.S)
    shown = [float(v) for part in apart for v in re.findall(r'<data value="([^"]+)"', part)]
    np.testing.assert_allclose(
        np.sort(shown), np.sort(score[np.abs(score) <= 2 * error]), rtol=1e-5
    )


def test_without_suspicion_there_is_no_section_of_suspects():
    assert 'id="suspects"' not in render(make_influence())


def test_manifest_is_shown_with_nested_names_and_long_lists_cut():
    manifest = {"settings": {"sampler": {"step": 0.5}}, "seeds": list(range(30)), "note": None}
    page = render(make_influence(), manifest=manifest)
    assert '<th scope="row">sampler.step</th><td>0.5</td>' in page
    assert "19 … (30 in all)</td>" in page
    assert '<th scope="row">note</th><td>–</td>' in page


def test_asked_queries_are_shown_in_the_order_asked():
    page = render(make_influence(), queries=["q7", "q2"])
    assert re.findall(r'<article class="query" id="(query-\d+)"', page) == ["query-7", "query-2"]


def test_chosen_queries_cover_every_group_and_the_worst_handled():
    influence = make_influence(num_query=60).assign_coords(
        query_group=("query", ["big"] * 57 + ["x", "y", "z"])
    )
    chosen = choose_queries(read_source(influence))
    groups = {str(influence["query_group"].values[q]) for q in chosen}
    loss = influence["query_center"].values[0]
    assert len(chosen) == len(set(chosen)) == 8
    assert groups == {"big", "x", "y", "z"}
    assert chosen == sorted(chosen, key=lambda q: -loss[q])
    assert np.argmax(loss) in chosen


def test_worst_handled_means_the_lowest_where_higher_is_better():
    source = read_source(make_influence(better=("higher",)))
    assert np.argmax(source.badness()) == np.argmin(source.query_center[0])


@pytest.mark.parametrize("missing", ["influence", "standard_error", "query_id", "train_id"])
def test_missing_variable_is_named(missing: str):
    with pytest.raises(ValueError, match=f"no variable '{missing}'; it holds: .*influence.zarr"):
        render(make_influence().drop_vars(missing))


def test_wrong_dimensions_are_named():
    influence = make_influence().rename({"train": "item"})
    with pytest.raises(ValueError, match=r"'influence' .* \('observable', 'query', 'item'\)"):
        render(influence)


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="'better' of observable 'obs0' is 'up'"):
        render(make_influence(better=("up",)))


def test_unknown_query_is_refused_with_examples():
    with pytest.raises(ValueError, match="No such query: 'nope'.*'q0'"):
        render(make_influence(), queries=["q1", "nope"])


def test_no_items_to_show_is_refused():
    with pytest.raises(ValueError, match="top is 0, expected at least 1"):
        render(make_influence(), top=0)


def test_pictures_that_are_not_uint8_are_refused():
    influence = with_pictures(make_influence(num_query=1))
    influence["train_image"] = influence["train_image"].astype("float32")
    with pytest.raises(ValueError, match=r"shape \(5, 5\) and type float32, expected uint8"):
        render(influence)


@pytest.mark.parametrize("module", ["matplotlib", "PIL"])
def test_missing_package_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch):
    influence = with_pictures(make_influence(num_query=1))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"bayesian-influence\[report\]"):
        render(influence)


def test_importing_the_report_imports_no_heavy_package():
    code = (
        "import sys, bif.report; "
        "print([m for m in ('matplotlib', 'PIL', 'xarray', 'scipy') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("score", "error", "exponent", "expected"),
    [
        (-0.02134, 0.00123, 0, ("−0.0213", "0.0012")),
        (-0.02134, 0.00123, -3, ("−21.3", "1.2")),
        (61.4, 12.0, 0, ("+61", "12")),
        (1234.5, 250.0, 0, ("+1,234", "250")),
        (0.5, float("nan"), 0, ("+0.500", "–")),
        (0.5, 0.0, 0, ("+0.500", "0.000")),
        (float("nan"), 0.1, 0, ("–", "–")),
        (0.25, 1e-9, 0, ("+0.2500", "0.0000")),
    ],
)
def test_scores_are_rounded_to_two_digits_of_their_error(score, error, exponent, expected):
    assert score_and_error(score, error, exponent=exponent) == expected


@pytest.mark.parametrize(
    ("values", "exponent"),
    [([0.5, -2.0], 0), ([0.099], -3), ([-4e-7, 1e-9], -9), ([1500.0], 3), ([0.0], 0), ([], 0)],
)
def test_shared_exponent_brings_the_largest_score_to_readable_size(values, exponent):
    assert shared_exponent(values) == exponent


def test_numbers_and_settings_are_rounded_and_grouped():
    assert number(None) == number(float("inf")) == number("x") == "–"
    assert number(-0.01234) == "−0.0123"
    assert number(1.5e-7) == "1.50 × 10⁻⁷"
    assert number(12345.6) == "12,346"
    assert setting(30.0) == "30" and setting(1000.0) == "1,000" and setting(0.25) == "0.25"


def test_the_page_says_how_many_losses_were_looked_at_and_calls_no_guide_a_gate():
    diagnostics = xr.Dataset({n: ("item", np.linspace(1, 1.04, 64)) for n in ("rhat", "ess")})
    page = render(make_influence(num_query=1), diagnostics=diagnostics)
    assert page.count("Of the 64 losses and observables that were looked at") >= 2
    assert "every item" not in page and page.count("the gate is 1.05") == page.count("gate is") > 0
