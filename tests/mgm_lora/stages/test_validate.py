"""What a sample costs is what the model will see of it, in high definition and with several pictures."""

from pathlib import Path

import pytest

from mgm_lora.errors import SettingsError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import read_settings
from mgm_lora.stages.validate import measure, run

from ...conftest import ROOT


@pytest.mark.parametrize("grid, with_whole, num_views", [(1, False, 1), (2, False, 4), (2, True, 5), (3, True, 10)])
def test_every_picture_counts_with_all_its_views(grid: int, with_whole: bool, num_views: int, tiny_base: Path) -> None:
    processor = MGMProcessor.from_pretrained(tiny_base)
    changes = {"image_grid": grid, "image_global": with_whole, "image_size_aux": 32 * grid}
    processor.config = MGMConfig.from_dict(processor.config.to_dict() | changes)
    turns = (("human", "<image> or <image>?"), ("gpt", "no"))
    counts = measure(turns, processor=processor, max_length=10_000)
    text = len(processor.encode_sample(turns, num_pictures=2).input_ids) - 2
    assert counts.num_tokens == text + 2 * num_views * 16
    cut = measure(turns, processor=processor, max_length=counts.num_tokens - 1)
    assert cut.num_labels_kept == counts.num_labels_kept - 1 == counts.num_labels - 1


def test_a_limit_above_the_bases_own_is_told(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(ROOT / "params.yaml")
    base = settings.base.model_copy(update={"model": str(tiny_base)})
    data = settings.data.model_copy(update={"max_length": 129})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"data.max_length is 129, but the base cuts every sequence at 128"):
        run(settings.model_copy(update={"base": base, "data": data}))
