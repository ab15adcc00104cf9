"""A small finished pipeline with a real adapter on the tiny base, and an MLflow store to register it in."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.artifacts import CONTRACT_CHECKS, Manifest, digest_folder, write_json, write_manifest
from mgm_lora.lora.adapter import load_adapter, save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.base import find_base
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.store import open_store
from mgm_lora.registry.versions import RegisteredVersion, register_adapter
from mgm_lora.settings import BaseSettings, DataSettings, EvaluationSettings, RegistrySettings

from ...mlflow_store import forget_store

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
    lock=Path("dvc.lock"),
)


@pytest.fixture(autouse=True, scope="session")
def _no_bytecode() -> Iterator[None]:
    """Loading a version writes nothing into its folder, which other tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        patch.setattr(sys, "dont_write_bytecode", True)
        yield


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other: a tiny model then answers a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished_pipeline(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder after the stage `compare`. Read only."""
    root = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(tiny_base, root / "data/base")
    _write_pictures(root / "data/pictures")
    write_adapter(root, seed=5)
    _write_samples(root / SOURCES.samples)
    answers = _answers(root, [root / "data/pictures" / f"{number}.png" for number in range(3)])
    for arm in ARMS:
        _write_scores(root, arm, answers=answers)
    _write_full(root / SOURCES.trained / "full-5")
    (root / SOURCES.metrics / "train").mkdir(parents=True)
    for arm in ("lora-5", "full-5"):
        write_json(root / SOURCES.metrics / "train" / f"{arm}.json", COST)
    figures = {"verdict": "kept", "retention": 0.97, "retention_low": 0.9, "arms": {"lora": {"score": 0.5}}}
    write_json(root / SOURCES.metrics / "comparison.json", figures)
    (root / SOURCES.data_docs / "static").mkdir(parents=True)
    (root / SOURCES.data_docs / "index.html").write_text("<h1>checks</h1>")
    (root / SOURCES.report).write_text("<h1>report</h1>")
    (root / SOURCES.lock).write_text("schema: '2.0'\n")
    return root


@pytest.fixture(scope="session")
def registered_project(
    finished_pipeline: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RegisteredVersion]:
    """A project that was registered once, for tests that only look."""
    root = tmp_path_factory.mktemp("registered") / "project"
    _copy_project(finished_pipeline, empty_store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        registered = register_adapter(SOURCES, registry=REGISTRY, arms=ARMS, destination=DESTINATION)
        forget_store()
    return root, registered


@pytest.fixture
def registered(
    registered_project: tuple[Path, RegisteredVersion], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegisteredVersion]:
    """The version of the registered project, which is the working directory. Read only."""
    root, registered = registered_project
    monkeypatch.chdir(root)
    open_store(REGISTRY)
    yield registered
    forget_store()


@pytest.fixture
def project(
    finished_pipeline: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A finished pipeline of the test's own as the working directory, with a store of its own."""
    root = tmp_path / "project"
    _copy_project(finished_pipeline, empty_store, root)
    monkeypatch.chdir(root)
    yield root
    forget_store()


@pytest.fixture
def registry() -> RegistrySettings:
    """The project's default."""
    return REGISTRY


@pytest.fixture
def register(project: Path) -> Callable[[], RegisteredVersion]:
    """Registers what the project holds now."""
    return lambda: register_adapter(SOURCES, registry=REGISTRY, arms=ARMS, destination=DESTINATION)


@pytest.fixture
def sources() -> RegistrationSources:
    """Where the project has what is registered."""
    return SOURCES


@pytest.fixture
def questions() -> pd.DataFrame:
    """A question about each of the project's pictures."""
    pictures = [f"data/pictures/{number}.png" for number in range(3)]
    return pd.DataFrame({"picture": pictures, "question": QUESTIONS})


@pytest.fixture
def adapter_answers(finished_pipeline: Path) -> list[str]:
    """What base and adapter answered to `questions`, without MLflow."""
    return list(pd.read_parquet(finished_pipeline / SOURCES.scores / "lora-5/predictions.parquet")["prediction"])


@pytest.fixture
def train_again(project: Path) -> Callable[[int], None]:
    """Puts another adapter, of a seed, in the project."""
    return lambda seed: write_adapter(project, seed=seed)


@pytest.fixture
def merge_again(project: Path) -> Callable[..., None]:
    """Writes the proof anew."""
    return lambda *, passed: write_merged(project, passed=passed)


def write_adapter(root: Path, *, seed: int) -> None:
    """Writes artifacts/trained/lora with weights that change answers, and artifacts/merged with a proof of it."""
    base = find_base(_base(root))
    point = PointSettings(mode="lora", rank=4, alpha=64.0)
    off = PointSettings(mode="off")
    lora = LoraSettings(
        learning_rate=1e-3,
        language_attention=point,
        language_mlp=point,
        vision_attention=off,
        projector=point,
        mining=off,
    )
    trainable = inject_adapter_(base.load(), lora=lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    folder = root / SOURCES.trained / "lora-5"
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(trainable.model, folder=folder)
    write_json(folder / "history.json", HISTORY)
    data = DataSettings(pictures=Path("data/pictures"), train=Path("t"), heldout=Path("h"), max_length=96)
    sections = {"base": _base(Path()), "data": data, "arm": lora}
    identity = {"model": "data/base", "revision": None, "digest": base.digest}
    details = {"training_key": f"lora-{seed}", "contract": {"held": list(CONTRACT_CHECKS)}}
    manifest = Manifest.make("TrainedAdapter", settings=sections, parents={}, base=identity, seed=seed, details=details)
    write_manifest(folder, manifest)
    write_merged(root, passed=True)


def write_merged(root: Path, *, passed: bool) -> None:
    """Writes artifacts/merged's manifest for the adapter that is there."""
    manifest = Manifest.make(
        "MergedModel",
        settings={},
        parents={"adapter": digest_folder(root / SOURCES.trained / "lora-5")},
        details={"proof": {"passed": passed, "precision": "float32", "max_logit_difference": 1e-6, "bound": 1e-4}},
    )
    write_manifest(root / SOURCES.merged, manifest)


def _copy_project(pipeline: Path, store: Path, root: Path) -> None:
    shutil.copytree(pipeline, root)
    shutil.copy(store, root / "mlflow.db")


def _base(root: Path) -> BaseSettings:
    return BaseSettings(model=str(root / "data/base"), dtype="float32")


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue")):
        picture = Image.new("RGB", (20 + number, 24), colour)
        picture.paste("white", (2, 3, 9, 12 + number))
        picture.save(folder / f"{number}.png")


def _write_samples(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, num_rows in {"train": 8, "heldout": 3, "rejects": 1}.items():
        pd.DataFrame({"id": [f"{name}-{row}" for row in range(num_rows)]}).to_parquet(folder / f"{name}.parquet")
    write_manifest(folder, Manifest.make("SampleTable", settings={}, parents={}))


def _write_scores(root: Path, arm: str, *, answers: list[str]) -> None:
    folder = root / SOURCES.scores / arm
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"id": ["a", "b", "c"], "set": "heldout", "question": QUESTIONS, "prediction": answers})
    rows["pictures"] = [[f"{number}.png"] for number in range(3)]
    rows.to_parquet(folder / "predictions.parquet")
    write_json(folder / "scores.json", {"arm": arm})
    details = {"arm": arm, "score": 0.5, "score_low": 0.2, "score_what?": 0.5}
    write_manifest(folder, Manifest.make("Scores", settings={"evaluation": EVALUATION}, parents={}, details=details))


def _write_full(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "history.json", HISTORY)
    details = {"training_key": "full-5"}
    settings = {"base": _base(Path())}
    write_manifest(folder, Manifest.make("TrainedModel", settings=settings, parents={}, seed=5, details=details))


def _answers(root: Path, pictures: list[Path]) -> list[str]:
    base = find_base(_base(root))
    model = load_adapter(base.load(), folder=root / SOURCES.trained / "lora-5", base_digest=base.digest)
    questions = [
        Question(turns=(("human", f"<image>\n{text}"),), pictures=(picture,))
        for text, picture in zip(QUESTIONS, pictures, strict=True)
    ]
    processor = MGMProcessor.from_pretrained(base.folder)
    return answer_questions(model, processor=processor, questions=questions, batch_size=2, max_new_tokens=5)
