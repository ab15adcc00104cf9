"""Registers an adapter: a version with all that speaks for it, under a number and an alias.

A version is found again by the digest of its adapter, so the same adapter has one version, also where two machines register it at once. All is
checked before the store is touched; what a failing registration has written is taken back, and the alias moves last. It doesn't decide which
version is good: `challenger` is the one that was registered last.
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
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mgm_lora.artifacts import Manifest, new_artifact, write_manifest
from mgm_lora.errors import MgmLoraError
from mgm_lora.registry.evidence import FOLDER, write_evidence
from mgm_lora.registry.gates import check_registrable
from mgm_lora.registry.lock import hold_lock
from mgm_lora.registry.model_links import ADAPTER_TYPE, link_models
from mgm_lora.registry.packing import pack_model
from mgm_lora.registry.records import PipelineRecord, RegistrationSources, read_pipeline
from mgm_lora.registry.run_contents import model_params
from mgm_lora.registry.runs import Runs, quietly, write_runs
from mgm_lora.registry.store import Store, open_store, store_error
from mgm_lora.registry.tags import DIGEST_TAG, make_tags
from mgm_lora.settings import RegistrySettings

logger = logging.getLogger(__name__)

KIND = "RegisteredVersion"
ALIAS = "challenger"


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
        ArtifactError: something that belongs to a version is missing.
        RegistryError: the store can't be opened, or a step failed in it; what was written is taken back.
        StoreUnreachableError: the server doesn't answer; the same can be run again.
        and what `check_registrable` raises where the adapter may not be registered.
    """
    record = read_pipeline(sources, arms=arms)
    check_registrable(record)
    store = open_store(registry)
    try:
        with ExitStack() as undo:
            registered = _register(record, store=store, registry=registry, destination=destination, undo=undo)
            undo.pop_all()
    except MgmLoraError:
        raise
    except (MlflowException, OSError) as error:
        doing = f"register the adapter '{record.adapter}' (what was written is taken back)"
        raise store_error(error, doing=doing, registry=registry) from error
    logger.info("registered %s@%s = %s", registered.name, registered.alias, registered.uri)
    return registered


def _register(
    record: PipelineRecord, *, store: Store, registry: RegistrySettings, destination: Path, undo: ExitStack
) -> RegisteredVersion:
    runs = write_runs(store, record=record, undo=undo)
    version = _find_version(store, name=registry.model_name, digest=record.adapter_digest)
    if version is None:
        version = _create_version(store, name=registry.model_name, record=record, runs=runs, undo=undo)
    else:
        _renew_evidence(store, version=version, record=record)
    link_models(store, record=record, runs=runs, registered=_model_id(version), undo=undo)
    for key, value in make_tags(record, parent_run=runs.parent).items():
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
    model_id = _upload_model(store, record=record, run_id=run_id, undo=undo)
    with hold_lock(store, model_name=name) as lock:
        version = _find_version(store, name=name, digest=record.adapter_digest)
        if version is not None:  # another one registered it during the upload
            client.delete_logged_model(model_id)
            return version
        _ensure_registered_model(store, name)
        lock.check()
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={DIGEST_TAG: record.adapter_digest},
        )
    undo.callback(quietly, client.delete_model_version, name, version.version)
    return version


def _upload_model(store: Store, *, record: PipelineRecord, run_id: str, undo: ExitStack) -> str:
    client = store.client
    logged = mlflow.initialize_logged_model(
        name=record.sources.subject,
        source_run_id=run_id,
        experiment_id=store.experiment_id,
        model_type=ADAPTER_TYPE,
        params=model_params(record, record.sources.subject),
    )
    undo.callback(quietly, client.delete_logged_model, logged.model_id)
    with TemporaryDirectory(prefix="mgm-lora-") as folder:
        model = Model(
            artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id
        )
        pack_model(record, mlflow_model=model, destination=Path(folder) / "model")
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _renew_evidence(store: Store, *, version: ModelVersion, record: PipelineRecord) -> None:
    """The same adapter, in another comparison."""
    with TemporaryDirectory(prefix="mgm-lora-") as folder:
        write_evidence(record, folder=Path(folder) / FOLDER)
        location = store.client.get_logged_model(_model_id(version)).artifact_location
        get_artifact_repository(location, tracking_uri=store.tracking_uri).log_artifacts(
            folder
        )  # the client's own remembers old places


def _model_id(version: ModelVersion) -> str:
    return str(version.source).removeprefix("models:/")  # a server doesn't tell version.model_id


def _ensure_registered_model(store: Store, name: str) -> None:
    if not store.client.search_registered_models(f"name = '{name}'"):
        store.client.create_registered_model(name, description="LoRA adapters of MGM, made by mgm-lora.")


def _move_alias(store: Store, *, version: ModelVersion, undo: ExitStack) -> None:
    before = store.client.get_registered_model(version.name).aliases.get(ALIAS)
    store.client.set_registered_model_alias(version.name, ALIAS, version.version)
    if before is not None:
        undo.callback(quietly, store.client.set_registered_model_alias, version.name, ALIAS, before)


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
