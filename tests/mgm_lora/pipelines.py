"""A small finished pipeline with real adapters on the tiny base, as the stages before `register` leave it, without having trained.

The weights are by chance, so the truth is made to fit: most questions have the answer of the adapter of seed `BETTER` for their truth. So that one
scores well, the one of seed `WORSE` and the base badly.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mgm_lora.arm_settings import FullSettings, LoraSettings, PointSettings
from mgm_lora.artifacts import CONTRACT_CHECKS, Manifest, digest_file, digest_folder, write_json, write_manifest
from mgm_lora.data.llava import Turn
from mgm_lora.data.table import Sample, write_samples
from mgm_lora.evaluation.predictions import SET_NAMES, make_predictions
from mgm_lora.evaluation.scoring import read_table, write_scores
from mgm_lora.lora.adapter import load_adapter, save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.base import Base, find_base
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.settings import (
    BaseSettings,
    DataSettings,
    EvaluationSettings,
    RegistrySettings,
    SeededTraining,
    read_settings,
)

from ..small_project import ROOT, write_params

WORSE, BETTER = 5, 6
NUM_HELDOUT, NUM_KNOWN, NUM_TRAIN = 40, 10, 8
REGISTRY = RegistrySettings(tracking_uri="sqlite:///mlflow.db", experiment="mgm-lora", model_name="demo")
DESTINATION = Path("artifacts/registered")
ARMS = ("base", "lora-5", "merged", "full-5")
QUESTIONS = ("What is it?", "Which colour?", "How many?")
EVALUATION = EvaluationSettings(
    batch_size=2, max_new_tokens=5, score_types=(), confidence=0.95, num_resamples=100, seed=1
)
HISTORY = {
    "train": [{"step": s, "samples": 4 * s, "loss": 3.0 / s, "learning_rate": 1e-3 / s} for s in (1, 2, 3)],
    "heldout": [{"step": s, "samples": 4 * s, "loss": 3.5 / s} for s in (2, 3)],
}
COST = {"train_loss": 1.0, "heldout_loss": 1.2, "minutes": 0.5, "peak_memory_gib": 0.1, "trainable_parameters": 77}
SOURCES = RegistrationSources(
    subject="lora-5",
    samples=Path("artifacts/samples"),
    trained=Path("artifacts/trained"),
    merged=Path("artifacts/merged"),
    scores=Path("artifacts/scores"),
    metrics=Path("metrics"),
    report=Path("reports/comparison.html"),
    data_docs=Path("reports/validation"),
    params=Path("params.yaml"),
    pipeline=Path("dvc.yaml"),
    lock=Path("dvc.lock"),
)
_DATA = DataSettings(
    pictures=Path("data/pictures"),
    train=Path("data/instructions/train.json"),
    heldout=Path("data/instructions/heldout.json"),
    known=Path("data/instructions/known.json"),
    max_length=96,
)


def make_pipeline(root: Path, *, base: Path) -> None:
    """Fills a folder with what the stages up to `compare` leave."""
    shutil.copytree(base, root / "data/base")
    _write_pictures(root / _DATA.pictures)
    _write_samples(root)
    write_adapter(root, seed=WORSE)
    for arm in ARMS:
        write_arm_scores(root, arm)
    _write_full(root / SOURCES.trained / "full-5")
    for arm in ("lora-5", "full-5"):
        write_json(root / SOURCES.metrics / "train" / f"{arm}.json", COST)
    lora = {"score": 0.5, "score_low": 0.4, "score_high": 0.6, "retention": 0.97, "forgetting": 0.01}
    figures = {"verdict": "kept", "retention": 0.97, "retention_low": 0.9, "arms": {"lora": lora}}
    write_json(root / SOURCES.metrics / "comparison.json", figures)
    (root / SOURCES.data_docs / "static").mkdir(parents=True)
    (root / SOURCES.data_docs / "index.html").write_text("<h1>checks</h1>")
    (root / SOURCES.report).write_text("<h1>report</h1>")
    write_pipeline_params(root)
    (root / SOURCES.pipeline).write_text("stages: {}\n")
    (root / SOURCES.lock).write_text("schema: '2.0'\n")


def copy_project(pipeline: Path, store: Path, root: Path) -> None:
    """A pipeline of a test's own, with a store of its own."""
    shutil.copytree(pipeline, root)
    shutil.copy(store, root / "mlflow.db")


def write_pipeline_params(root: Path, change: dict[str, Any] | None = None) -> None:
    """The settings file of such a project."""
    write_params(root, {"evaluation": EVALUATION.model_dump(mode="json"), **(change or {})})


def write_adapter(root: Path, *, seed: int) -> None:
    """Writes artifacts/trained/lora-5 with weights that change answers, and artifacts/merged with a proof of it."""
    base = find_base(base_settings(root))
    folder = root / SOURCES.trained / "lora-5"
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(_adapted(base, seed=seed), folder=folder)
    write_json(folder / "history.json", HISTORY)
    sections = {"base": base_settings(Path()), "data": _DATA, "arm": _LORA, "training": training_settings(WORSE)}
    identity = {"model": "data/base", "revision": None, "digest": base.digest}
    details = {"training_key": f"lora-{seed}", "step": _STEP, "contract": {"held": list(CONTRACT_CHECKS)}}
    parents = {"samples": digest_folder(root / SOURCES.samples)}
    manifest = Manifest.make(
        "TrainedAdapter", settings=sections, parents=parents, base=identity, seed=seed, details=details
    )
    write_manifest(folder, manifest)
    write_merged(root, passed=True)


def write_merged(root: Path, *, passed: bool) -> None:
    """Writes artifacts/merged's manifest for the adapter that is there."""
    manifest = Manifest.make(
        "MergedModel",
        settings={},
        parents={"adapter": digest_folder(root / SOURCES.trained / "lora-5")},
        base={"digest": find_base(base_settings(root)).digest},
        details={"proof": {"passed": passed, "precision": "float32", "max_logit_difference": 1e-6, "bound": 1e-4}},
    )
    write_manifest(root / SOURCES.merged, manifest)


def write_arm_scores(root: Path, arm: str) -> None:
    """Asks the base or the adapter that is there, and scores it under an arm's name."""
    base = find_base(base_settings(root))
    folder = root / SOURCES.trained / "lora-5"
    parents = {"samples": digest_folder(root / SOURCES.samples)}
    model: Any = base.load()
    if arm == "lora-5":
        parents["adapter"] = digest_folder(folder)
    if arm != "base":
        model = load_adapter(model, folder=folder, base_digest=base.digest)
    predictions = []
    for name, samples in read_table(root / SOURCES.samples).items():
        answers = _answers(model, base=base, samples=samples, root=root)
        predictions += make_predictions(samples, answers=answers, losses=[(1.0, 2)] * len(samples), set_name=name)
    write_scores(
        predictions,
        arm=arm,
        samples=root / SOURCES.samples,
        evaluation=EVALUATION,
        parents=parents,
        base={"digest": base.digest},
        destination=root / SOURCES.scores / arm,
        metrics=root / SOURCES.metrics / "scores" / f"{arm}.json",
    )


def base_settings(root: Path) -> BaseSettings:
    """Of the base in a project."""
    return BaseSettings(model=str(root / "data/base"), dtype="float32")


def training_settings(seed: int) -> SeededTraining:
    """The project's own section, for one seed."""
    return SeededTraining(**dict(read_settings(ROOT / "params.yaml").training), seed=seed)


_STEP = {"micro_batch_size": 8, "checkpointing": [], "optimizer": "adamw", "quantization": "none"}
_FULL = FullSettings(learning_rate=5e-4, parts=("language_model", "projector"))
_POINT, _OFF = PointSettings(mode="lora", rank=4, alpha=64.0), PointSettings(mode="off")
_LORA = LoraSettings(
    learning_rate=1e-3,
    language_attention=_POINT,
    language_mlp=_POINT,
    vision_attention=_OFF,
    projector=_POINT,
    mining=_OFF,
)


def _adapted(base: Base, *, seed: int) -> Any:
    trainable = inject_adapter_(base.load(), lora=_LORA, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return trainable.model.eval()


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(NUM_HELDOUT + NUM_KNOWN + NUM_TRAIN):
        colour = ((60 + 37 * number) % 256, (91 * number) % 256, (200 + 151 * number) % 256)
        picture = Image.new("RGB", (20 + number % 5, 24), colour)
        picture.paste("white", (2 + number % 7, 3, 9 + number % 7, 12 + number % 11))
        picture.save(folder / f"{number}.png")


def _write_samples(root: Path) -> None:
    """The SampleTable, and the files that it says that it was made of."""
    counts = {"heldout": NUM_HELDOUT, "known": NUM_KNOWN, "train": NUM_TRAIN}
    first = {"heldout": 0, "known": NUM_HELDOUT, "train": NUM_HELDOUT + NUM_KNOWN}
    base = find_base(base_settings(root))
    model = _adapted(base, seed=BETTER)
    folder = root / SOURCES.samples
    folder.mkdir(parents=True)
    (root / "data/instructions").mkdir()
    for name, count in counts.items():
        samples = [_sample(root, name, number, picture=first[name] + number) for number in range(count)]
        answers = _answers(model, base=base, samples=samples, root=root)
        fitting = [_with_answer(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
        fitting[4 * count // 5 :] = samples[4 * count // 5 :]  # of one in five nobody knows the answer
        write_samples(fitting, path=folder / f"{name}.parquet")
        (root / f"data/instructions/{name}.json").write_text(json.dumps([sample.id for sample in fitting]))
    write_samples([], path=folder / "rejects.parquet")
    parents = {name: digest_file(root / f"data/instructions/{name}.json") for name in (*SET_NAMES, "train")}
    details = {"files": {"train": {"num_kept": NUM_TRAIN, "rejects": {"leaked_picture": 0}}}}
    write_manifest(folder, Manifest.make("SampleTable", settings={}, parents=parents, details=details))


def _sample(root: Path, set_name: str, number: int, *, picture: int) -> Sample:
    path = root / _DATA.pictures / f"{picture}.png"
    question = Turn("human", f"<image>\n{QUESTIONS[number % 3]}")
    return Sample(
        id=f"{set_name}-{number:02}",
        pictures=(path.name,),
        turns=(question, Turn("gpt", "nobody knows")),
        question_type="colour" if number % 2 else "what?",
        picture_sha256=(digest_file(path),),
        width=20,
        height=24,
        num_tokens=30,
        num_labels=5,
    )


def _with_answer(sample: Sample, answer: str) -> Sample:
    entries = {name: getattr(sample, name) for name in Sample.__slots__}
    return Sample(**entries | {"turns": (*sample.question, Turn("gpt", answer))})


def _answers(model: Any, *, base: Base, samples: list[Sample], root: Path) -> list[str]:
    questions = [
        Question(turns=tuple(sample.question), pictures=tuple(root / _DATA.pictures / name for name in sample.pictures))
        for sample in samples
    ]
    return answer_questions(model, processor=base.processor(), questions=questions, batch_size=2, max_new_tokens=5)


def _write_full(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "history.json", HISTORY)
    settings = {"base": base_settings(Path()), "data": _DATA, "arm": _FULL, "training": training_settings(WORSE)}
    details = {"training_key": "full-5", "step": _STEP}
    write_manifest(folder, Manifest.make("TrainedModel", settings=settings, parents={}, seed=5, details=details))
