"""Where documents come from: jsonl, parquet, plain text, and data sets of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from bif.extras import needs_extra
from bif.language.documents import Document, document_from_record

SEPARATOR = "<|endoftext|>"
"""The text between the documents of a plain text file."""
_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".text", ".md")


def read_documents(source: str | Path, *, limit: int | None = None) -> list[Document]:
    """Read documents from a file, a saved data set, or the Hugging Face hub.

    Records have `text`, or `prompt` and `completion`, or `messages`, or `text` and `label`; and, if
    they like, `id` and `source`.  A plain text file is one document, or several with
    `<|endoftext|>` between them.

    Args:
        source: A file `.jsonl`, `.parquet` or `.txt`; a folder written by
            `Dataset.save_to_disk`; else the name of a data set on the hub.  Of a data set with
            several splits `SOURCE@SPLIT`, of one with several configurations
            `SOURCE:CONFIGURATION@SPLIT`; a path that exists is taken as it is.
        limit: Documents to read at most, from the start.

    Returns:
        The documents in the file's order; those without an `id` are named after file and line.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The extra `lm` is not installed.
        ValueError: No documents; bytes that are not UTF-8; lines that are no JSON; fields that
            are missing or empty, with file and line; ids that repeat; an unknown split.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: expected at least 1 document, or None for all.")
    documents: list[Document] = []
    seen: dict[str, str] = {}
    for place, number, record in _read_records(str(source)):
        if limit is not None and len(documents) == limit:
            break
        document = document_from_record(record, id=f"{group_name(source)}-{number}", place=place)
        if document.id in seen:
            raise ValueError(
                f"{place}: the id {document.id!r} is that of {seen[document.id]} too: every "
                "document needs a name of its own."
            )
        seen[document.id] = place
        documents.append(document)
    if not documents:
        raise ValueError(f"{source} holds no documents: expected at least one.")
    return documents


def group_name(source: str | Path) -> str:
    """Return the name of a source's documents: that of its file or data set."""
    name, _, _ = _split_source(str(source))
    if Path(name).is_dir():
        return Path(name).name or "documents"
    is_windows = PureWindowsPath(name).drive and not Path(name).exists()
    return (PureWindowsPath(name) if is_windows else Path(name)).stem or "documents"


def group_names(sources: Sequence[str | Path]) -> list[str]:
    """Return the names of several sources; with folder or split where two are the same.

    Raises:
        ValueError: Two have the same all the same.
    """
    short = [group_name(source) for source in sources]
    found = []
    for name, source in zip(short, map(str, sources), strict=True):
        if short.count(name) > 1:
            path, configuration, split = _split_source(source)
            if not configuration and not split and Path(path).parent.name:
                name = f"{Path(path).parent.name}-{name}"
            name += f":{configuration}" if configuration else ""
            name += f"@{split}" if split else ""
        if name in found:
            raise ValueError(f"two sources are named {name!r}: rename one of them.")
        found.append(name)
    return found


def _split_source(source: str) -> tuple[str, str | None, str | None]:
    """Return path or name, configuration and split of a source.

    A path that exists has neither configuration nor split.
    """
    if Path(source).exists() or Path(source).suffix in _SUFFIXES:
        return source, None, None
    name, at, split = source.rpartition("@")
    if not at:
        name, split = source, ""
    if Path(name).exists():
        return name, None, split or None
    path, _, configuration = name.partition(":")
    return path, configuration or None, split or None


def _read_records(source: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Return an iterator over place, number (from 1) and fields of every record."""
    path = Path(source)
    if path.is_dir():
        return _number_records(source, _read_saved(path, split=None))
    if path.suffix in (".jsonl", ".json"):
        return _read_jsonl(path)
    if path.suffix == ".parquet":
        return _number_records(source, _read_parquet(path))
    if path.suffix in (".txt", ".text", ".md"):
        return _read_plain_text(path)
    name, configuration, split = _split_source(source)
    if Path(name).is_dir():
        return _number_records(source, _read_saved(Path(name), split=split))
    if path.is_file():
        raise ValueError(f"{source}: expected a file .jsonl, .parquet or .txt, or a data set.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:  # no name of the hub
        raise FileNotFoundError(f"no file or folder {name!r}: expected documents there.")
    return _number_records(source, _read_from_hub(name, configuration, split=split))


def _number_records(
    source: str, records: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for number, record in enumerate(records, start=1):
        yield f"{source}, row {number}", number, record


def _read_jsonl(path: Path) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for number, line in enumerate(_read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place} is no JSON ({error.msg}): expected one object a line."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{place} must be a JSON object, got {type(record).__name__}.")
        yield place, number, record


def _read_plain_text(path: Path) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    pieces = (piece.strip() for piece in _read_utf8(path).split(SEPARATOR))
    for number, piece in enumerate((p for p in pieces if p), start=1):
        yield f"{path}, document {number}", number, {"text": piece}


def _read_utf8(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: expected documents there.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. "
            "Convert it, for example with iconv."
        ) from error


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: expected documents there.")
    with needs_extra("lm", "parquet files are read by pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error


def _read_saved(folder: Path, *, split: str | None) -> Iterable[Mapping[str, Any]]:
    datasets = _import_datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the folder {folder} is no data set written by save_to_disk: {error}"
        ) from error
    return _choose_split(found, split=split, name=str(folder))


def _read_from_hub(
    name: str, configuration: str | None, *, split: str | None
) -> Iterable[Mapping[str, Any]]:
    datasets = _import_datasets()
    try:
        found = datasets.load_dataset(name, configuration, trust_remote_code=False)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is no file or folder here, and no data set of the hub could be loaded by "
            f"that name: {error}"
        ) from error
    return _choose_split(found, split=split, name=name)


def _choose_split(found: Any, *, split: str | None, name: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(found, Mapping):
        if split:
            raise ValueError(f"{name} has no splits, got @{split}: leave it out.")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        wanted = f"no split {split!r}" if split else f"{len(found)} splits"
        raise ValueError(f"{name} has {wanted}: choose one of {', '.join(map(str, found))}, as "
                         f"{name}@{next(iter(found))}.")  # fmt: skip
    return found[split]


def _import_datasets() -> Any:
    with needs_extra("lm", "data sets of Hugging Face are read by datasets"):
        import datasets
    return datasets
