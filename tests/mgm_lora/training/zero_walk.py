"""What every rank of test_deepspeed.py's launches runs: a list of cases, one training after the other, as train_arm does them.

A program of its own, since ranks are processes. It asserts nothing: the first rank writes what it found to found.json.
"""

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TrainerCallback

from mgm_lora.arm_settings import FullSettings, LoraSettings
from mgm_lora.lora.adapter import load_adapter
from mgm_lora.lora.injection import TrainableModel, inject_adapter_, thaw_parts_
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.base import DTYPES
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.quantization import quantize_language_model_
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import Origin, TrainingData, adapter_weights, model_weights, train_arm
from mgm_lora.training.batches import ConversationDataset
from mgm_lora.training.launch import is_first_rank, part_ranks

ORIGIN = Origin(settings={}, parents={}, base={"model": "tiny", "revision": None, "digest": "d" * 64})
WORDS = ("red", "green", "blue", "grey")


@dataclass(frozen=True)
class Row:
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    precision: str
    knobs: dict[str, Any]
    arm: str = "lora"
    interrupt: bool = False


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """Ends every rank's run as a kill would, after the checkpoint of step 2."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plan = json.loads((folder / "walk.json").read_text(encoding="utf-8"))
    plan["pictures"] = folder / f"pictures-{os.environ.get('RANK', 0)}"
    plan["pictures"].mkdir()
    for number, colour in enumerate(WORDS):
        Image.new("RGB", (32, 32), colour).save(plan["pictures"] / f"{number}.png")
    found = {}
    for values in plan["cases"]:
        case = Case(**values)
        found[case.name] = run_case(case, plan=plan, folder=folder)
    if is_first_rank():
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    part_ranks()


def run_case(case: Case, *, plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    if case.interrupt:
        with contextlib.suppress(KeyboardInterrupt):
            train(case, plan=plan, folder=folder, callbacks=[Interrupt()])
    trainable = train(case, plan=plan, folder=folder, callbacks=[])
    artifact = folder / case.name
    if not is_first_rank():
        return {}
    trained = {name: p.detach() for name, p in trainable.model.named_parameters() if p.requires_grad}
    return {
        "history": json.loads((artifact / "history.json").read_text(encoding="utf-8")),
        "reloads_bit_equal": reloads_bit_equal(trainable, case=case, plan=plan, artifact=artifact),
        "is_wide": any(not torch.equal(p, p.bfloat16().float()) for p in trained.values()),
    }


def train(case: Case, *, plan: dict[str, Any], folder: Path, callbacks: list[TrainerCallback]) -> TrainableModel:
    training = SeededTraining.model_validate({**plan["training"], "precision": case.precision})
    processor = MGMProcessor.from_pretrained(plan["base"])
    trainable = make_trainable(case, plan=plan)
    weights = adapter_weights(trainable)
    if case.arm == "full":
        weights = model_weights(trainable, processor=processor, dtype=DTYPES[case.precision])
    train_arm(
        trainable,
        training=training,
        knobs=StepKnobs(**case.knobs),
        data=make_data(plan, processor=processor),
        weights=weights,
        origin=ORIGIN,
        checkpoints=folder / "checkpoints" / case.name,
        destination=folder / case.name,
        callbacks=callbacks,
    )
    return trainable


def make_trainable(case: Case, *, plan: dict[str, Any]) -> TrainableModel:
    model = load_model(plan["base"], dtype=DTYPES[case.precision])
    if case.knobs.get("quantization") == "nf4":
        quantize_language_model_(model)
    if case.arm == "full":
        parts = ("language_model", "projector", "mining")
        return thaw_parts_(model, full=FullSettings(learning_rate=1e-3, parts=parts), seed=3)
    return inject_adapter_(model, lora=LoraSettings.model_validate(plan["lora"]), seed=3)


def make_data(plan: dict[str, Any], *, processor: MGMProcessor) -> TrainingData:
    rows = [
        Row(
            turns=(("human", "<image>\nwhat?"), ("gpt", WORDS[number % 4] * (1 + number % 3))),
            pictures=(f"{number % 4}.png",),
        )
        for number in range(32)
    ]

    def dataset(part: list[Row]) -> ConversationDataset:
        return ConversationDataset(part, processor=processor, pictures=plan["pictures"])

    return TrainingData(processor=processor, train=dataset(rows), heldout=dataset(rows[:8]))


def reloads_bit_equal(trainable: TrainableModel, *, case: Case, plan: dict[str, Any], artifact: Path) -> bool:
    """Whether the artifact, loaded again, is what the ranks' shares were gathered to, and the rest is the base's."""
    dtype, base = DTYPES[case.precision], load_model(plan["base"], dtype=DTYPES[case.precision])
    after = dict(trainable.model.named_parameters())
    if case.arm == "full":
        loaded, start = dict(load_model(artifact, dtype=dtype).named_parameters()), dict(base.named_parameters())
        same = all(torch.equal(p, after[name].to(dtype)) for name, p in loaded.items())
        frozen = [name for name, p in after.items() if not p.requires_grad]
        return same and bool(frozen) and all(torch.equal(loaded[name], start[name]) for name in frozen)
    if case.knobs.get("quantization") == "nf4":
        quantize_language_model_(base)
    adapted = load_adapter(base, folder=artifact, base_digest="d" * 64)
    # LoRA's tensors are as wide as their masters; a point in full is read in the base's own precision, which autocast rounds it to anyway.
    lora = all(p.dtype == torch.float32 for name, p in adapted.named_parameters() if ".lora_" in name)
    same = (torch.equal(p, after[name].to(p.dtype)) for name, p in adapted.named_parameters() if after[name].numel())
    return lora and all(same)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
