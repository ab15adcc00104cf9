"""The stage `train`: one arm, from the samples and the base to its artifact."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel
from transformers import TrainerCallback

from mgm_lora.arm_settings import ArmSettings, LoraSettings
from mgm_lora.artifacts import digest_folder, new_file, write_json
from mgm_lora.data.table import read_samples
from mgm_lora.errors import DoesNotFitError, TrainingError
from mgm_lora.lora.injection import TrainableModel, inject_adapter_, thaw_parts_
from mgm_lora.lora.listing import list_trainable
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.plan import GIB, MemoryPlan, allowed_bytes, describe_knobs, write_plan
from mgm_lora.memory.search import smaller_plan
from mgm_lora.model.base import Base, find_base
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.registry.datasets import HELDOUT, TRAIN, dataset_inputs, read_datasets
from mgm_lora.registry.store import open_store
from mgm_lora.run_names import trained_params
from mgm_lora.settings import SeededTraining, Settings
from mgm_lora.stages import paths
from mgm_lora.stages.plan import planned, request_of
from mgm_lora.training.arms import Origin, TrainingData, TrainingFigures, adapter_weights, model_weights, train_arm
from mgm_lora.training.batches import ConversationDataset
from mgm_lora.training.card_lock import hold_cards
from mgm_lora.training.checkpoints import has_checkpoints
from mgm_lora.training.first_step import WorstBatch
from mgm_lora.training.grouping import EpochToOrder, GroupedOrder, PaddingFigures, padding_figures
from mgm_lora.training.launch import is_first_rank, is_launched_rank, part_ranks, run_under_deepspeed
from mgm_lora.training.packing import PackedDataset
from mgm_lora.training.tracking import track_training

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """One training: an arm, and the settings for one seed."""

    arm: str
    of: ArmSettings
    training: SeededTraining

    @property
    def name(self) -> str:
        return paths.run_name(self.arm, self.training.seed)

    def sections(self, settings: Settings) -> dict[str, BaseModel]:
        return {"base": settings.base, "data": settings.data, "arm": self.of, "training": self.training}


def run(settings: Settings, *, arm: str, seed: int | None = None, plan_folder: Path | None = None) -> None:
    """Trains an arm once, as its plan says, and writes artifacts/trained/<arm>-<seed> and metrics/train/<arm>-<seed>.json.

    Under DeepSpeed it starts one process per card, each of which comes here again. Where the largest batch does not fit after all, and the
    settings allow it, it goes on with the next smaller plan.

    Args:
        seed: one of comparison.seeds; none: the first of them.
        plan_folder: none: artifacts/plans/<arm>.
    """
    seed = settings.comparison.seeds[0] if seed is None else seed
    task = _Task(arm=arm, of=settings.arm(arm), training=settings.seeded_training(seed))
    plan = planned(settings, arm=arm, folder=plan_folder)
    if plan.knobs.engine == "torch":
        train = _train
    elif is_launched_rank():
        _train(settings, task=task, plan=plan)  # whoever launched it steps down, for all ranks at once
        return part_ranks()
    else:
        train = _launch
    while True:
        try:
            return train(settings, task=task, plan=plan)
        except DoesNotFitError as error:
            if not settings.memory.step_down:
                raise
            logger.warning("%s", error)
            plan = smaller_plan(plan, request=request_of(settings, arm=arm))
            logger.warning("going on with the next smaller plan: %s", describe_knobs(plan.knobs))


def _launch(settings: Settings, *, task: _Task, plan: MemoryPlan) -> None:
    """Every rank gets the settings and the plan of this process, whatever becomes of params.yaml meanwhile."""
    folder = paths.RANKS / task.name
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / paths.PARAMS.name
    params.write_text(json.dumps(settings.model_dump(mode="json"), indent=2), encoding="utf-8")  # JSON is YAML
    write_plan(plan, destination=folder / "plan", settings={}, parents={})
    arguments = ["train", "--arm", task.arm, "--seed", str(task.training.seed)]
    arguments += ["--params", str(params), "--plan", str(folder / "plan")]
    try:
        run_under_deepspeed(arguments, knobs=plan.knobs, hostfile=task.of.step.hostfile)
    except TrainingError as error:
        if error.exit_code == DoesNotFitError.exit_code:
            raise DoesNotFitError(str(error)) from error
        raise


def _train(settings: Settings, *, task: _Task, plan: MemoryPlan) -> None:
    with hold_cards(task.name, when_taken=settings.guards.busy_card):
        _train_on_held_cards(settings, task=task, plan=plan)


def _train_on_held_cards(settings: Settings, *, task: _Task, plan: MemoryPlan) -> None:
    base = find_base(settings.base)
    processor = base.processor()
    sections = task.sections(settings)
    parents = {"samples": digest_folder(paths.SAMPLES)}
    data = _data(settings, processor=processor, training=task.training)
    trainable = _make_trainable(task, base=base, plan=plan)
    weights = adapter_weights(trainable)
    if task.of.kind == "full":
        weights = model_weights(trainable, processor=processor, dtype=base.dtype)
    origin = Origin(settings=sections, parents=parents, base=base.identity)
    checkpoints = paths.CHECKPOINTS / f"{task.name}-{_run_key(origin, knobs=plan.knobs)}"
    order = _order(task.training, data=data)
    if is_first_rank():
        print(list_trainable(trainable), flush=True)
        _say_padding(_padding(task.training, data=data, knobs=plan.knobs), training=task.training)
    with _tracked(
        settings, task=task, knobs=plan.knobs, sections=sections, key=origin.key, resume=has_checkpoints(checkpoints)
    ) as callbacks:
        figures = train_arm(
            trainable,
            training=task.training,
            knobs=plan.knobs,
            data=data,
            weights=weights,
            origin=origin,
            checkpoints=checkpoints,
            destination=paths.TRAINED / task.name,
            callbacks=[*callbacks, *([EpochToOrder(order)] if order else [])],
            order=order,
            worst=_worst(settings, plan=plan, trainable=trainable),
            max_loss_spike=settings.guards.max_loss_spike,
        )
    if is_first_rank():
        _write_metrics(figures, task=task, plan=plan, data=data)


def _run_key(origin: Origin, *, knobs: StepKnobs) -> str:
    """Names the checkpoints of a run: another way to run its step rounds otherwise, and doesn't go on from them."""
    return hashlib.sha256(f"{origin.key} {json.dumps(asdict(knobs), sort_keys=True)}".encode()).hexdigest()[:16]


@contextmanager
def _tracked(
    settings: Settings, *, task: _Task, knobs: StepKnobs, sections: dict[str, BaseModel], key: str, resume: bool
) -> Iterator[list[TrainerCallback]]:
    if not is_first_rank():
        yield []
        return
    with track_training(
        task.name,
        open_experiment=lambda: open_store(settings.registry).experiment_id,
        params=trained_params(task.arm, arm=task.of, training=task.training, step=asdict(knobs)),
        datasets=dataset_inputs(read_datasets(paths.SAMPLES, names=(TRAIN, HELDOUT)), is_trained=True),
        sections=sections,
        key=key,
        resume=resume,
    ) as tracker:
        yield tracker.callbacks


def _write_metrics(figures: TrainingFigures, *, task: _Task, plan: MemoryPlan, data: TrainingData) -> None:
    metrics = asdict(figures) | {"planned_memory_gib": plan.peak_bytes / GIB}
    padding = _padding(task.training, data=data, knobs=plan.knobs)
    metrics["padded_share"] = padding.padded_share if task.training.group_by_length else padding.padded_share_plain
    with new_file(paths.TRAIN_METRICS / f"{task.name}.json") as path:
        write_json(path, {name: round(value, 6) for name, value in metrics.items() if value is not None})


def _data(settings: Settings, *, processor: MGMProcessor, training: SeededTraining) -> TrainingData:
    def rows(name: str, limit: int | None = None) -> ConversationDataset:
        samples = read_samples(paths.SAMPLES / f"{name}.parquet")[:limit]
        return ConversationDataset(samples, processor=processor, pictures=settings.data.pictures)

    train: ConversationDataset | PackedDataset = rows("train")
    if training.packing:
        train = PackedDataset(rows("train"), max_length=settings.data.max_length, seed=training.seed)
    return TrainingData(processor=processor, train=train, heldout=rows("heldout", training.num_evaluation_samples))


def _order(training: SeededTraining, *, data: TrainingData) -> GroupedOrder | None:
    if not training.group_by_length:
        return None
    return GroupedOrder(data.train.sizes, global_batch_size=training.global_batch_size, seed=training.seed)


def _padding(training: SeededTraining, *, data: TrainingData, knobs: StepKnobs) -> PaddingFigures:
    return padding_figures(
        data.train.sizes,
        micro_batch_size=knobs.micro_batch_size,
        global_batch_size=training.global_batch_size,
        seed=training.seed,
    )


def _say_padding(figures: PaddingFigures, *, training: SeededTraining) -> None:
    chance = f"{figures.padded_share_plain:.1%} in an order by chance"
    if training.group_by_length:
        logger.info("padding: %.1f %% of all positions, grouped by length (%s)", 100 * figures.padded_share, chance)
    else:
        logger.info("padding: %s (%.1f %% with training.group_by_length)", chance, 100 * figures.padded_share)


def _worst(settings: Settings, *, plan: MemoryPlan, trainable: TrainableModel) -> WorstBatch | None:
    if not settings.memory.try_worst_batch:
        return None
    return WorstBatch(
        shape=plan.shape,
        config=trainable.mgm.config,
        planned_bytes=plan.peak_bytes,
        allowed_bytes=allowed_bytes(settings.memory),
        budget_gib=settings.memory.budget_gib,
    )


def _make_trainable(task: _Task, *, base: Base, plan: MemoryPlan) -> TrainableModel:
    arm, seed = task.of, task.training.seed
    needs_originals = isinstance(arm, LoraSettings) and bool(arm.points_with("loftq"))
    model = base.load(quantization=plan.knobs.quantization, keep_originals=needs_originals)
    if isinstance(arm, LoraSettings):
        return inject_adapter_(model, lora=arm, seed=seed)
    return thaw_parts_(model, full=arm, seed=seed)
