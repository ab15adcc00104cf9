"""Each arm leaves a whole artifact that says what made it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from mgm_lora.arm_settings import FullSettings
from mgm_lora.artifacts import digest_folder, read_manifest
from mgm_lora.lora.adapter import load_adapter
from mgm_lora.lora.injection import TrainableModel, thaw_parts_
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.checkpoint import load_model
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import Origin, TrainingData, adapter_weights, model_weights, train_arm

KNOBS = StepKnobs(micro_batch_size=4)
BASE = {"model": "tiny", "revision": None, "digest": "d" * 64}


def origin(training: SeededTraining) -> Origin:
    return Origin(settings={"training": training}, parents={"samples": "s"}, base=BASE)


def test_lora_arm_leaves_an_adapter_that_loads(
    make_trainable: Callable[[], TrainableModel],
    training: SeededTraining,
    data: TrainingData,
    tmp_path: Path,
    tiny_base: Path,
) -> None:
    trainable = make_trainable()
    figures = train_arm(
        trainable,
        training=training,
        knobs=KNOBS,
        data=data,
        weights=adapter_weights(trainable),
        origin=origin(training),
        checkpoints=tmp_path / "checkpoints",
        destination=tmp_path / "lora",
    )
    manifest = read_manifest(tmp_path / "lora", kind="TrainedAdapter")
    history = json.loads((tmp_path / "lora" / "history.json").read_text(encoding="utf-8"))
    loaded = load_adapter(load_model(tiny_base, dtype=torch.float32), folder=tmp_path / "lora", base_digest="d" * 64)
    trained = dict(trainable.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in loaded.named_parameters())
    assert manifest.details["trainable_parameters"] == figures.trainable_parameters == trainable.num_trainable
    assert manifest.details["metrics"] == {"train_loss": figures.train_loss, "heldout_loss": figures.heldout_loss}
    assert history["heldout"][-1]["loss"] == figures.heldout_loss
    assert figures.peak_memory_gib > 0
    assert not (tmp_path / "checkpoints").exists()


def test_full_arm_leaves_a_checkpoint_that_loads(
    training: SeededTraining, data: TrainingData, tmp_path: Path, tiny_base: Path
) -> None:
    model = load_model(tiny_base, dtype=torch.float32)
    full = FullSettings(learning_rate=1e-3, parts=("language_model", "projector", "mining"))
    trainable = thaw_parts_(model, full=full, seed=3)
    train_arm(
        trainable,
        training=training,
        knobs=KNOBS,
        data=data,
        weights=model_weights(trainable, processor=data.processor, dtype=torch.float32),
        origin=origin(training),
        checkpoints=tmp_path / "checkpoints",
        destination=tmp_path / "full",
    )
    loaded = load_model(tmp_path / "full", dtype=torch.float32).state_dict()
    base = load_model(tiny_base, dtype=torch.float32).state_dict()
    assert read_manifest(tmp_path / "full", kind="TrainedModel").details["points"].keys() == {*full.parts}
    assert not torch.equal(loaded["mm_projector.0.weight"], base["mm_projector.0.weight"])
    assert all(torch.equal(loaded[name], base[name]) for name in base if name.startswith("vision_tower"))


def test_same_inputs_give_the_same_adapter_bytes(
    make_trainable: Callable[[], TrainableModel], training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        trainable = make_trainable()
        train_arm(
            trainable,
            training=training,
            knobs=KNOBS,
            data=data,
            weights=adapter_weights(trainable),
            origin=origin(training),
            checkpoints=tmp_path / "checkpoints",
            destination=tmp_path / name,
        )
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")


def test_other_inputs_have_another_key(training: SeededTraining) -> None:
    other = SeededTraining.model_validate({**training.model_dump(), "seed": 4})
    assert origin(training).key == origin(training).key != origin(other).key
