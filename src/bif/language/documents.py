"""Documents: what a record of a file says, before any tokenizer has seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TEXT_FIELDS = "'messages', 'prompt' and 'completion', or 'text'"


@dataclass(frozen=True)
class Document:
    """A text, or a prompt with its completion, or a conversation.

    Attributes:
        text: The text whose loss counts; the completion where there is a prompt; "" for messages.
        id: A name of its own among the documents.
        prompt: The text before, whose loss does not count.
        messages: A conversation, `{"role": …, "content": …}` each; the assistant's turns count.
        label: The class, a name or a number, for classification.
        source: The origin, for sums over sources.
        place: The place of the record, for errors: "train.jsonl, line 3".
    """

    text: str
    id: str
    prompt: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    label: str | int | None = None
    source: str = ""
    place: str = ""

    @property
    def where(self) -> str:
        """The document in an error's words."""
        return f"document {self.id!r} ({self.place})" if self.place else f"document {self.id!r}"

    @property
    def whole(self) -> str:
        """All of its text, for people; turns of a conversation begin with their role."""
        turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)
        return turns or self.prompt + self.text


Documents = Sequence[Document | str | Mapping[str, Any]]
"""Documents, or their sources: texts, or records with the fields of a file's."""


def as_documents(given: Documents, name: str) -> list[Document]:
    """Return documents, made of texts and records where need be.

    What has no id is named after its place, `NAME-1`, `NAME-2`, ….

    Raises:
        TypeError: Something else, with what to pass.
        ValueError: As `document_from_record`.
    """
    if isinstance(given, str | bytes | Mapping | Path) or not hasattr(given, "__iter__"):
        raise TypeError(
            f"{name} is a {type(given).__name__}: expected a list of documents, texts or records. "
            "Files are read by bif.language.read_documents(path)."
        )
    found = []
    for number, document in enumerate(given, start=1):
        if isinstance(document, Document):
            found.append(document)
            continue
        record = {"text": document} if isinstance(document, str) else document
        place = f"{name}, document {number}"
        if not isinstance(record, Mapping):
            raise TypeError(
                f"{place} is a {type(document).__name__}: expected a bif.language.Document, a text "
                "or a record such as {'prompt': …, 'completion': …}. Token ids of your own are "
                "bif.language.Sequences in a bif.Problem."
            )
        found.append(document_from_record(record, id=f"{name}-{number}", place=place))
    return found


def document_from_record(record: Mapping[str, Any], *, id: str, place: str) -> Document:
    """Return a document from the fields of a record.

    `messages` go before `prompt` and `completion`, these before `text`; `id`, `source` and `label`
    are optional; other fields are left alone.

    Args:
        record: Fields by name; None counts as missing.
        id: The document's name where the record has none.
        place: Where the record is, for errors.

    Raises:
        ValueError: Fields that are missing, empty or of another type, with `place`.
    """
    given = {name: value for name, value in record.items() if value is not None}
    about = {
        "id": str(given.get("id", id)),
        "label": _label(given.get("label"), place),
        "source": str(given.get("source", "")),
        "place": place,
    }
    if "messages" in given:
        return Document("", messages=_messages(given["messages"], place), **about)
    if "prompt" in given or "completion" in given:
        return Document(
            _text(given, "completion", place),
            prompt=_text(given, "prompt", place, may_be_empty=True),
            **about,
        )
    return Document(_text(given, "text", place), **about)


def _text(given: Mapping[str, Any], name: str, place: str, *, may_be_empty: bool = False) -> str:
    if name not in given:
        found = ", ".join(map(repr, given)) or "none"
        raise ValueError(
            f"{place}: the field {name!r} is missing: expected {_TEXT_FIELDS}; "
            f"the fields are {found}."
        )
    value = given[name]
    if not isinstance(value, str):
        raise ValueError(f"{place}: the field {name!r} must be a text, got {type(value).__name__}.")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{place}: the field {name!r} is empty: fill it, or leave the record out.")
    return value


def _messages(value: Any, place: str) -> tuple[Mapping[str, str], ...]:
    turns = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else []
    whole = turns and all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not whole:
        raise ValueError(
            f"{place}: the field 'messages' must be a list of {{'role': text, 'content': text}}, "
            f"got {str(value)[:80]!r}."
        )
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
        raise ValueError(
            f"{place}: the assistant says nothing in the field 'messages', and its turns are what "
            "counts."
        )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _label(value: Any, place: str) -> str | int | None:
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{place}: the field 'label' must be a class's name or number, got {value!r}.")
