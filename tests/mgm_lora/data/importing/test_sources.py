"""Every form that people bring, imported whole."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgm_lora.data.importing.column_names import GivenColumns
from mgm_lora.errors import DataError

SAVED = Path(__file__).parent / "saved_by_datasets"


def _said(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["conversations"][0]["value"], entry["conversations"][1]["value"]) for entry in entries]


def _llava(project: Any, number: int, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"answer {number}"}]
    return {"id": number, "image": project.picture(f"p/{number}.png"), "conversations": turns} | changes


def test_llava_json(project: Any) -> None:
    entries = [_llava(project, number, question_type="shape") for number in range(3)]
    two = _llava(project, 3, image=["p/0.png", "p/1.png"])
    two["conversations"][0]["value"] = "<image> <image> the same?"
    none = _llava(project, 4, image=None)
    none["conversations"][0]["value"] = "What is a cat?"
    imported = project.run(project.text("a.json", json.dumps([*entries, two, none])))
    written = project.entries()
    assert [entry.get("image") for entry in written] == [
        "own/p/0.png",
        "own/p/1.png",
        "own/p/2.png",
        ["own/p/0.png", "own/p/1.png"],
        None,
    ]
    assert [entry["source_id"] for entry in written] == ["0", "1", "2", "3", "4"]
    assert written[0]["question_type"] == "shape"
    assert written[0]["conversations"] == entries[0]["conversations"]
    assert imported.overview.num_by_pictures == {1: 3, 2: 1, 0: 1}
    assert imported.examined.summary.files["train"].num_rejects == 0


def test_lines_of_json_with_messages(project: Any) -> None:
    turns = [{"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": "a cat"}]
    lines = [json.dumps({"images": [project.picture(f"{n}.png")], "messages": turns}) for n in range(2)]
    project.run(project.text("a.jsonl", "\n\n".join(lines)))
    assert [turn["from"] for turn in project.entries()[0]["conversations"]] == ["human", "gpt"]


def test_lines_of_json_with_columns(project: Any) -> None:
    lines = [json.dumps({"path": project.picture(f"{n}.png"), "prompt": "how many?", "label": n}) for n in range(2)]
    imported = project.run(project.text("a.jsonl", "\n".join(lines)))
    assert _said(project.entries()) == [("<image>\nhow many?", "0"), ("<image>\nhow many?", "1")]
    assert imported.columns.describe() == "pictures: path; question: prompt; answer: label"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(project: Any, delimiter: str) -> None:
    header = delimiter.join(["file_name", "question", "answer", "type"])
    lines = [delimiter.join([project.picture(f"{n}.png"), '"what, or\nwho; is it?"', "größe", "size"]) for n in (1, 2)]
    project.run(project.csv(*lines, header=header))
    assert _said(project.entries()) == [("<image>\nwhat, or\nwho; is it?", "größe")] * 2
    assert project.entries()[0]["question_type"] == "size"


def test_csv_in_another_encoding(project: Any, two_pictures: Any) -> None:
    path = two_pictures()
    path.write_bytes(path.read_text(encoding="utf-8").replace("what?", "wie groß?").encode("cp1252"))
    project.run(path, encoding="cp1252")
    assert _said(project.entries())[0][0] == "<image>\nwie groß?"


def test_columns_that_people_name(project: Any) -> None:
    line = f"{project.picture('a.png')},{project.picture('b.png')},same?,no"
    other = f"{project.picture('c.png')},,same?,no"
    given = GivenColumns(pictures=("left", "right"), question="ask", answer="say")
    project.run(project.csv(line, other, header="left,right,ask,say"), columns=given)
    first, second = project.entries()
    assert first["image"] == ["own/a.png", "own/b.png"]
    assert first["conversations"][0]["value"] == "<image>\n<image>\nsame?"
    assert second["image"] == "own/c.png"


def test_text_alone(project: Any) -> None:
    path = project.csv(*(f"what is {n}?,{n}" for n in range(4)), header="question,answer")
    imported = project.run(path, columns=GivenColumns(text_only=True))
    assert "image" not in project.entries()[0]
    assert imported.examined.summary.num_pictures == 0


def test_parquet_with_names(project: Any) -> None:
    rows = [{"image": project.picture(f"{n}.png"), "question": "what?", "answer": str(n)} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), project.source / "a.parquet")
    project.run(project.source / "a.parquet")
    assert _said(project.entries()) == [("<image>\nwhat?", "0"), ("<image>\nwhat?", "1")]


def test_parquet_that_holds_its_pictures(project: Any) -> None:
    rows = [{"image": {"bytes": project.png(n), "path": f"{n}.png"}, "caption": f"number {n}"} for n in (1, 2, 1)]
    for number, part in enumerate((rows[:2], rows[2:])):
        pq.write_table(pa.Table.from_pylist(part), project.source / f"{number}.parquet")
    project.run(project.source, question="Which?")
    first, second, third = project.entries()
    assert first["image"] == third["image"] != second["image"]
    assert (project.places.pictures / first["image"]).read_bytes() == project.png(1)
    assert first["conversations"][0]["value"] == "<image>\nWhich?"


@pytest.mark.parametrize("name, num_samples", [("one", 4), ("splits", 8)])
def test_a_folder_that_datasets_saved(project: Any, name: str, num_samples: int) -> None:
    """Written by datasets 5.2 (save_to_disk): pictures of 24 x 16 pixels, questions, answers, and a ClassLabel."""
    project.run(SAVED / name)
    entries = project.entries()
    assert len(entries) == num_samples
    assert _said(entries)[:4] == [("<image>\nwhat?", answer) for answer in "abcd"]
    assert len({entry["image"] for entry in entries}) == 4
    assert all((project.places.pictures / entry["image"]).suffix == ".png" for entry in entries)


def test_labels_of_a_saved_folder_are_names_not_numbers(project: Any) -> None:
    project.run(SAVED / "one", columns=GivenColumns(answer="label"))
    assert [answer for _, answer in _said(project.entries())] == ["cat", "dog", "cat", "dog"]


def test_a_picture_folder_with_metadata(project: Any) -> None:
    for number in range(2):
        project.picture(f"sub/{number}.png")
    project.csv("sub/0.png,zero", "sub/1.png,one", header="file_name,text", name="metadata.csv")
    imported = project.run(project.source)
    assert _said(project.entries()) == [
        ("<image>\nDescribe the picture.", "zero"),
        ("<image>\nDescribe the picture.", "one"),
    ]
    assert imported.question == "Describe the picture."


def test_a_picture_folder_with_captions_beside(project: Any) -> None:
    for number in range(2):
        project.picture(f"{number}.png")
        project.text(f"{number}.txt", f"caption {number}\n")
    project.run(project.source)
    assert [answer for _, answer in _said(project.entries())] == ["caption 0", "caption 1"]


def test_a_picture_folder_with_labels(project: Any) -> None:
    for name in ("cat/1.png", "cat/2.PNG", "dog/1.png", ".hidden/3.png"):
        project.picture(name)
    project.run(project.source)
    assert _said(project.entries()) == [("<image>\nWhat is in the picture?", label) for label in ("cat", "cat", "dog")]
    assert [entry["image"] for entry in project.entries()] == ["own/cat/1.png", "own/cat/2.PNG", "own/dog/1.png"]


def _spoil(project: Any) -> dict[str, tuple[Any, str]]:
    return {
        "nothing": (lambda: project.source / "nowhere.csv", "nothing at"),
        "ending": (lambda: project.text("a.docx", "x"), "ends in .docx"),
        "empty folder": (lambda: project.source, "no picture lies in"),
        "no captions": (lambda: project.source if project.picture("a.png") else None, "have no captions"),
        "empty csv": (lambda: project.csv(), "holds no row"),
        "twice": (lambda: project.csv("a,b,c", header="image,x,x"), "different column names"),
        "no list": (lambda: project.text("a.json", '{"a": 1}'), "must hold a list"),
        "lines": (lambda: project.text("a.json", '{"a": 1}\n{"a": 2}'), "Name it .jsonl"),
        "broken json": (lambda: project.text("a.json", '[{"image": "a", "label": "b"},\n{"a" 1}]'), "(line 2)"),
        "parquet": (lambda: project.text("a.parquet", "PAR1"), "can't be read as Parquet"),
        "state": (lambda: project.text("state.json", "{}").parent, "not as datasets.save_to_disk writes it"),
        "quote": (lambda: project.csv("a.png,what?,x", 'b.png,"what?,x'), "is not CSV"),
    }


@pytest.mark.parametrize("kind", list(_spoil(None)))
def test_what_cannot_be_read_is_told_and_changes_nothing(project: Any, kind: str) -> None:
    make, told = _spoil(project)[kind]
    with pytest.raises(DataError) as caught:
        project.run(make())
    assert told in str(caught.value)
    assert project.files() == []


def test_rows_that_cannot_be_read_are_told_with_their_lines_and_counted(project: Any) -> None:
    lines = [f"{project.picture('a.png')},what?,x", *["b.png,what?"] * 30]
    with pytest.raises(DataError) as caught:
        project.run(project.csv(*lines))
    assert "has 30 problems" in str(caught.value)
    assert "line 3: has 2 fields, the first line names 3 columns" in str(caught.value)
    assert "line 23" not in str(caught.value)


@pytest.mark.parametrize(
    "entry, told",
    [
        (5, "sample 1: must be an object"),
        ({"image": 5, "conversations": []}, "sample 1: image must be a file name"),
        ({"conversations": "hi"}, "sample 1: conversations must be a list of turns"),
        ({"conversations": [{"from": "human"}]}, "conversations[0] must be an object with the texts"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "no valid Unicode"),
        ({"image": "https://x.org/a.png", "conversations": []}, "is an address: download"),
        ({"image": "a\0.png", "conversations": []}, "no file can have the name"),
    ],
)
def test_entries_of_another_form_are_told_with_their_place(project: Any, entry: object, told: str) -> None:
    with pytest.raises(DataError) as caught:
        project.run(project.text("a.json", json.dumps([_llava(project, 0), entry])))
    assert told in str(caught.value)
    assert project.files() == []


def test_a_picture_column_that_is_not_there_is_told(project: Any) -> None:
    path = project.csv("x,what?,y", header="url,question,answer")
    with pytest.raises(DataError, match=r"has the columns url, question, answer, but none is usual for pictures"):
        project.run(path)
    with pytest.raises(DataError, match=r"there is no column 'photo'"):
        project.run(path, columns=GivenColumns(pictures=("photo",)))


def test_text_that_is_not_utf8_is_told_with_its_byte(project: Any, two_pictures: Any) -> None:
    path = two_pictures()
    start = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"a.png,gr\xf6\xdfe?,x\n")
    with pytest.raises(DataError, match=rf"is not UTF-8 text \(byte {start + 8}\)"):
        project.run(path)
    assert project.files() == []
