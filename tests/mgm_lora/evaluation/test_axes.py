from mgm_lora.evaluation.axes import make_axis


def test_labels_are_round_and_at_most_six() -> None:
    axis = make_axis(0.0, 10.0, is_log=False, tick="{:.0f}".format)
    assert [tick.label for tick in axis.ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [tick.position for tick in axis.ticks] == [0, 20, 40, 60, 80, 100]


def test_a_narrow_range_has_no_label_twice() -> None:
    axis = make_axis(136.8, 139.2, is_log=False, tick="{:.0f} MiB".format)
    assert [tick.label for tick in axis.ticks] == ["137 MiB", "138 MiB", "139 MiB"]


def test_a_range_of_nothing_has_one_label() -> None:
    axis = make_axis(5.0, 5.0, is_log=False, tick="{:.0f}".format)
    assert [tick.label for tick in axis.ticks] == ["5"]


def test_logarithmic_labels_are_one_two_and_five_times_powers_of_ten() -> None:
    axis = make_axis(1.0, 100.0, is_log=True, tick="{:.0f}".format)
    assert [tick.label for tick in axis.ticks] == ["1", "2", "5", "10", "20", "50", "100"]
