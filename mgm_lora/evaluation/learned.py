"""What arms have written into their weights, arranged to be looked at: a row for each kind of map, a column for each layer.

It takes what was measured and measures nothing.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mgm_lora.arm_settings import POINT_NAMES
from mgm_lora.artifacts import write_json
from mgm_lora.errors import ArtifactError

UPDATES_NAME = "updates.json"
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj")
_LAYERED = re.compile(r"(?P<head>.*\.layers)\.(?P<layer>\d+)\.(?P<map>.*)")


class WeightUpdate(BaseModel):
    """Of one linear map at an application point, as `mgm_lora.lora.updates` measures it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    module: str
    point: str
    norm: float
    """Frobenius norm of what was added."""
    relative_norm: float
    """Over that of the base's weight."""
    effective_rank: float

    def heat(self, smallest: float, largest: float) -> float:
        """0 to 100, by the logarithm of the relative norm between the smallest and the largest of all."""
        if largest <= smallest:
            return 100.0
        return 100.0 * math.log(self.relative_norm / smallest) / math.log(largest / smallest)


@dataclass(frozen=True)
class MapRow:
    """One kind of map in every layer, or a map that is in no layer."""

    point: str
    label: str
    """`q_proj`, or `mm_projector.0`."""
    cells: tuple[WeightUpdate | None, ...]
    """By layer; none where the map is not there or was left alone."""


@dataclass(frozen=True)
class UpdateMap:
    """All of an arm's updates."""

    rows: tuple[MapRow, ...]
    num_layers: int
    """Columns: the most that any row has."""

    @property
    def norms(self) -> tuple[float, ...]:
        """All relative norms."""
        return tuple(cell.relative_norm for row in self.rows for cell in row.cells if cell)

    @property
    def largest_rank(self) -> float:
        """The largest effective rank."""
        return max(cell.effective_rank for row in self.rows for cell in row.cells if cell)


def arrange(updates: Sequence[WeightUpdate]) -> UpdateMap | None:
    """Rows in the order of the application points; none where nothing was changed."""
    rows: dict[tuple[str, str], dict[int, WeightUpdate]] = {}
    for update in updates:
        found = _LAYERED.fullmatch(update.module)
        label = found["map"].rpartition(".")[2] if found else update.module
        rows.setdefault((update.point, label), {})[int(found["layer"]) if found else 0] = update
    if not rows:
        return None
    ordered = sorted(rows, key=lambda key: (POINT_NAMES.index(key[0]), _place(key[1])))
    return UpdateMap(
        rows=tuple(MapRow(point, label, _cells(rows[point, label])) for point, label in ordered),
        num_layers=1 + max(layer for cells in rows.values() for layer in cells),
    )


def _place(label: str) -> int:
    return _ORDER.index(label) if label in _ORDER else len(_ORDER)


def write_updates(folder: Path, updates: Iterable[WeightUpdate]) -> None:
    """Writes `updates.json`."""
    write_json(folder / UPDATES_NAME, [update.model_dump() for update in updates])


def read_updates(folder: Path) -> tuple[WeightUpdate, ...]:
    """Reads what `write_updates` wrote; raises ArtifactError where it isn't whole."""
    path = folder / UPDATES_NAME
    try:
        return TypeAdapter(tuple[WeightUpdate, ...]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"'{path}' holds no updates: {error}. Run the stage `evaluate` that makes it") from error


def _cells(by_layer: dict[int, WeightUpdate]) -> tuple[WeightUpdate | None, ...]:
    return tuple(by_layer.get(layer) for layer in range(1 + max(by_layer)))
