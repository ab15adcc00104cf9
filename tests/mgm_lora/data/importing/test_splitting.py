import numpy as np
import pytest

from mgm_lora.data.importing.splitting import Splitter
from mgm_lora.errors import DataError


def _split(samples: list[list[int]], *, share: float = 0.1, seed: int = 1) -> list[bool]:
    splitter = Splitter(share=share, seed=seed)
    for keys in samples:
        splitter.show(keys)
    splitter.decide()
    return [splitter.is_heldout(keys) for keys in samples]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_the_share_is_of_samples(share: float) -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 2000)
    samples = [[int(key)] for key in keys for _ in range(1 + int(key) % 5)]
    assert np.mean(_split(samples, share=share)) == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_side_has_a_sample(share: float) -> None:
    assert set(_split([[1], [2], [3]], share=share)) == {True, False}


def test_chains_of_shared_pictures_stay_on_one_side() -> None:
    chain = [[number, number + 1] for number in range(50)]
    others = [[1000 + number] for number in range(100)]
    for seed in range(10):
        assert len(set(_split([*chain, *others], share=0.5, seed=seed)[:50])) == 1


def test_the_order_of_samples_changes_nothing() -> None:
    samples = [[number] for number in range(100)]
    assert _split(samples) == _split(samples[::-1])[::-1]


def test_all_in_one_group_is_an_error() -> None:
    with pytest.raises(DataError, match="none can be held out"):
        _split([[1, 2], [2, 3], [3]])
