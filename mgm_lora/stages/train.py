"""The stage `train`: one arm, from the samples and the base to its artifact."""

from dataclasses import asdict

from pydantic import BaseModel

from mgm_lora.artifacts import digest_folder, new_file, write_json
from mgm_lora.data.table import read_samples
from mgm_lora.lora.injection import TrainableModel, inject_adapter_, thaw_parts_
from mgm_lora.model.base import Base, find_base
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.registry.store import open_store
from mgm_lora.settings import Settings
from mgm_lora.stages import paths
from mgm_lora.training.arms import Origin, TrainingData, TrainingFigures, adapter_weights, model_weights, train_arm
from mgm_lora.training.batches import ConversationDataset
from mgm_lora.training.tracking import track_training
from mgm_lora.training.trainer import newest_checkpoint

ARMS = ("lora", "full")


def run(settings: Settings, *, arm: str) -> TrainingFigures:
    """Trains `lora` or `full` and writes artifacts/trained/<arm> and metrics/train-<arm>.json."""
    base = find_base(settings.base)
    processor = MGMProcessor.from_pretrained(base.folder)
    sections = _sections(settings, arm)
    parents = {"samples": digest_folder(paths.SAMPLES)}
    data = _data(settings, processor=processor)
    trainable = _make_trainable(settings, arm, base=base)
    weights = adapter_weights(trainable)
    if arm == "full":
        weights = model_weights(trainable, processor=processor, dtype=base.dtype)
    origin = Origin(settings=sections, parents=parents, base=base.identity)
    checkpoints = paths.CHECKPOINTS / f"{arm}-{origin.key[:16]}"
    resume = newest_checkpoint(checkpoints) is not None
    with track_training(
        arm,
        open_experiment=lambda: open_store(settings.registry).experiment_id,
        sections=sections,
        key=origin.key,
        resume=resume,
    ) as tracker:
        figures = train_arm(
            trainable,
            training=settings.training,
            data=data,
            weights=weights,
            origin=origin,
            checkpoints=checkpoints,
            destination=paths.TRAINED / arm,
            callbacks=tracker.callbacks,
        )
    with new_file(paths.METRICS / f"train-{arm}.json") as path:
        write_json(path, {name: round(value, 6) for name, value in asdict(figures).items()})
    return figures


def _sections(settings: Settings, arm: str) -> dict[str, BaseModel]:
    return {"base": settings.base, "data": settings.data, arm: getattr(settings, arm), "training": settings.training}


def _data(settings: Settings, *, processor: MGMProcessor) -> TrainingData:
    def rows(name: str, limit: int | None = None) -> ConversationDataset:
        samples = read_samples(paths.SAMPLES / f"{name}.parquet")[:limit]
        return ConversationDataset(samples, processor=processor, pictures=settings.data.pictures)

    return TrainingData(
        processor=processor,
        train=rows("train"),
        heldout=rows("heldout", settings.training.num_evaluation_samples),
    )


def _make_trainable(settings: Settings, arm: str, *, base: Base) -> TrainableModel:
    model = base.load()
    if arm == "lora":
        return inject_adapter_(model, lora=settings.lora, seed=settings.training.seed)
    return thaw_parts_(model, full=settings.full, seed=settings.training.seed)
