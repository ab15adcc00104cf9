from mgm_lora.data.ids import IdColumn, judge_ids
from mgm_lora.data.structure import FINE


def _judge(**files: list[str]) -> dict[str, list[str]]:
    columns = {file: IdColumn() for file in files}
    for file, ids in files.items():
        for sample_id in ids:
            columns[file].append(sample_id)
    return {file: series.tolist() for file, series in judge_ids(columns).items()}


def test_different_ids_are_fine_in_any_number() -> None:
    findings = _judge(train=[str(number) for number in range(70_000)], heldout=["x"])
    assert set(findings["train"]) == set(findings["heldout"]) == {FINE}


def test_an_id_of_several_samples_is_told_with_their_places() -> None:
    findings = _judge(train=["a", "b", "a"], heldout=["a", "c"], known=["a"])
    told = "'a' is the id of 4 samples: train[0], train[2], heldout[0], ..."
    assert findings == {"train": [told, FINE, told], "heldout": [told, FINE], "known": [told]}


def test_a_file_without_samples_has_no_findings() -> None:
    assert _judge(train=[]) == {"train": []}
