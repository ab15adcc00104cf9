"""What a stage made on another machine, the delivery, as a document in the DVC remote beside the outputs themselves.

It lies under the key of the order (`tasks.order`), hence under all that the stage depends on, and is written last: where
it is, everything is. So it doesn't matter who is killed in between, worker, server or flow: a later run finds it and
takes it. DVC's own run cache doesn't do: `dvc push --run-cache` leaves out outputs with `cache: false`, and without them
the stage runs again. It knows no Prefect.
"""

import os
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml, load_yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mgm_lora.errors import RemoteError
from tasks.remote import SharedRemote
from tasks.repository import find_stage, open_repository


class Delivery(BaseModel):
    """What is to be known of a stage that was run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    run: str
    """The id of the flow run that made it."""
    entry: dict[str, Any]
    """The stage's entry in dvc.lock."""
    files: dict[str, str]
    """Its outputs that git tracks (`cache: false`), by their path in the repository."""


def leave_delivery(name: str, *, root: Path, key: str, run: str) -> str:
    """Writes the delivery of a stage that is up to date at `root` and whose outputs are pushed; its address.

    Raises:
        RemoteError: the remote can't be written.
    """
    with open_repository(root, wait=True) as repo:
        stage = find_stage(repo, name)
        delivery = Delivery(
            stage=name,
            run=run,
            entry=load_yaml(str(_lock_file(stage)))["stages"][stage.name],
            files={path: (root / path).read_text(encoding="utf-8") for path in _git_tracked(stage, root=root)},
        )
        remote = SharedRemote.of(repo)
    remote.write(_document(key), delivery.model_dump_json(indent=1))
    return remote.where(_document(key))


def find_delivery(key: str, *, root: Path) -> Delivery | None:
    """What lies in the remote for an order of that key.

    Raises:
        RemoteError: the remote can't be read, or holds something else there.
    """
    with open_repository(root, wait=True) as repo:
        remote = SharedRemote.of(repo)
    text = remote.read(_document(key))
    try:
        return None if text is None else Delivery.model_validate_json(text)
    except ValidationError as error:
        raise RemoteError(f"{remote.where(_document(key))} is no delivery of a stage: {error}. Remove it") from error


def accept_(delivery: Delivery, *, root: Path) -> None:
    """Puts entry and git-tracked outputs into the repository at `root`; `dvc pull` then gets the other outputs. In place.

    Raises:
        RemoteError: it brings other files than the stage makes.
    """
    with open_repository(root, wait=True) as repo:
        stage = find_stage(repo, delivery.stage)
        if set(delivery.files) != set(_git_tracked(stage, root=root)):
            raise RemoteError(
                f"the delivery of '{delivery.stage}' in the remote brings {sorted(delivery.files)}, but git-tracked outputs"
                f" are {_git_tracked(stage, root=root)}: run it with force"
            )
        for path, text in delivery.files.items():
            _write(root / path, text)
        lock = load_yaml(str(_lock_file(stage))) if _lock_file(stage).is_file() else {}
        stages = {**lock.get("stages", {}), stage.name: delivery.entry}
        _write(_lock_file(stage), dumps_yaml({**lock, "schema": "2.0", "stages": stages}))


def _document(key: str) -> str:
    return f"stages/{key[:2]}/{key}.json"


def _lock_file(stage: Any) -> Path:
    return Path(stage.path).parent / "dvc.lock"


def _git_tracked(stage: Any, *, root: Path) -> list[str]:
    return sorted(str(Path(out.fs_path).relative_to(root)) for out in stage.outs if not out.use_cache)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
