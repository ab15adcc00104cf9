"""Reads conversations in LLaVA's JSON form: one list of samples, each with an id, perhaps a picture, and turns.

Only the form is judged here, and a file of another form stops everything: that is a mistake of the whole, not of a
sample. What a sample says (roles, markers, pictures) is judged by the checks. It opens no picture and knows no tokens.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mgm_lora.data.text_stream import NotJsonError, read_json_list, read_text
from mgm_lora.errors import DataError

PICTURE_MARKER = "<image>"
_SHOWN_PROBLEMS = 20
_FORM = (
    'Asked for LLaVA\'s form: [{"id": "1", "image": "folder/1.png", "conversations": '
    '[{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}, ...]'
)


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    """`human` or `gpt`; whatever the file says, until the checks have passed."""
    text: str


@dataclass(frozen=True)
class Conversation:
    """One sample as the file has it."""

    id: str
    pictures: tuple[str, ...]
    """File names, relative to the pictures folder."""
    turns: tuple[Turn, ...]
    question_type: str
    """Empty where the file names none."""


def read_conversations(path: Path) -> Iterator[Conversation]:
    """All samples of a file, in its order; the file isn't held in memory.

    Raises:
        DataError: it is missing, no JSON, or not in LLaVA's form (all problems are counted, the first ones named); at the end of the file, so
            that what came before is to be thrown away.
    """
    problems = Problems()
    position = -1
    for position, entry in enumerate(_read_list(path)):
        try:
            yield parse_entry(entry)
        except ValidationError as error:
            problems.extend(f"{_place(position, entry)}: {problem}" for problem in _explain(error))
    if position < 0:
        raise DataError(f"'{path}' holds an empty list: no sample is in it. {_FORM}")
    problems.judge(path, form=_FORM)


def parse_entry(entry: object) -> Conversation:
    """One entry of the list; raises pydantic's ValidationError."""
    return _Entry.model_validate(entry).conversation()


def explain_entry(error: ValidationError) -> Iterable[str]:
    """What is wrong with an entry, a line each."""
    return _explain(error)


@dataclass
class Problems:
    """What is wrong with a file: all is counted, the first ones are told."""

    num_problems: int = 0
    shown: list[str] = field(default_factory=list)

    def extend(self, problems: Iterable[str]) -> None:
        """Adds some."""
        for problem in problems:
            self.num_problems += 1
            if len(self.shown) < _SHOWN_PROBLEMS:
                self.shown.append(problem)

    def judge(self, path: Path, *, form: str) -> None:
        """Raises DataError where there are any."""
        if self.num_problems:
            shown = [*self.shown, *(["..."] if self.num_problems > len(self.shown) else [])]
            count = f"{self.num_problems} problem" + ("" if self.num_problems == 1 else "s")
            raise DataError("\n".join([f"'{path}' has {count}:", *(f"  - {line}" for line in shown), form]))


def _to_names(value: object) -> object:
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    return tuple(value) if isinstance(value, list) else value


def _to_unicode(value: str | int) -> str:
    # JSON can escape half a letter ("\ud800"), which no tokenizer and no Parquet takes.
    return str(value).encode().decode()


class _Form(BaseModel):
    # Files carry more keys than are read here (model, source, ...): those are nobody's mistake.
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


_Text = Annotated[str, AfterValidator(_to_unicode)]


class _Turn(_Form):
    role: _Text = Field(alias="from")
    text: _Text = Field(alias="value")


class _Entry(_Form):
    id: Annotated[str | int, AfterValidator(_to_unicode)]
    image: Annotated[tuple[_Text, ...], BeforeValidator(_to_names)] = ()
    conversations: list[_Turn]
    question_type: _Text | None = None

    def conversation(self) -> Conversation:
        return Conversation(
            id=str(self.id),
            pictures=tuple(self.image),
            turns=tuple(Turn(turn.role, turn.text) for turn in self.conversations),
            question_type=self.question_type or "",
        )


def _read_list(path: Path) -> Iterator[object]:
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "no such file"
        raise DataError(f"can't read '{path}': {what}. Is its entry in params.yaml right, was `dvc pull` run?")
    try:
        yield from read_json_list(read_text(path))
    except NotJsonError as error:
        raise DataError(f"'{path}' {error}. {_FORM}") from error


def _place(position: int, entry: object) -> str:
    sample_id = entry.get("id") if isinstance(entry, dict) else None
    return f"sample {position}" if sample_id is None else f"sample {position} (id {_shorten(sample_id)})"


def _explain(error: ValidationError) -> Iterable[str]:
    """One line per mistake; what the branches of a choice (id: text or number) say of one entry is said once."""
    lines = {}
    for problem in error.errors(include_url=False, include_context=False):
        location = [part for part in problem["loc"] if part not in ("str", "int")]
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        if problem["type"] == "missing":
            lines[name] = f"{name} is missing, found the keys {_shorten(list(problem['input']))}"
        elif problem["type"] == "value_error":
            lines[name] = f"{name} is no valid Unicode text"
        else:
            asked = _ASKED[re.sub(r"\[\d+\]", "[]", name)]
            lines[name] = f"{name + ' ' if name else ''}must be {asked}, found {_kind(problem['input'])}"
    return lines.values()


_ASKED = {
    "": "an object with id and conversations",
    "id": "text or a number",
    "image": "a file name, a list of them, or absent",
    "image[]": "a file name",
    "conversations": "a list of turns",
    "conversations[]": "an object with from and value",
    "conversations[].from": "text",
    "conversations[].value": "text",
    "question_type": "text",
}


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return f"{kinds.get(type(value), 'a number')} ({_shorten(value)})"


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
