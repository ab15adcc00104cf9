"""`mgm-lora benchmark`: a real model asked, from official files to scores and submission; killed, it goes on; mistakes are told before any work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mgm_lora.artifacts import read_manifest
from mgm_lora.errors import ArtifactError, SettingsError
from mgm_lora.evaluation.benchmarks.results import BenchmarkScores
from mgm_lora.model.checkpoint import save_model
from mgm_lora.settings import Settings, read_settings
from mgm_lora.stages import benchmark as stage
from mgm_lora.stages.benchmark import BenchmarkRequest, ModelChoice

from ...conftest import ROOT
from ..model.talkative import make_talkative

NUM_QUESTIONS = 40


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talkative") / "base"
    model, processor = make_talkative(tiny_base, grid=1)
    save_model(model.float(), folder=folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_picture: Callable[..., Path]) -> Path:
    """A project's root with its settings, and a small TextVQA: every picture is asked two questions of different length."""
    entries = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    entries["base"] |= {"model": str(base), "dtype": "float32"}
    entries["evaluation"] |= {"num_resamples": 200}
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(entries, file)
    for number in range(NUM_QUESTIONS // 2):
        make_picture(number, folder=tmp_path / "train_images").rename(tmp_path / f"train_images/p{number}.jpg")
    data = [
        {
            "question_id": number,
            "image_id": f"p{number // 2}",
            "question": "what brand?" if number % 2 else f"what is it that is to be seen here in {number}?",
            "answers": ["word"] * 10,
        }
        for number in range(NUM_QUESTIONS)
    ]
    content = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data}
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(project: Path) -> Settings:
    return read_settings(project / "params.yaml")


def request(limit: int | None = None) -> BenchmarkRequest:
    questions = (Path("TextVQA_0.5.1_val.json"),)
    return BenchmarkRequest("textvqa", questions=questions, pictures=Path("train_images"), limit=limit)


def asked(settings: Settings, *, limit: int | None = None, batch_size: int = 5) -> BenchmarkScores:
    model = ModelChoice(batch_size=batch_size, max_new_tokens=6)
    return stage.ask_model(settings, request=request(limit), model=model)


def told(folder: Path) -> dict[str, str]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["answer"] for row in map(json.loads, lines)}


def journal() -> Path:
    [path] = Path("build/benchmarks/textvqa/base").glob("*.jsonl")
    return path


def run_command(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mgm_lora", "benchmark", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_answers_and_scores_depend_on_no_batch(settings: Settings) -> None:
    scores = asked(settings, batch_size=5)
    answers = told(Path("reports/benchmarks/textvqa/base"))
    assert len(set(answers.values())) > 4
    journal().unlink()
    assert asked(settings, batch_size=1) == scores
    assert told(Path("reports/benchmarks/textvqa/base")) == answers
    submission = json.loads(Path("reports/benchmarks/textvqa/base/submission.json").read_text())
    assert {str(row["question_id"]): row["answer"] for row in submission} == answers
    manifest = read_manifest(Path("reports/benchmarks/textvqa/base"), kind="BenchmarkScores")
    assert manifest.parents.keys() == {"model", "questions/TextVQA_0.5.1_val.json"}


def test_killed_it_goes_on_where_it_was(settings: Settings) -> None:
    asked(settings)
    expected = told(Path("reports/benchmarks/textvqa/base"))
    path = journal()
    path.unlink()
    files = ["--questions", "TextVQA_0.5.1_val.json", "--pictures", "train_images"]
    arguments = ["textvqa", *files, "--batch-size", "1", "--max-new-tokens", "6"]
    process = run_command(*arguments)
    deadline = time.monotonic() + 120
    while process.poll() is None and not (path.is_file() and path.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes()
    assert 3 <= kept.count(b"\n") < NUM_QUESTIONS
    path.write_bytes(kept + b'{"id": "2", "ans')  # as a kill in the middle of a line leaves it
    again = run_command(*arguments)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors[-3000:]
    assert "TextVQA, base: 40 questions" in output
    assert told(Path("reports/benchmarks/textvqa/base")) == expected
    lines = path.read_bytes()
    assert lines.startswith(kept)
    assert lines.count(b"\n") == NUM_QUESTIONS  # nothing was asked twice


def test_answers_of_a_try_are_those_of_the_whole(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(settings, limit=4)
    assert len(told(Path("reports/benchmarks/textvqa/base-first-4"))) == 4
    assert not Path("reports/benchmarks/textvqa/base-first-4/submission.json").exists()
    first = journal().read_bytes()
    asked(settings)
    assert journal().read_bytes().startswith(first)
    monkeypatch.setattr(stage, "ask", None)  # all is answered: no model is asked
    asked(settings)
    assert "VQA accuracy" in capsys.readouterr().out


def test_other_questions_have_another_journal(settings: Settings) -> None:
    asked(settings, limit=2)
    content = Path("TextVQA_0.5.1_val.json").read_text(encoding="utf-8")
    Path("TextVQA_0.5.1_val.json").write_text(content.replace("brand", "kind"), encoding="utf-8")
    asked(settings, limit=2)
    assert len(list(Path("build/benchmarks/textvqa/base").glob("*.jsonl"))) == 2


def test_answers_made_elsewhere_are_scored_without_a_model_or_pictures(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "find_base", None)
    rows = [{"id": str(number), "answer": "Word." if number < 6 else "?"} for number in range(NUM_QUESTIONS)]
    Path("llava.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    plain = BenchmarkRequest("textvqa", questions=(Path("TextVQA_0.5.1_val.json"),))
    scores = stage.score_answers(settings, request=plain, predictions=[Path("llava.jsonl")], name=None)
    assert scores.figures[0].value == 6 / NUM_QUESTIONS
    assert told(Path("reports/benchmarks/textvqa/llava"))["0"] == "Word."


def test_mistakes_are_told_before_any_weight_is_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "load_named", None)

    def ask_for(model: ModelChoice, name: str = "textvqa", **changes: Path | None) -> None:
        questions = (Path("TextVQA_0.5.1_val.json"),)
        given = {"pictures": Path("train_images")} | changes
        stage.ask_model(settings, request=BenchmarkRequest(name, questions=questions, **given), model=model)

    with pytest.raises(SettingsError, match=r"no model 'lorra': there are base, merged, .*lora"):
        ask_for(ModelChoice("lorra"))
    with pytest.raises(SettingsError, match="--seed has no effect on the model 'base'"):
        ask_for(ModelChoice(seed=17))
    with pytest.raises(SettingsError, match="leave --model and --seed away"):
        ask_for(ModelChoice("lora", adapter="artifacts/trained/lora-17"))
    with pytest.raises(ArtifactError, match=r"no model at 'artifacts/trained/lora-17': run `dvc repro`"):
        ask_for(ModelChoice("lora"))
    with pytest.raises(SettingsError, match="TextVQA needs --pictures"):
        ask_for(ModelChoice(), pictures=None)
    with pytest.raises(SettingsError, match="TextVQA doesn't take --annotations"):
        ask_for(ModelChoice(), annotations=Path("x.json"))
    with pytest.raises(SettingsError, match="MME doesn't take --pictures"):
        ask_for(ModelChoice(), "mme")
    with pytest.raises(SettingsError, match="--limit has no effect on --predictions"):
        stage.score_answers(settings, request=request(limit=2), predictions=[Path("x.jsonl")], name=None)


def test_adapters_and_merged_models_are_asked_too(
    project: Path, whole_project: Path, make_picture: Callable[..., Path]
) -> None:
    (project / "params.yaml").unlink()
    for name in ("params.yaml", "data", "artifacts"):
        (project / name).symlink_to(whole_project / name)
    settings = read_settings(Path("params.yaml"))
    questions = [{"question_id": 1, "image": "p0.jpg", "text": "a cat?", "label": "no"}]
    Path("coco_pope_random.json").write_text(json.dumps(questions[0]), encoding="utf-8")
    pope = BenchmarkRequest("pope", questions=(Path("coco_pope_random.json"),), pictures=Path("train_images"))
    adapter = "artifacts/trained/lora-17"
    choices = {
        "lora-17": ModelChoice("lora", max_new_tokens=4),
        "artifacts-trained-lora-17": ModelChoice(adapter=adapter, max_new_tokens=4),
        "merged": ModelChoice("merged", max_new_tokens=4),
    }
    answers = {}
    for name, model in choices.items():
        stage.ask_model(settings, request=pope, model=model)
        answers[name] = told(Path("reports/benchmarks/pope") / name)
    assert len({json.dumps(answer) for answer in answers.values()}) == 1
