"""Folders with any content: every use ends in success or in an error of the library's own."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from bif import cli
from broken_runs import (
    OWN_ERRORS,
    USES,
    Whole,
    newest,
    with_its_hash,
)

STATE = "checkpoints/block-001/NEWEST.safetensors"


class Fuzzed:
    """Copies of a complete run and of one that was cut short, with one file changed."""

    def __init__(self, place: Path, complete: Path, cut_short: Path) -> None:
        self.place = place
        self.runs = {"complete": complete, "cut short": cut_short}

    def original(self, run: str, name: str) -> bytes:
        return (self.runs[run] / newest(self.runs[run], name)).read_bytes()

    def check(self, run: str, name: str, content: bytes, *uses: str) -> None:
        """Every use ends in success or in an error of the library's own, and stays inside."""
        for use in uses:
            home = self.place / "home"
            folder = shutil.copytree(self.runs[run], home / "run")
            path = folder / newest(folder, name)
            if name == STATE:  # whoever writes one writes both
                with_its_hash(path, content)
            else:
                path.write_bytes(content)
            try:
                with contextlib.suppress(*OWN_ERRORS):
                    USES[use](folder)
                assert [p.name for p in home.iterdir()] == ["run"]
            finally:
                shutil.rmtree(home)


@pytest.fixture(scope="module")
def fuzzed(
    small_shards: None, whole: Whole, cut_short: Path, tmp_path_factory: pytest.TempPathFactory
) -> Fuzzed:
    return Fuzzed(tmp_path_factory.mktemp("fuzzed"), whole.folder, cut_short)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**4) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def fuzz(num_examples: int) -> settings:
    """The same examples every time, as they are found: to shrink one takes minutes."""
    return settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def mutated_json(draw: st.DrawFn, original: bytes) -> bytes:
    """A JSON object in which one value, at any depth, is another, gone, or beside a new one."""
    content = json.loads(original)
    place: Any = content
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return original
        key = draw(st.sampled_from(list(keys)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        place = inner
    if draw(st.booleans()):
        place[key] = draw(JSON)
    else:
        del place[key]
    return json.dumps(content).encode()


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """The same bytes with some others in one place, or cut off there."""
    start = draw(st.integers(0, max(0, len(original) - 1)))
    new = draw(st.binary(max_size=6))
    return original[:start] + new + (original[start + len(new) :] if draw(st.booleans()) else b"")


def contents(original: bytes, *, is_json: bool = True) -> st.SearchStrategy[bytes]:
    """Mostly content that is nearly right; some that is anything."""
    anything = st.binary(max_size=64) | JSON.map(lambda v: json.dumps(v).encode())
    near = mutated_json(original) if is_json else mutated_bytes(original)
    return near | near | mutated_bytes(original) | anything


READ = [
    "run.json",
    "run.json",
    "summary.json",
    "influence.zarr/zarr.json",
    "influence.zarr/influence/zarr.json",
    "influence.zarr/query_id/zarr.json",
    "influence.zarr/query_id/c/0",
    "diagnostics.zarr/ess/zarr.json",
    "traces.zarr/block-000/train_loss-0/zarr.json",
    "traces.zarr/block-000/train_loss-0/c/0/0/0",
    "checkpoints/block-000/NEWEST.json",
]
CONTINUED = [
    "run.json",
    "checkpoints/center.safetensors",
    "checkpoints/block-001/NEWEST.json",
    STATE,
    "traces.zarr/block-001/train_loss-0/zarr.json",
    "traces.zarr/block-001/query_value-0/c/0/0/0/0",
]


def examine(fuzzed: Fuzzed, data: st.DataObject, run: str, names: list[str], *uses: str) -> None:
    name = data.draw(st.sampled_from(names))
    content = contents(fuzzed.original(run, name), is_json=name.endswith(".json"))
    fuzzed.check(run, name, data.draw(content), data.draw(st.sampled_from(uses)))


class TestAnyContent:
    """Of one file, mostly content that is nearly right."""

    @fuzz(60)
    @given(st.data())
    def test_a_complete_run_is_read_with_any_content_of_one_file(self, fuzzed, data):
        examine(fuzzed, data, "complete", READ, "load", "show")

    @fuzz(16)
    @given(st.data())
    def test_a_run_that_goes_on_survives_any_content_of_one_file(self, fuzzed, data):
        examine(fuzzed, data, "cut short", CONTINUED, "attribute", "extend")

    @pytest.mark.slow
    @fuzz(2000)
    @given(st.data())
    def test_a_complete_run_is_read_with_any_content_of_one_file_at_length(self, fuzzed, data):
        examine(fuzzed, data, "complete", READ, *USES)

    @pytest.mark.slow
    @fuzz(1000)
    @given(st.data())
    def test_a_run_that_goes_on_survives_any_content_of_one_file_at_length(self, fuzzed, data):
        examine(fuzzed, data, "cut short", CONTINUED, *USES)


class TestWrongKinds:
    @pytest.mark.parametrize(
        "change",
        [
            {"blocks": 5}, {"blocks": [["a", "b"]]}, {"blocks": [[0]]}, {"blocks": [[0, 10**18]]},
            {"blocks": [[3, 3], [0, 2]]}, {"chains": "many"}, {"left_out": 3}, {"left_out": [[1]]},
            {"warnings": 3}, {"arrays": 3}, {"arrays": ["../../x", "/etc/passwd"]},
            {"arrays": ["x" * 10**4]}, {"arrays": ["\ud800", "nul\0"]}, {"format": None},
        ],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_in_the_manifest_of_a_complete_run(self, fuzzed, change):
        content = {**json.loads(fuzzed.original("complete", "run.json")), **change}
        fuzzed.check("complete", "run.json", json.dumps(content).encode(), "load")

    @pytest.mark.parametrize(
        ("use", "change"),
        [
            ("attribute", {"blocks": 5}), ("attribute", {"blocks": [["a", "b"]]}),
            ("attribute", {"blocks": [[0, 10**18]]}), ("attribute", {"arrays": 3}),
            ("attribute", {"settings": {"chains": "4"}}), ("attribute", {"hardware": 3}),
            ("attribute", {"explanations": 3}), ("attribute", {"keep": 3}),
            ("extend", {"settings": None}), ("extend", {"identity": 3}),
            ("extend", {"identity": {}}), ("extend", {"identity": {"settings": {}}}),
        ],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_the_manifest_of_a_run_that_goes_on_may_hold_wrong_kinds(self, fuzzed, use, change):
        content = {**json.loads(fuzzed.original("cut short", "run.json")), **change}
        fuzzed.check("cut short", "run.json", json.dumps(content).encode(), use)

    @pytest.mark.parametrize(
        "content",
        [{"[/not markup]": "[/not markup]"}, {"draws": [1, 2]}, {}],
        ids=lambda value: str(value)[:40],
    )
    def test_the_summary_may_hold_entries_of_wrong_kinds(self, fuzzed, content):
        fuzzed.check("complete", "summary.json", json.dumps(content).encode(), "load", "show")

    @pytest.mark.parametrize(
        "name", ["run.json", "influence.zarr/zarr.json", "checkpoints/block-000/NEWEST.json"]
    )
    def test_a_file_may_hold_deeply_nested_json(self, fuzzed, name):
        fuzzed.check("complete", name, b'{"a":' * 10**5, "load")

    def test_a_manifest_may_lack_all_entries(self, fuzzed):
        fuzzed.check("complete", "run.json", b"{}", "load")

    @pytest.mark.parametrize("kind", ["gone", "longer", "of another type"])
    @pytest.mark.parametrize("name", ["noise", "sampler/params/0.weight"])
    def test_a_state_with_the_right_hash_may_hold_wrong_kinds(self, fuzzed, name, kind):
        tensors: dict[str, torch.Tensor] = dict(load(fuzzed.original("cut short", STATE)))
        x = tensors.pop(name)
        if kind == "longer":
            tensors[name] = torch.cat([x.flatten()] * 2)
        elif kind == "of another type":
            tensors[name] = x.to(torch.int16)
        fuzzed.check("cut short", STATE, save(tensors), "attribute")

    @pytest.mark.parametrize(
        "change", [{"step": 10**9}, {"draws": 10**9}, {"diverged": {"99": 1}}, {"hardware": {}}],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_a_record_may_hold_entries_of_wrong_kinds(self, fuzzed, change: Mapping[str, Any]):
        name = "checkpoints/block-001/NEWEST.json"
        content = {**json.loads(fuzzed.original("cut short", name)), **change}
        fuzzed.check("cut short", name, json.dumps(content).encode(), "attribute")


WORDS = """demo attribute show --help -h --out run --keep sums traces --from --query --candidates
--draws --chains 3 -1 1e999 nan x.py:f mine.py:problem : x.py: --commit-every --overwrite
--no-overwrite --top --settings --seed --movable * -- - ../.. / memory://nowhere nothing://x
--observable [/] --step-size --device moon""".split()
ANY = st.sampled_from([*WORDS, "", "\0", "\N{GRINNING FACE}"]) | st.text(max_size=5)


@fuzz(30)
@given(
    st.lists(ANY, max_size=6)
    | st.builds(
        lambda command, rest: [command, *rest],
        st.sampled_from(["attribute", "show", "demo"]),
        st.lists(ANY, max_size=5),
    )
)
def test_any_words_on_the_command_line_end_with_0_or_2(tmp_path_factory, capsys, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("words"))
        Path("mine.py").write_text("def problem():\n    return 3\n")
        patch.setattr("bif.cli.digits_demo.run_demo", lambda *_, **__: sys.exit(0))
        patch.setattr(sys, "argv", ["bif", *words])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
        assert code in (0, 2)
        assert "Traceback" not in capsys.readouterr().err
        assert [p.name for p in Path().iterdir() if p.name != "__pycache__"] == ["mine.py"]
