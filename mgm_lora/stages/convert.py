"""`mgm-lora convert`: a checkpoint in the other layout."""

from pathlib import Path

from tqdm import tqdm

from mgm_lora.artifacts import size_on_disk
from mgm_lora.model.base import DTYPES
from mgm_lora.model.checkpoint import open_checkpoint, resolve_checkpoint
from mgm_lora.model.conversion import Layout, TowersWritten, convert_checkpoint
from mgm_lora.model.published_towers import TowerPlaces


def run(
    source: str,
    *,
    destination: Path,
    layout: Layout,
    towers: TowersWritten,
    dtype: str | None,
    places: TowerPlaces,
    revision: str | None,
) -> None:
    """Writes the checkpoint, showing how far it is, and says what was written."""
    checkpoint = open_checkpoint(resolve_checkpoint(source, revision=revision), towers=places)
    read = sum(file.stat().st_size for part in checkpoint.sources for file in part.files)
    with tqdm(total=read, unit="B", unit_scale=True, desc="convert", disable=None) as bar:
        convert_checkpoint(
            checkpoint,
            destination=destination,
            layout=layout,
            towers=towers,
            dtype=None if dtype is None else DTYPES[dtype],
            progress=bar.update,
        )
    print(f"{destination}  {size_on_disk(destination) / 2**20:,.1f} MiB, {layout} layout")
