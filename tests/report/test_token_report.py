"""The page of tokens: what it holds, what it leaves out, and how it behaves in Chromium."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_report_browser import ATTACK, CHROMIUM, look, without_policy

import bif
from bif.cli.answers import query_in_words
from bif.report import answer, passages, render_report, render_token_report
from bif.report import token_source as picked
from small_problems import nothing_measured
from token_problems import TINY, problem, texts

in_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium"),
]
SETTINGS = replace(TINY, draws=12)


def attacking(num_items: int, *, seed: int, **about: Any) -> bif.Items:
    """Texts whose every piece is an attack."""
    pieces = [[f"{ATTACK} {t}" for t in p] for p in texts(num_items, seed=seed).tokens or []]
    return texts(num_items, seed=seed, tokens=pieces, **about)


def run_of(tokens: Any = "both", **changed: Any) -> bif.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bif.runs.block_run.check", nothing_measured)
        return bif.attribute(problem(tokens, **changed), SETTINGS)


def summed(run: bif.Run) -> dict[str, Any]:
    influence = run.influence
    return {
        "train": influence.by_item("train").dataset,
        "query": influence.by_item("query").dataset,
        "both": influence.by_item().dataset,
        "sources": influence.by_item("query").by_group("label").dataset,
    }


def page_of(run: bif.Run, **given: Any) -> str:
    about = {"diagnostics": run.diagnostics, "summary": run.summary, "manifest": run.manifest}
    return render_token_report(run.influence.dataset, **{"summed": summed(run), **about, **given})


@pytest.fixture(scope="module")
def run() -> bif.Run:
    return run_of()


@pytest.fixture(scope="module")
def page(run: bif.Run) -> str:
    return page_of(run)


def blocks(page: str) -> list[list[dict[str, Any]]]:
    """The data of every query."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    return [json.loads(text) for text in found]


def queries_of(page: str) -> list[str]:
    return re.findall(r'<h3 id="title-\d+">Query (.*?)</h3>', page)


def passages_of(page: str) -> list[list[str]]:
    """Names of each query's passages, in order."""
    parts = page.split('<article class="query reading"')[1:]
    return [re.findall(r'class="whole" aria-pressed="\w+">(.*?)</button>', p) for p in parts]


class TestContent:
    def test_numbers_are_the_scores_to_their_rounding(self, run, page):
        sums, dataset = summed(run), run.influence.dataset
        for query, names, block in zip(
            queries_of(page), passages_of(page), blocks(page), strict=True
        ):
            rows = np.flatnonzero(dataset["query_item"].values == query)
            whole = sums["both"]["query_id"].values.tolist().index(query)
            for name, data in zip(names, block, strict=True):
                columns = np.flatnonzero(dataset["train_item"].values == name)
                item = sums["both"]["train_id"].values.tolist().index(name)
                expected = {
                    v: dataset[v].values[0][np.ix_(rows, columns)]
                    for v in ("influence", "correlation", "standard_error")
                }
                raw = np.frombuffer(base64.b64decode(data["influence"]), "<i2")
                got = raw.reshape(len(rows), len(columns)) / 32767 * data["scale"]
                np.testing.assert_allclose(got, expected["influence"], atol=data["scale"] / 6e4)
                raw = np.frombuffer(base64.b64decode(data["correlation"]), np.int8)
                np.testing.assert_allclose(
                    raw.reshape(got.shape) / 127, expected["correlation"], atol=0.5 / 127 + 1e-6
                )
                bits = np.frombuffer(base64.b64decode(data["certain"]), np.uint8)
                certain = np.unpackbits(bits, bitorder="little")[: got.size].reshape(got.shape)
                limit = run.influence.error_quantile * expected["standard_error"]
                np.testing.assert_array_equal(certain, np.abs(expected["influence"]) > limit)
                np.testing.assert_allclose(
                    data["query"]["influence"], sums["train"]["influence"][0, rows, item], rtol=1e-3
                )
                np.testing.assert_allclose(
                    data["train"]["influence"], sums["query"]["influence"][0, whole, columns],
                    rtol=1e-3,
                )  # fmt: skip

    def test_passages_are_the_strongest_on_the_whole_query(self, run):
        page = page_of(run, top=2)
        scores = summed(run)["both"]
        for query, names in zip(queries_of(page), passages_of(page), strict=True):
            row = scores["query_id"].values.tolist().index(query)
            values = scores["influence"].values[0, row]
            ids = scores["train_id"].values
            down = [ids[i] for i in np.argsort(values) if values[i] < 0][:2]
            up = [ids[i] for i in np.argsort(-values) if values[i] > 0][:2]
            assert names == [*down, *up]

    def test_a_page_holds_as_many_pairs_as_it_has_room_for(self, run, monkeypatch):
        whole = sum(
            d["columns"] * len(d["query"]["influence"]) for b in blocks(page_of(run)) for d in b
        )
        monkeypatch.setattr("bif.report.passages.MAX_CELLS", whole // 3)
        page = page_of(run)
        fewer = sum(d["columns"] * len(d["query"]["influence"]) for b in blocks(page) for d in b)
        assert 0 < fewer <= whole // 3
        assert picked.MAX_CELLS * 4 < 5e6  # bytes

    def test_text_without_a_column_is_there_and_is_not_shaded(self, page):
        first = texts(3, seed=5).tokens
        assert first is not None
        start = page.index('<div class="text" data-side="query"')
        shown = re.sub(r"<.*?>", "", page[start : page.index("</div>", start)])
        assert html.unescape(shown) in {"".join(pieces) for pieces in first}

    @pytest.mark.parametrize("tokens", ["train", "query"])
    def test_one_side_may_be_whole(self, tokens):
        page = page_of(run_of(tokens))
        side = {"train": "query", "query": "train"}[tokens]
        for text in re.findall(rf'<div class="text" data-side="{side}".*?</div>', page, flags=re.S):
            assert 'class="t ' not in text and "w" in re.sub("<.*?>", "", text)
        assert 'class="t ' in page

    def test_without_pieces_tokens_are_shown_by_their_place(self):
        train = texts(6, seed=1, tokens=None, labels=list("abacba"))
        page = page_of(run_of(train=train, queries=texts(3, seed=5, tokens=None)))
        assert re.search(r'data-i="0"[^>]*>\[1\] </span>', page)

    def test_sources_are_named_with_their_errors(self, run, page):
        sources = summed(run)["sources"]
        section = page[page.index('id="sources"') :]
        for name in "abc":
            assert f'<th scope="col">{name}</th>' in section
        assert section.count("±") >= sources["influence"].size

    def test_errors_that_are_unknown_without_traces_are_dashes(self, run):
        loaded = bif.Influence(run.influence.dataset)
        alone = {
            "train": loaded.by_item("train").dataset,
            "query": loaded.by_item("query").dataset,
            "both": loaded.by_item().dataset,
        }
        page = page_of(run, summed=alone)
        reader = page[page.index('class="reader"') : page.index('id="reading"')]
        assert not re.search(r"\bnan\b", reader, flags=re.I)
        assert "± –" in page and 'id="sources"' not in page

    def test_observables_that_should_be_high_turn_the_colours(self, run):
        high = run.influence.dataset.assign_coords(better=("observable", ["higher"]))
        turned = bif.Influence(high, run.traces)
        sums = {s: turned.by_item(s).dataset for s in ("train", "query", "both")}  # type: ignore[arg-type]
        page = render_token_report(
            high, summed=sums, diagnostics=run.diagnostics, summary=run.summary, manifest={}
        )
        assert 'data-helpful="1"' in page and "helpful: more weight raises the loss" in page

    def test_tabs_name_queries_by_their_text_and_the_top_asks_of_tokens(self, run, page):
        tabs = re.findall(r'<a href="#query-\d+"><span><b>(.*?)</b><small>(.*?)</small>', page)
        tabs = [(text, name.partition(" · ")[0]) for text, name in tabs]
        assert "t0 · &#x27;w5&#x27;</small>" in page  # its only token
        assert [name for _, name in tabs] == queries_of(page)
        pieces = texts(3, seed=5).tokens
        assert pieces is not None
        assert [text for text, _ in tabs] == [
            "".join(pieces[int(name[1:])]).strip() for _, name in tabs
        ]
        sizes = run.influence.dataset.sizes
        asked = f"Which of {sizes['train']} tokens of 6 training passages influence the loss of "
        assert f"{asked}{sizes['query']} tokens of 3 queries, and which way?" in page
        first = html.escape(repr(tabs[0][0]))
        assert f"<h1>Query {tabs[0][1]}, {first}: no token moves it for certain.</h1>" in page

    def test_passages_of_a_certain_sign_stand_first_and_the_others_are_said_to_have_none(self, run):
        sums = {n: d.assign_attrs(trusted=1).copy(deep=True) for n, d in summed(run).items()}
        both = sums["both"]
        score = both["influence"].values[0]
        certain = np.arange(score.shape[1]) % 2 == 0
        both["standard_error"][0] = np.where(certain, 0.0, 2.0) * np.abs(score)
        page = page_of(run, summed=sums)
        names = both["train_id"].values.tolist()
        lists = re.findall(r'<ol class="passages (\w+)">(.*?)</ol>', page, flags=re.S)
        tones = {name: set() for name in names}
        for tone, body in lists:
            for name in re.findall(r'class="whole" aria-pressed="\w+">(.*?)</button>', body):
                tones[name].add(tone)
        for name, sure in zip(names, certain, strict=True):
            assert tones[name] <= ({"blue", "orange"} if sure else {"unsure"})
        apart = [tone for tone, _ in lists if tone == "unsure"]
        assert page.count("Of these the sign is not certain:") == len(apart)
        assert 0 < len(apart) < len(lists)
        reader = page[page.index('class="reader"') : page.index('id="reading"')]
        assert "no sign is certain" not in reader


class TestRuns:
    def test_the_terminal_says_tokens_and_what_a_query_token_says(self, tmp_path: Path, run, call):
        run.save(tmp_path / "tokens")
        code, said, _ = call("show", tmp_path / "tokens")
        dataset = run.influence.dataset
        name, piece = (str(dataset[n].values[0]) for n in ("query_id", "query_text"))
        pieces = texts(3, seed=5).tokens
        assert pieces is not None
        text = "".join(pieces[int(str(dataset["query_item"].values[0])[1:])]).strip()
        code, asked, _ = call("show", tmp_path / "tokens", "--query", name, "--verbose")
        assert code == 0 and "tokens of train items on" in asked
        assert f"Query token {name}, '{piece.strip()}' of '{text}'" == query_in_words(
            run.influence, name
        )
        assert re.search(r"^Query token t\d\[\d\], 'w\d' of 'w", said, flags=re.M)
        assert "with more weight on these tokens" in said

    def test_a_run_of_tokens_has_this_page(self, tmp_path: Path, run):
        run.save(tmp_path / "tokens")
        text = (tmp_path / "tokens" / "report.html").read_text(encoding="utf-8")
        assert "Which tokens move which" in text and 'id="sources"' in text

    def test_a_run_of_items_has_the_other(self, tmp_path: Path):
        run_of(None).save(tmp_path / "items")
        text = (tmp_path / "items" / "report.html").read_text(encoding="utf-8")
        assert "What moves each query" in text

    def test_nothing_is_loaded_from_anywhere(self, page):
        assert not re.search(r"(src|href)=[\"'](?!#)", page)
        assert "default-src 'none'" in page and "http:" not in page and "https:" not in page


class TestRefusals:
    def test_scores_of_items_are_refused(self):
        whole = run_of(None)
        with pytest.raises(ValueError, match="neither 'train_item' nor 'query_item'"):
            page_of(whole, summed={})

    def test_sums_that_are_missing_are_named(self, run):
        with pytest.raises(ValueError, match=r"summed lacks \['query', 'both'\]"):
            page_of(run, summed={"train": summed(run)["train"]})

    def test_names_that_are_not_there_are_refused(self, run):
        with pytest.raises(ValueError, match="no observable 'margin'"):
            page_of(run, observable="margin")
        with pytest.raises(ValueError, match="No such query: 'q'"):
            page_of(run, queries=["q"])
        with pytest.raises(ValueError, match="top is 0"):
            page_of(run, top=0)

    def test_the_usual_page_takes_scores_of_tokens_too(self, run):
        page = render_report(
            run.influence.dataset, diagnostics=run.diagnostics, summary=run.summary, manifest={}
        )
        assert "t0[1]" in page


@pytest.fixture(scope="module")
def attacked() -> str:
    labels = [ATTACK] * 3 + ["b"] * 3
    train = attacking(6, seed=1, labels=labels, ids=[f"{i}{ATTACK}" for i in range(6)])
    run = run_of(train=train, queries=attacking(3, seed=5, ids=[f"{i}{ATTACK}" for i in "abc"]))
    return page_of(run)


class TestEscaping:
    def test_documents_with_markup_stay_text(self, attacked):
        body = attacked[attacked.index("<body>") : attacked.rindex("<script>")]
        assert "<img" not in body and "&lt;script&gt;document.title" in body
        scripts = re.findall(r"<script(.*?)>", body)
        assert scripts and set(scripts) == {' type="application/json"'}
        for block in re.findall(
            r'<script type="application/json">(.*?)</script>', body, flags=re.S
        ):
            assert "<" not in block

    @pytest.mark.browser
    @pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")
    def test_script_in_a_document_does_not_run(self, attacked, tmp_path: Path):
        click = 'page.querySelectorAll(".reading .t").forEach((t) => t.click())'
        assert look(without_policy(attacked), tmp_path, act=click)["title"] == "Influence report"


# What a click does is read from the page's title, which the page itself never changes.
REPORT_STATE = """;
const article = page.querySelector(".reading:not(.off)");
const spans = (side) => [...article.querySelectorAll(`.text[data-side="${side}"] .t`)];
const shade = (s) => ({ i: Number(s.dataset.i), s: parseInt(s.style.getPropertyValue("--s")) || 0,
  blue: s.classList.contains("blue"), sure: s.classList.contains("sure"),
  chosen: s.classList.contains("chosen") });
page.title = JSON.stringify({
  query: spans("query").map(shade),
  passages: [...article.querySelectorAll(".passage")].map((p) =>
    ({ pressed: p.querySelector(".whole").getAttribute("aria-pressed"),
       tokens: [...p.querySelectorAll(".t")].map(shade) })),
  status: [...article.querySelectorAll(".status span")].map((s) => s.textContent),
  views: [...page.querySelectorAll(".views button")].map((b) => b.getAttribute("aria-pressed")),
})
"""


# Mixed colours are given in shares of 1, which the measure of contrast does not know.
SHOW_ALL = """
page.querySelectorAll(".off").forEach((e) => e.classList.remove("off"));
page.querySelectorAll(".t").forEach((t) => {
  const mixed = frame.contentWindow.getComputedStyle(t).backgroundColor.match(/[\\d.]+/g);
  t.style.backgroundColor = `rgb(${mixed.slice(0, 3).map((x) => 255 * x)})`;
})
"""


def state_after(page: str, folder: Path, act: str) -> dict[str, Any]:
    return json.loads(look(page, folder, act=act + REPORT_STATE)["title"])


def expected_shades(values: np.ndarray, largest: float) -> list[int]:
    return [round(45 * abs(v) / largest) for v in values]


class TestInChromium:
    pytestmark = in_chromium

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_page_fits_a_phone_and_can_be_read(self, page, tmp_path: Path, scheme: str):
        seen = look(page, tmp_path, width=360, scheme=scheme, act=SHOW_ALL)
        assert seen["scroll"] <= 360 and seen["wide"] == []
        assert seen["faintest"][0] >= 4.5, seen["faintest"]

    def test_everything_is_there_without_scripts(self, page, tmp_path: Path):
        seen = look(page, tmp_path, sandbox='sandbox="allow-same-origin"')
        assert len(seen["queries"]) == 3 and seen["toolbar"] == 0

    def test_the_script_begins_where_the_page_is(self, page, tmp_path: Path):
        alive = state_after(page, tmp_path, "")
        start = page.index('<article class="query reading"')
        static = re.findall(
            r'class="t (\w*)( sure)?" data-i="\d+" style="--s:(\d+)%"',
            page[start : page.index("</article>", start)],
        )
        shown = [*alive["query"], *(t for p in alive["passages"] for t in p["tokens"])]
        assert len(static) == len(shown)
        for (tone, sure, strength), token in zip(static, shown, strict=True):
            # Numbers of the page are rounded to four digits.
            assert abs(int(strength) - token["s"]) <= 1 and bool(sure) == token["sure"]
            assert (tone == "blue") == token["blue"]

    def test_a_token_of_the_query_shades_the_passages(self, run, page, tmp_path: Path):
        click = 'page.querySelectorAll(".reading:not(.off) .text[data-side=query] .t")[0].click()'
        found = state_after(page, tmp_path, click)
        query, names = queries_of(page)[0], passages_of(page)[0]
        dataset = run.influence.dataset
        row = np.flatnonzero(dataset["query_item"].values == query)[0]
        values = [
            dataset["influence"].values[0, row, dataset["train_item"].values == n] for n in names
        ]
        largest = max(np.abs(v).max() for v in values)
        for passage, expected in zip(found["passages"], values, strict=True):
            got = [t["s"] for t in passage["tokens"]]
            assert np.abs(np.subtract(got, expected_shades(expected, largest))).max() <= 1
            assert [t["blue"] for t in passage["tokens"]] == (expected < 0).tolist()
        assert found["query"][0]["chosen"] and "“" in found["status"][1]

    def test_a_token_of_a_passage_shades_the_query_and_lets_go(self, run, page, tmp_path: Path):
        one = 'page.querySelectorAll(".reading:not(.off) .passage")[1].querySelector(".t")'
        found = state_after(page, tmp_path, f"{one}.click()")
        query, name = queries_of(page)[0], passages_of(page)[0][1]
        dataset = run.influence.dataset
        column = np.flatnonzero(dataset["train_item"].values == name)[0]
        values = dataset["influence"].values[0, dataset["query_item"].values == query, column]
        got = [t["s"] for t in found["query"]]
        shades = expected_shades(values, np.abs(values).max())
        assert np.abs(np.subtract(got, shades)).max() <= 1
        assert found["passages"][1]["tokens"][0]["chosen"]
        assert [p["pressed"] for p in found["passages"]] == ["false"] * len(found["passages"])
        again = state_after(page, tmp_path, f"{one}.click(); {one}.click()")
        assert again["passages"][1]["pressed"] == "true"
        assert not any(t["chosen"] for t in again["passages"][1]["tokens"])

    def test_the_correlation_view_is_normalised(self, run, page, tmp_path: Path):
        click = (
            'page.querySelector(".views [data-view=correlation]").click();'
            'page.querySelectorAll(".reading:not(.off) .text[data-side=query] .t")[0].click()'
        )
        found = state_after(page, tmp_path, click)
        query, names = queries_of(page)[0], passages_of(page)[0]
        dataset = run.influence.dataset
        row = np.flatnonzero(dataset["query_item"].values == query)[0]
        values = [
            dataset["correlation"].values[0, row, dataset["train_item"].values == n] for n in names
        ]
        largest = max(np.abs(v).max() for v in values)
        for passage, expected in zip(found["passages"], values, strict=True):
            got = [t["s"] for t in passage["tokens"]]
            assert np.abs(np.subtract(got, expected_shades(expected, largest))).max() <= 1
        assert found["views"] == ["false", "true"]

    def test_arrow_keys_walk_through_the_tokens_and_escape_lets_go(self, page, tmp_path: Path):
        press = (
            'const text = page.querySelector(".reading:not(.off) .text[data-side=query]");'
            "const press = (key) => text.dispatchEvent("
            'new frame.contentWindow.KeyboardEvent("keydown", { key }));'
            '["ArrowRight", "ArrowRight", "ArrowLeft"].forEach(press);'
        )
        found = state_after(page, tmp_path, press)
        assert [t["chosen"] for t in found["query"]].index(True) == 0
        found = state_after(page, tmp_path, press + 'press("Escape")')
        assert not any(t["chosen"] for t in found["query"])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")
def test_arrow_keys_on_the_tabs_change_the_query(page, tmp_path: Path):
    links = re.findall(r'<a href="#(query-\d+)"', page)
    press = (
        'page.querySelector(".chooser a").dispatchEvent(new frame.contentWindow.KeyboardEvent('
        '"keydown", {key: "%s", bubbles: true, cancelable: true}))'
    )
    for key, place in (("ArrowRight", 1), ("ArrowLeft", -1)):
        assert look(page, tmp_path, act=press % key)["queries"] == [links[place]]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")
def test_every_query_can_be_chosen_and_no_word_breaks(run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("bif.report.token_page.choose_queries", lambda source: [2])
    act = """
    const next = page.querySelector(".next");
    const seen = () => page.querySelector(".reading:not(.off)").id;
    const found = [seen()];
    next.click(); found.push(seen());
    page.body.dispatchEvent(new frame.contentWindow.KeyboardEvent(
      "keydown", {key: "ArrowRight", bubbles: true}));
    found.push(seen());
    next.click(); found.push(seen());
    page.title = found.join(" ")"""
    found = look(page_of(run), tmp_path, act=act, width=400)
    every = found["title"].split()
    assert len(set(every)) == 3 and every[0] == every[3] == "query-2"
    assert found["broken"] == [] and found["wide"] == [] and found["scroll"] <= 400


def test_tabs_show_where_texts_differ_and_a_label_is_not_the_text_itself():
    told = passages._told_apart(["once upon a time a cat", "once upon a  time a dog", "a house"])
    assert told == ["… cat", "… dog", "a house"]
    assert passages._told_apart(["one and the same"] * 2) == ["one and the same"] * 2
    words = answer.query_in_words("q", text="once upon a time", label="once upon a")
    assert words == "Query q, 'once upon a time'"
    assert "labelled once" in answer.query_in_words("q", text="once upon", label="once")


def test_queries_beyond_the_room_of_the_page_are_said_to_be_left_out(run, monkeypatch):
    monkeypatch.setattr("bif.report.token_page.choose_queries", lambda source: [2])
    monkeypatch.setattr("bif.report.passages.MOST_BYTES", 1)
    page = page_of(run)
    every = summed(run)["both"]["query_id"].values
    assert len(queries_of(page)) == 1 and "1 of 3 queries" in page
    assert "no room for the others" in page and len(every) == 3


def test_the_seed_of_the_texts_is_not_global():
    before = torch.get_rng_state()
    problem()
    assert torch.equal(before, torch.get_rng_state())
