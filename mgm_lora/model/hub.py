"""Models of the hub: first its cache on this machine, then, where it is not whole there, the hub itself.

What is whole in the cache costs no call. What can't be had ends in one message with the command that gets it. It doesn't
know what a model is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mgm_lora.errors import CheckpointError

_NOT_HAD = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def looks_like_id(name: str) -> bool:
    """Whether a name has the form of a hub id, `owner/name`."""
    owner, slash, model = name.partition("/")
    return bool(owner and slash and model) and "/" not in model and not name.startswith((".", "~"))


def find_in_hub(
    name: str, *, revision: str | None, patterns: Sequence[Sequence[str]], is_whole: Callable[[Path], bool]
) -> Path:
    """The folder of a model: from the cache where it is whole, else fetched, one set of file patterns after the other until it is.

    Raises:
        CheckpointError: it can't be had; the message says how to get it.
    """
    cached = find_in_cache(name, revision=revision, is_whole=is_whole)
    if cached is not None:
        return cached
    try:
        for wanted in patterns:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))
            if is_whole(folder):
                return folder
    except GatedRepoError as error:
        raise CheckpointError(
            f"'{name}' is gated: accept its licence on its page at the hub, run `hf auth login`, then {download_command(name, revision)}"
        ) from error
    except _NOT_HAD as error:
        raise CheckpointError(
            f"no folder '{name}', and no such model in the hub cache or at the hub ({type(error).__name__}):"
            f" run `dvc pull` for a folder, or {download_command(name, revision)} for a hub id"
        ) from error
    raise CheckpointError(f"'{name}' at the hub lacks what is needed, asked for {' or '.join(map(str, patterns))}")


def find_in_cache(name: str, *, revision: str | None, is_whole: Callable[[Path], bool]) -> Path | None:
    """The folder of a model in the cache, if it is whole; asks nobody."""
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except _NOT_HAD:
        return None
    return folder if is_whole(folder) else None


def download_command(name: str, revision: str | None = None) -> str:
    """What to type to get a model, in quotes; other frameworks' copies of the weights are left out."""
    at = f" --revision {revision}" if revision else ""
    return f'`hf download {name}{at} --exclude "*.h5" --exclude "*.msgpack"`'
