import json
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.data.llava import Conversation, Turn, read_conversations
from mgm_lora.errors import DataError

GOOD: dict[str, Any] = {
    "id": "7",
    "image": "a/b.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
}


def _spoken(value: object) -> dict[str, Any]:
    return GOOD | {"conversations": [{"from": "gpt", "value": value}]}


def _write(folder: Path, entries: object) -> Path:
    path = folder / "samples.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def _read(path: Path) -> list[Conversation]:
    return list(read_conversations(path))


def test_reads_a_sample(tmp_path: Path) -> None:
    (read,) = _read(_write(tmp_path, [GOOD | {"question_type": "shape", "model": "not read here"}]))
    assert read.id == "7"
    assert read.pictures == ("a/b.png",)
    assert read.turns == (Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat."))
    assert read.question_type == "shape"


@pytest.mark.parametrize(
    "image, pictures",
    [("a.png", ("a.png",)), (["a.png"], ("a.png",)), (["a.png", "b.png"], ("a.png", "b.png")), (None, ()), ([], ())],
)
def test_image_is_a_name_a_list_or_nothing(tmp_path: Path, image: object, pictures: tuple[str, ...]) -> None:
    assert _read(_write(tmp_path, [GOOD | {"image": image}]))[0].pictures == pictures


def test_image_can_be_absent(tmp_path: Path) -> None:
    without = {key: value for key, value in GOOD.items() if key != "image"}
    (read,) = _read(_write(tmp_path, [without]))
    assert read.pictures == ()
    assert read.question_type == ""


def test_id_can_be_a_number(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, [GOOD | {"id": 12}]))[0].id == "12"


def test_order_is_the_files(tmp_path: Path) -> None:
    read = _read(_write(tmp_path, [GOOD | {"id": number} for number in (3, 1, 2)]))
    assert [one.id for one in read] == ["3", "1", "2"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert len(_read(path)) == 1


@pytest.mark.parametrize(
    "entry, told",
    [
        (5, "must be an object with id and conversations, found a number (5)"),
        ({"id": "x"}, 'sample 1 (id "x"): conversations is missing, found the keys ["id"]'),
        ({key: GOOD[key] for key in ("image", "conversations")}, "sample 1: id is missing"),
        (GOOD | {"id": True}, "id must be text or a number, found true or false (true)"),
        (GOOD | {"id": 1.5}, "id must be text or a number, found a number (1.5)"),
        (GOOD | {"image": 3}, "image must be a file name, a list of them, or absent, found a number (3)"),
        (GOOD | {"image": ["a.png", None]}, "image[1] must be a file name, found null (null)"),
        (GOOD | {"conversations": "hello"}, 'conversations must be a list of turns, found text ("hello")'),
        (GOOD | {"conversations": ["hello"]}, "conversations[0] must be an object with from and value"),
        (
            GOOD | {"conversations": [{"role": "user", "content": "hi"}]},
            'conversations[0].from is missing, found the keys ["role", "content"]',
        ),
        (
            GOOD | {"conversations": [{"from": "gpt", "value": 5}]},
            "conversations[0].value must be text, found a number (5)",
        ),
        (
            GOOD | {"conversations": [{"from": "gpt", "value": "\ud800"}]},
            "conversations[0].value is no valid Unicode text",
        ),
        (GOOD | {"question_type": ["shape"]}, "question_type must be text, found a list"),
    ],
)
def test_an_entry_of_another_form_is_named_with_its_place(tmp_path: Path, entry: object, told: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(_write(tmp_path, [GOOD, entry]))
    message = str(caught.value)
    assert told in message
    assert "sample 1" in message
    assert "sample 0" not in message
    assert '"conversations": [{"from": "human"' in message  # what was asked for


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _read(_write(tmp_path, list(range(50))))
    message = str(caught.value)
    assert "has 50 problems" in message
    assert "sample 19:" in message
    assert "sample 20:" not in message


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is not JSON"),
        (b'[{"id": 1}', "is not JSON"),
        (b'{"id": 1}\n{"id": 2}\n', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[" + b"1" * 5000 + b"]", "is not JSON"),
        (b'["\xe9"]', "is not UTF-8 text (byte 2)"),
        (b'{"id": 1}', "must hold a list of samples, found an object"),
        (b"[]", "holds an empty list"),
    ],
)
def test_a_file_that_is_no_list_of_samples(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "samples.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        _read(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_missing_file(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "samples.json")
    with pytest.raises(DataError, match=r"can't read .*samples\.json.*dvc pull"):
        _read(tmp_path / "samples.json")
