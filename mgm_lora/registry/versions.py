"""Registers an adapter: a version with all that speaks for it, under a number and an alias.

A version is found again by the digest of its adapter, so the same adapter has one version. All is checked before the
store is touched; what a failing registration has written is taken back, and the alias moves last. It doesn't decide
which version is good: `challenger` is the one that was registered last.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.artifacts import Manifest, digest_file, new_artifact, write_manifest
from mgm_lora.errors import MgmLoraError, RegistryError
from mgm_lora.registry.packing import pack_model
from mgm_lora.registry.records import PipelineRecord, RegistrationSources, read_pipeline
from mgm_lora.registry.runs import Runs, link_model, quietly, write_runs
from mgm_lora.registry.store import Store, open_store
from mgm_lora.settings import RegistrySettings

logger = logging.getLogger(__name__)

KIND = "RegisteredVersion"
ALIAS = "challenger"
DIGEST_TAG = "adapter_digest"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: int
    uri: str
    """`models:/<name>/<version>`, for `mlflow.pyfunc.load_model` and `mgm-lora ask --adapter`."""
    alias: str
    adapter_digest: str
    run_id: str
    """The adapter's training."""
    parent_run_id: str
    """The comparison that it was part of."""


def register_adapter(
    sources: RegistrationSources, *, registry: RegistrySettings, arms: Sequence[str], destination: Path
) -> RegisteredVersion:
    """Writes the runs, makes a version of the adapter (or finds the one it has), calls it `challenger`.

    Raises:
        ArtifactError: something that belongs to a version is missing or of another adapter.
        ContractError: the adapter's training was not checked to be what was asked.
        MergeProofError: the merged model was not proven to be the adapter.
        RegistryError: the store can't be opened, or a step failed in it; what was written is taken back.
    """
    record = read_pipeline(sources, arms=arms)
    store = open_store(registry)
    try:
        with ExitStack() as undo:
            registered = _register(record, store=store, registry=registry, destination=destination, undo=undo)
            undo.pop_all()
    except MgmLoraError:
        raise
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the adapter '{record.adapter}' could not be registered at '{registry.tracking_uri}':"
            f" {str(error).splitlines()[0]}. What was written was taken back; run `dvc repro register` again"
        ) from error
    logger.info("registered %s@%s = %s", registered.name, registered.alias, registered.uri)
    return registered


def _register(
    record: PipelineRecord, *, store: Store, registry: RegistrySettings, destination: Path, undo: ExitStack
) -> RegisteredVersion:
    runs = write_runs(store, record=record, undo=undo)
    version = _find_version(store, name=registry.model_name, digest=record.adapter_digest)
    if version is None:
        version = _create_version(store, name=registry.model_name, record=record, runs=runs, undo=undo)
    for key, value in _tags(record, runs).items():
        store.client.set_model_version_tag(version.name, version.version, key, value)
    registered = _describe(version, record=record, runs=runs)
    with new_artifact(destination) as folder:
        write_manifest(folder, _manifest(registered, record=record, registry=registry))
        _move_alias(store, version=version, undo=undo)
    return registered


def _find_version(store: Store, *, name: str, digest: str) -> ModelVersion | None:
    found = store.client.search_model_versions(f"name = '{name}' and tag.`{DIGEST_TAG}` = '{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _create_version(store: Store, *, name: str, record: PipelineRecord, runs: Runs, undo: ExitStack) -> ModelVersion:
    client = store.client
    run_id = runs.arms[record.sources.subject]
    logged = mlflow.initialize_logged_model(
        name="adapter", source_run_id=run_id, experiment_id=store.experiment_id, model_type="lora-adapter"
    )
    undo.callback(quietly, client.delete_logged_model, logged.model_id)
    with TemporaryDirectory(prefix="mgm-lora-") as folder:
        model = Model(
            artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id
        )
        pack_model(record, mlflow_model=model, destination=Path(folder) / "model")
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    link_model(store, run_id=run_id, model_id=logged.model_id, arm=record.arms[record.sources.subject])
    _ensure_registered_model(store, name)
    version = client.create_model_version(
        name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        model_id=logged.model_id,
        tags={DIGEST_TAG: record.adapter_digest},
    )
    undo.callback(quietly, client.delete_model_version, name, version.version)
    return version


def _ensure_registered_model(store: Store, name: str) -> None:
    if not store.client.search_registered_models(f"name = '{name}'"):
        store.client.create_registered_model(name, description="LoRA adapters of MGM, made by mgm-lora.")


def _move_alias(store: Store, *, version: ModelVersion, undo: ExitStack) -> None:
    before = store.client.get_registered_model(version.name).aliases.get(ALIAS)
    store.client.set_registered_model_alias(version.name, ALIAS, version.version)
    if before is not None:
        undo.callback(quietly, store.client.set_registered_model_alias, version.name, ALIAS, before)


def _tags(record: PipelineRecord, runs: Runs) -> dict[str, str]:
    manifest = record.adapter_manifest
    points = LoraSettings.model_validate(manifest.settings["arm"]).points()
    ranks = {name: point.rank if point.mode == "lora" else "full" for name, point in points.items()}
    retention = record.comparison.get("retention")
    tags = {
        DIGEST_TAG: record.adapter_digest,
        "base": str(manifest.base.get("model")),
        "base_digest": str(manifest.base["digest"]),
        "data_digest": record.data_digest,
        "points": ",".join(points),
        "rank": ",".join(f"{name}={rank}" for name, rank in ranks.items()),
        "merge_precision": str(record.proof.get("precision")),
        "merge_difference": f"{record.proof['max_logit_difference']:.2e}",
        "merge_bound": f"{record.proof['bound']:.2e}",
        "retention": "unknown" if retention is None else str(retention),
        "parent_run": runs.parent,
    }
    if record.sources.lock.is_file():
        tags["dvc_lock_digest"] = digest_file(record.sources.lock)
    return {**tags, "git_commit": record.commit} if record.commit else tags


def _describe(version: ModelVersion, *, record: PipelineRecord, runs: Runs) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        uri=f"models:/{version.name}/{version.version}",
        alias=ALIAS,
        adapter_digest=record.adapter_digest,
        run_id=str(version.run_id),
        parent_run_id=runs.parent,
    )


def _manifest(registered: RegisteredVersion, *, record: PipelineRecord, registry: RegistrySettings) -> Manifest:
    return Manifest.make(
        KIND,
        settings={"registry": registry},
        parents=record.parents,
        base=record.adapter_manifest.base,
        seed=record.adapter_manifest.seed,
        details={**asdict(registered), "tracking_uri": registry.tracking_uri},
    )
