"""Updates are arranged by point, map and layer."""

from pathlib import Path

import pytest

from mgm_lora.errors import ArtifactError
from mgm_lora.evaluation.learned import WeightUpdate, arrange, read_updates, write_updates


def _update(module: str, point: str, relative_norm: float = 0.1) -> WeightUpdate:
    return WeightUpdate(module=module, point=point, norm=1.0, relative_norm=relative_norm, effective_rank=3.0)


UPDATES = [
    _update("mm_projector.0", "projector"),
    _update("vision_tower.encoder.layers.0.self_attn.k_proj", "vision_attention"),
    _update("vision_tower.encoder.layers.2.self_attn.q_proj", "vision_attention", relative_norm=0.001),
    _update("language_model.model.layers.1.mlp.up_proj", "language_mlp", relative_norm=0.01),
]


def test_rows_are_maps_and_columns_are_layers() -> None:
    found = arrange(UPDATES)
    assert found is not None
    assert [(row.point, row.label) for row in found.rows] == [
        ("language_mlp", "up_proj"),
        ("vision_attention", "q_proj"),
        ("vision_attention", "k_proj"),
        ("projector", "mm_projector.0"),
    ]
    assert found.num_layers == 3
    assert [cell is not None for cell in found.rows[1].cells] == [False, False, True]
    assert [cell is not None for cell in found.rows[2].cells] == [True]


def test_heat_is_logarithmic_between_the_smallest_and_the_largest() -> None:
    found = arrange(UPDATES)
    assert found is not None
    smallest, largest = min(found.norms), max(found.norms)
    assert [update.heat(smallest, largest) for update in UPDATES] == pytest.approx([100, 100, 0, 50])
    assert UPDATES[0].heat(0.1, 0.1) == 100.0


def test_nothing_learned_is_nothing_to_show() -> None:
    assert arrange([]) is None


def test_updates_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_updates(tmp_path, UPDATES)
    assert read_updates(tmp_path) == tuple(UPDATES)
    (tmp_path / "updates.json").write_text('[{"module": 3}]', encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds no updates"):
        read_updates(tmp_path)
