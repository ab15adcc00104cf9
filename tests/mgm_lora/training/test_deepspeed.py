"""Under DeepSpeed a training is what it is under plain torch: same losses, same adapter, whatever the ZeRO stage and number of ranks.

One process and two (gloo) walk through the cases of zero_walk.py; the tests read what they found. Bounds on the losses: float32 1e-5 (sums in another
order); bfloat16 2e-3, since DeepSpeed keeps the adapters themselves in bfloat16 in the forward pass.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.cpp_extension import _get_build_directory

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.artifacts import read_manifest
from mgm_lora.errors import SettingsError
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.checkpoint import load_model
from mgm_lora.settings import SeededTraining
from mgm_lora.training.deepspeed import check_deepspeed, deepspeed_config
from mgm_lora.training.launch import run_under_deepspeed

WALK = Path(__file__).with_name("zero_walk.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-3}
ZERO: dict[str, dict[str, Any]] = {
    "0": {"zero_stage": 0},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2},
    "2o": {"zero_stage": 2, "offload_optimizer": True},
    "3": {"zero_stage": 3},
    "3o": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
}
ALONE = [("0", "bfloat16"), ("2", "float32"), ("2o", "bfloat16"), ("3", "float32")]
IN_PAIR = [("0", "float32"), ("2", "bfloat16"), ("2o", "float32"), ("3", "bfloat16")]
INTERRUPTED = [
    ("alone", "0", "bfloat16"),
    ("pair", "2", "bfloat16"),
    ("pair", "2o", "float32"),
    ("pair", "3", "bfloat16"),
]
POINT = PointSettings(mode="lora", rank=4, alpha=8)
LORA = LoraSettings(
    learning_rate=1e-2,
    language_attention=POINT,
    language_mlp=POINT,
    vision_attention=POINT,
    projector=PointSettings(mode="full", learning_rate=1e-3),
    mining=POINT,
)
TRAINING = SeededTraining(
    seed=3,
    num_epochs=1,
    global_batch_size=8,
    group_by_length=False,
    packing=False,
    warmup_share=0.1,
    schedule="cosine",
    weight_decay=0.01,
    max_grad_norm=1.0,
    precision="float32",
    evaluations=2,
    num_evaluation_samples=8,
    checkpoints=1,
)


def case(zero: str, precision: str, *, num_cards: int, arm: str = "lora", interrupt: bool = False) -> dict[str, Any]:
    knobs = StepKnobs(micro_batch_size=2, engine="deepspeed", num_cards=num_cards, **ZERO[zero])
    name = "-".join([zero, precision, arm, *(["interrupted"] if interrupt else [])])
    return {"name": name, "precision": precision, "knobs": asdict(knobs), "arm": arm, "interrupt": interrupt}


def cases_of(found: str, zeros: list[tuple[str, str]], *, num_cards: int) -> list[dict[str, Any]]:
    again = [(zero, precision) for name, zero, precision in INTERRUPTED if name == found]
    cases = [case(zero, precision, num_cards=num_cards) for zero, precision in zeros]
    cases += [case(zero, precision, num_cards=num_cards, interrupt=True) for zero, precision in again]
    return sorted(
        cases, key=lambda case: case["name"]
    )  # after ZeRO-3 a process has DeepSpeed's linear map, which rounds otherwise


def plain(precision: str, **knobs: Any) -> dict[str, Any]:
    name = "-".join(["torch", precision, *(str(value) for value in knobs.values())])
    return {"name": name, "precision": precision, "knobs": asdict(StepKnobs(micro_batch_size=4, **knobs))}


def write_walk(folder: Path, *, base: Path, cases: list[dict[str, Any]]) -> None:
    plan = {
        "base": str(base),
        "training": TRAINING.model_dump(mode="json"),
        "lora": LORA.model_dump(mode="json"),
        "cases": cases,
    }
    (folder / "walk.json").write_text(json.dumps(plan), encoding="utf-8")


def read_found(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found | {"folder": folder}


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process that no launcher started; plain torch first."""
    folder = tmp_path_factory.mktemp("alone")
    cases = cases_of("alone", ALONE, num_cards=1)
    quantized = case("2", "bfloat16", num_cards=1) | {"name": "nf4"}
    quantized["knobs"]["quantization"] = "nf4"
    torchs = [plain("float32"), plain("bfloat16"), plain("bfloat16", quantization="nf4")]
    write_walk(folder, base=tiny_base, cases=[*torchs, *cases, quantized])
    subprocess.run(
        [sys.executable, str(WALK), str(folder)], check=True, timeout=1500, env=ENVIRONMENT
    )  # CPU Adam is built first
    return read_found(folder)


@pytest.fixture(scope="module")
def pair(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks under the launcher."""
    folder = tmp_path_factory.mktemp("pair")
    cases = cases_of("pair", IN_PAIR, num_cards=2)
    full = [case("2o", "bfloat16", num_cards=2, arm="full"), case("3o", "float32", num_cards=2, arm="full")]
    write_walk(folder, base=tiny_base, cases=[*cases, case("1", "bfloat16", num_cards=2), *full])
    knobs = StepKnobs(micro_batch_size=2, engine="deepspeed", num_cards=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        run_under_deepspeed([str(folder)], knobs=knobs, program=[str(WALK)])
    return read_found(folder)


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


EVERY_CASE = [("alone", *c) for c in ALONE] + [("pair", *c) for c in IN_PAIR]


@pytest.mark.parametrize("found, zero, precision", [*EVERY_CASE, ("pair", "1", "bfloat16")], indirect=["found"])
def test_losses_are_those_of_plain_torch(
    found: dict[str, Any], alone: dict[str, Any], zero: str, precision: str
) -> None:
    ours, theirs = found[f"{zero}-{precision}-lora"]["history"], alone[f"torch-{precision}"]["history"]
    assert len(ours["train"]) == 4
    for kind in ("train", "heldout"):
        expected = [entry["loss"] for entry in theirs[kind]]
        assert [entry["loss"] for entry in ours[kind]] == pytest.approx(expected, rel=BOUNDS[precision])
    assert ours["heldout"][-1]["loss"] < ours["heldout"][0]["loss"] - 0.01


@pytest.mark.parametrize("found, zero, precision", EVERY_CASE, indirect=["found"])
def test_adapter_is_gathered_from_the_masters_and_reloads_bit_equal(
    found: dict[str, Any], alone: dict[str, Any], zero: str, precision: str
) -> None:
    name = f"{zero}-{precision}-lora"
    assert found[name]["reloads_bit_equal"]
    assert found[name]["is_wide"]  # not the bfloat16 copies
    ours, theirs = (tensors(folder) for folder in (found["folder"] / name, alone["folder"] / f"torch-{precision}"))
    assert ours.keys() == theirs.keys()
    assert all(value.dtype == torch.float32 for value in ours.values())
    largest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert largest <= (1e-4 if precision == "float32" else 2e-2)  # Adam makes a rate-sized step (1e-2) of any gradient


@pytest.mark.parametrize("found, zero, precision", INTERRUPTED, indirect=["found"])
def test_interrupted_run_ends_in_the_same_bytes(found: dict[str, Any], zero: str, precision: str) -> None:
    name = f"{zero}-{precision}-lora"
    undisturbed, resumed = found["folder"] / name, found["folder"] / f"{name}-interrupted"
    assert found[f"{name}-interrupted"]["history"] == found[name]["history"]
    assert {n: v.tolist() for n, v in tensors(undisturbed).items()} == {
        n: v.tolist() for n, v in tensors(resumed).items()
    }


@pytest.mark.parametrize("name", ["2o-bfloat16-full", "3o-float32-full"])
def test_full_fine_tune_is_gathered_whole_and_leaves_the_frozen_bit_equal(pair: dict[str, Any], name: str) -> None:
    assert pair[name]["reloads_bit_equal"]
    assert read_manifest(pair["folder"] / name, kind="TrainedModel").details["step"]["num_cards"] == 2


def test_adapter_over_4_bit_weights_trains_as_under_plain_torch(alone: dict[str, Any]) -> None:
    ours, theirs = alone["nf4"]["history"]["train"], alone["torch-bfloat16-nf4"]["history"]["train"]
    assert [e["loss"] for e in ours] == pytest.approx([e["loss"] for e in theirs], rel=BOUNDS["bfloat16"])
    assert [e["loss"] for e in theirs] != [e["loss"] for e in alone["torch-bfloat16"]["history"]["train"]]
    manifest = read_manifest(alone["folder"] / "nf4", kind="TrainedAdapter")
    assert manifest.details["quantization"] == "nf4"


def test_configuration_lies_beside_the_run(pair: dict[str, Any]) -> None:
    stored = json.loads((pair["folder"] / "2o-float32-lora" / "deepspeed.json").read_text(encoding="utf-8"))
    knobs = StepKnobs(micro_batch_size=2, engine="deepspeed", num_cards=2, **ZERO["2o"])
    assert stored == deepspeed_config(TRAINING, knobs=knobs)
    assert stored["train_batch_size"] == 8
    assert stored["gradient_accumulation_steps"] == 2
    assert stored["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_other_number_of_processes_than_planned_is_refused(tiny_base: Path) -> None:
    trainable = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=LORA, seed=3)
    knobs = StepKnobs(micro_batch_size=2, engine="deepspeed", num_cards=2)
    with pytest.raises(SettingsError, match="for 2 cards, found 1"):
        check_deepspeed(trainable, training=TRAINING, knobs=knobs)


def test_wide_frozen_weights_are_not_rounded_in_silence(tiny_base: Path) -> None:
    trainable = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=LORA, seed=3)
    knobs = StepKnobs(micro_batch_size=2, engine="deepspeed")
    reduced = SeededTraining.model_validate({**TRAINING.model_dump(), "precision": "bfloat16"})
    with pytest.raises(SettingsError, match=r"set base\.dtype to bfloat16"):
        check_deepspeed(trainable, training=reduced, knobs=knobs)


def test_machine_without_a_compiler_is_told_what_to_install(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))  # nothing built before
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-compiler")
    trainable = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=LORA, seed=3)
    knobs = StepKnobs(micro_batch_size=2, engine="deepspeed", zero_stage=2, offload_optimizer=True)
    with pytest.raises(SettingsError, match=r"could not be built here .* install a C\+\+ compiler and ninja"):
        check_deepspeed(trainable, training=TRAINING, knobs=knobs)


def test_lock_of_a_killed_build_holds_nobody_up(alone: dict[str, Any]) -> None:
    assert "2o-bfloat16-lora" in alone  # so CPU Adam has been built
    lock = Path(_get_build_directory("cpu_adam", verbose=False)) / "lock"  # type: ignore[no-untyped-call]
    lock.touch()
    code = "from mgm_lora.training.deepspeed import _build_cpu_adam; _build_cpu_adam()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=ENVIRONMENT)
    assert not lock.exists()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
