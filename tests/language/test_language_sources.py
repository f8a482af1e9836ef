"""Documents from files and data sets, and what is said of those that cannot be read."""

from __future__ import annotations

import json

import pytest

from bif.language import Document, read_documents
from bif.language.sources import group_names

datasets = pytest.importorskip("datasets", reason="the extra `lm` is not installed")

RECORDS = [
    {"text": "one", "id": "first", "source": "books"},
    {"prompt": "Q: ", "completion": "A", "other": 3},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    {"text": "good", "label": "yes"},
    {"text": "bad", "label": 0, "messages": None},
]


def jsonl(folder, *records, name="data.jsonl"):
    path = folder / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_all_kinds_of_records_are_read_in_order(tmp_path):
    found = read_documents(jsonl(tmp_path, *RECORDS[:2], "", *RECORDS[2:], ""))
    assert [d.id for d in found] == ["first", "data-2", "data-4", "data-5", "data-6"]
    assert [d.text for d in found] == ["one", "A", "", "good", "bad"]
    assert [d.source for d in found] == ["books", "", "", "", ""]
    assert [d.label for d in found] == [None, None, None, "yes", 0]
    assert found[1].prompt == "Q: " and found[1].whole == "Q: A"
    assert found[2].whole == "user: hi\nassistant: ho"


def test_limit_takes_the_first(tmp_path):
    assert len(read_documents(jsonl(tmp_path, *RECORDS), limit=2)) == 2
    with pytest.raises(ValueError, match="limit is 0"):
        read_documents(jsonl(tmp_path, *RECORDS), limit=0)


def test_parquet_saved_folders_and_splits_hold_the_same_documents(tmp_path):
    records = [{"text": f"text {i}", "id": f"i{i}", "source": None} for i in range(3)]
    expected = [(r["id"], r["text"]) for r in records]
    one = datasets.Dataset.from_list(records)
    one.to_parquet(str(tmp_path / "data.parquet"))
    one.save_to_disk(str(tmp_path / "saved"))
    both = datasets.DatasetDict({"train": one, "test": one.select([0])})
    both.save_to_disk(str(tmp_path / "both"))
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "alone"))
    for source in ("data.parquet", "saved", "both@train", "alone"):
        found = read_documents(tmp_path / source)
        assert [(d.id, d.text) for d in found] == expected
    assert len(read_documents(tmp_path / "both@test")) == 1
    for source, message in (
        ("both", "has 2 splits: choose one of train, test"),
        ("both@dev", "has no split 'dev': choose one of train, test"),
        ("saved@train", "has no splits, got @train"),
    ):
        with pytest.raises(ValueError, match=message):
            read_documents(tmp_path / source)


def test_messages_survive_parquet(tmp_path):
    datasets.Dataset.from_list([RECORDS[2]]).to_parquet(str(tmp_path / "chat.parquet"))
    assert read_documents(tmp_path / "chat.parquet")[0].messages == tuple(RECORDS[2]["messages"])


def test_plain_text_is_one_document_or_several(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("once\n\nupon\n", encoding="utf-8")
    assert read_documents(path) == [
        Document("once\n\nupon", "stories-1", place=f"{path}, document 1")
    ]
    path.write_text("a\n<|endoftext|>\n \n<|endoftext|>\nb\n<|endoftext|>", encoding="utf-8")
    assert [(d.id, d.text) for d in read_documents(path)] == [
        ("stories-1", "a"),
        ("stories-2", "b"),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{no json", "data.jsonl, line 2 is no JSON"),
        ("[1]", "line 2 must be a JSON object, got list"),
        ({"content": "x"}, "line 2: the field 'text' is missing.*the fields are 'content'"),
        ({}, "line 2: the field 'text' is missing.*the fields are none"),
        ({"text": None}, "the field 'text' is missing"),
        ({"text": " \n"}, "line 2: the field 'text' is empty"),
        ({"text": 3}, "line 2: the field 'text' must be a text, got int"),
        ({"prompt": "x"}, "the field 'completion' is missing"),
        ({"completion": "x"}, "the field 'prompt' is missing"),
        ({"messages": "hi"}, "the field 'messages' must be a list of"),
        ({"messages": [{"role": "user"}]}, "the field 'messages' must be a list of"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the assistant says nothing"),
        ({"text": "x", "label": 0.5}, "the field 'label' must be a class's name or number"),
        ({"text": "x", "id": "first"}, "the id 'first' is that of .*line 1 too"),
    ],
)
def test_bad_records_are_named_with_file_and_line(tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        read_documents(jsonl(tmp_path, RECORDS[0], record))


class TestBadFiles:
    @pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "no.txt"])
    def test_a_missing_file_is_refused(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=f"no file '.*{name}'"):
            read_documents(tmp_path / name)

    def test_a_missing_path_is_not_looked_for_on_the_hub(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            read_documents(tmp_path / "nowhere")

    def test_a_file_without_documents_is_refused(self, tmp_path):
        for name in ("empty.jsonl", "empty.txt"):
            (tmp_path / name).write_text("\n")
            with pytest.raises(ValueError, match="holds no documents"):
                read_documents(tmp_path / name)

    def test_a_file_that_is_not_utf8_is_refused(self, tmp_path):
        (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
        with pytest.raises(ValueError, match=r"latin.txt is not UTF-8: byte 3 is 0xe9"):
            read_documents(tmp_path / "latin.txt")

    def test_a_file_that_is_no_parquet_is_refused(self, tmp_path):
        (tmp_path / "a.parquet").write_text("hello")
        with pytest.raises(ValueError, match="a.parquet is no parquet file"):
            read_documents(tmp_path / "a.parquet")

    def test_a_folder_that_is_no_data_set_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="is no data set written by save_to_disk"):
            read_documents(tmp_path)

    def test_another_kind_of_file_is_refused(self, tmp_path):
        (tmp_path / "a.csv").write_text("x")
        with pytest.raises(ValueError, match=r"expected a file .jsonl, .parquet or .txt"):
            read_documents(tmp_path / "a.csv")

    def test_a_name_of_the_hub_that_cannot_be_loaded_is_refused(self, monkeypatch):
        def refused(path, name, *, trust_remote_code):
            assert trust_remote_code is False
            raise ConnectionError(f"no way to {path} {name}")

        monkeypatch.setattr(datasets, "load_dataset", refused)
        with pytest.raises(
            FileNotFoundError, match="no data set of the hub .* no way to a/b small"
        ):
            read_documents("a/b:small@train")

    def test_a_name_of_the_hub_that_can_be_loaded_is_read(self, monkeypatch):
        held = datasets.DatasetDict({"dev": datasets.Dataset.from_list([{"text": "x"}])})
        monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **_: held)
        assert read_documents("a/wiki@dev") == [Document("x", "wiki-1", place="a/wiki@dev, row 1")]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_text("")
    for module, source in (("pyarrow", tmp_path / "a.parquet"), ("datasets", tmp_path)):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ImportError, match=r"bayesian-influence\[lm\]"):
            read_documents(source)


class TestNames:
    @pytest.mark.parametrize("folder", ["runs@home", "C:", "a:b@c", "v1.0"])
    @pytest.mark.parametrize("kind", ["file", "saved", "split"])
    def test_a_path_that_exists_is_taken_as_it_is(self, tmp_path, monkeypatch, folder, kind):
        monkeypatch.chdir(tmp_path)
        (tmp_path / folder).mkdir()
        source, name = f"{folder}/easy.jsonl", "easy"
        if kind == "file":
            (tmp_path / source).write_text('{"text": "x"}\n')
        else:
            source = name = folder
            held = datasets.Dataset.from_list([{"text": "x"}])
            (held if kind == "saved" else datasets.DatasetDict({"dev": held, "b": held})
             ).save_to_disk(folder)  # fmt: skip
            source += "@dev" if kind == "split" else ""
        (document,) = read_documents(source)
        assert document.id == f"{name}-1" and group_names([source]) == [name]

    def test_a_windows_path_has_the_name_of_its_file(self):
        assert group_names([r"C:\data\easy.jsonl"]) == ["easy"]

    def test_sources_that_share_a_name_are_told_apart_by_folder_split_and_configuration(self):
        assert group_names(["a/q.jsonl", "b/q.jsonl"]) == ["a-q", "b-q"]
        assert group_names(["org/wiki@dev", "org/wiki@test"]) == ["wiki@dev", "wiki@test"]
        assert group_names(["wiki:en@dev", "wiki:de@dev"]) == ["wiki:en@dev", "wiki:de@dev"]
        assert group_names(["a/q.jsonl", "org/wiki:en@dev"]) == ["q", "wiki"]

    def test_one_source_twice_is_refused(self):
        with pytest.raises(ValueError, match="two sources are named 'a-q': rename one"):
            group_names(["a/q.jsonl", "a/q.jsonl"])
