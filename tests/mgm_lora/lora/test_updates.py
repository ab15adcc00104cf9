"""What a training wrote into the weights, measured alike for an adapter and for whole weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.artifacts import Manifest, write_manifest
from mgm_lora.lora.adapter import save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.lora.points import point_of
from mgm_lora.lora.updates import effective_rank, measure_updates
from mgm_lora.model.base import Base, find_base
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.settings import BaseSettings

DOWN = "language_model.model.layers.0.mlp.down_proj"


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return find_base(BaseSettings(model=str(tiny_base), dtype="float32"))


def test_effective_rank_counts_equal_directions_and_leans_to_the_largest() -> None:
    torch.manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64))[0] for _ in range(2))
    assert effective_rank(left @ right.T) == pytest.approx(6.0, rel=1e-6)
    assert effective_rank(left @ torch.diag(torch.tensor([1.0] + [1e-4] * 5).double()) @ right.T) < 1.01
    assert effective_rank(torch.zeros(5, 7, dtype=torch.float64)) == 0.0
    assert effective_rank((left @ right.T)[:, :9]) == pytest.approx(effective_rank((left @ right.T)[:, :9].T))


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_of_an_adapter_it_is_what_the_layers_compute_with(
    base: Base, all_points: LoraSettings, tmp_path: Path, method: str
) -> None:
    points = {name: point.model_copy(update={"method": method}) for name, point in all_points.points().items()}
    points["projector"] = all_points.points()["projector"]  # in full
    trainable = inject_adapter_(base.load(), lora=LoraSettings(learning_rate=1e-3, **points), seed=1)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    save_adapter(trainable.model, folder=tmp_path)
    write_manifest(tmp_path, Manifest.make("TrainedAdapter", settings={}, parents={}, base={"digest": base.digest}))

    updates = {update.module: update for update in measure_updates(tmp_path, base=base)}

    plain = dict(base.load().named_modules())
    maps = {name for name, module in plain.items() if isinstance(module, nn.Linear) and point_of(name)}
    unused = {name for name in maps if name.startswith("vision_tower.encoder.layers.") and name not in updates}
    assert updates.keys() == maps - unused
    assert all(
        "layers.1." in name or "layers.2." in name or "layers.3." in name for name in unused
    )  # behind select_layer
    layer = dict(trainable.model.named_modules())[f"base_model.model.{DOWN}"]
    rows = torch.eye(layer.in_features)
    with torch.no_grad():
        added = (layer.eval()(rows) - plain[DOWN](rows)).T
    assert updates[DOWN].norm == pytest.approx(float(added.norm()), rel=1e-3)
    assert updates[DOWN].relative_norm == pytest.approx(
        float(added.norm() / plain[DOWN].weight.detach().norm()), rel=1e-3
    )
    assert updates[DOWN].point == "language_mlp"
    if method == "lora":
        assert 1.0 <= updates[DOWN].effective_rank <= all_points.language_mlp.rank
    assert updates["mm_projector.2"].norm > 0.0


def test_of_a_whole_model_only_what_changed_is_told(base: Base, tiny_base: Path, tmp_path: Path) -> None:
    model = load_model(tiny_base, dtype=torch.float32)
    with torch.no_grad():
        model.get_submodule(DOWN).weight.add_(0.5 * torch.eye(*model.get_submodule(DOWN).weight.shape))
    save_model(model, folder=tmp_path / "model")
    write_manifest(
        tmp_path / "model", Manifest.make("TrainedModel", settings={}, parents={}, base={"digest": base.digest})
    )
    [update] = measure_updates(tmp_path / "model", base=base)
    smaller = min(model.get_submodule(DOWN).weight.shape)
    assert update.module == DOWN
    assert update.norm == pytest.approx(0.5 * smaller**0.5, rel=1e-5)
    assert update.effective_rank == pytest.approx(smaller, rel=1e-4)
