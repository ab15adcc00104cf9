from pathlib import Path

from recipes.conversations import Sample, write_samples
from recipes.lessons import read_lessons


def test_lessons_name_files_below_their_folder(tmp_path: Path) -> None:
    write_samples(tmp_path / "train.json", [Sample("e-1", "noto-1f534.png", "emoji_name", "what is this?", "circle")])
    (lesson,) = read_lessons(tmp_path)
    assert lesson.picture == tmp_path / "pictures" / "noto-1f534.png"
    assert (lesson.question, lesson.answer) == ("what is this?", "circle")
