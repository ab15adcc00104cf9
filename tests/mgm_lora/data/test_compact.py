from mgm_lora.data.compact import CountColumn, FindingColumn, TextColumn


def test_findings_come_back_however_many_differ() -> None:
    values = [None if number % 5 == 0 else f"finding {number % 300}" for number in range(1000)]
    column = FindingColumn()
    for value in values:
        column.append(value)
    series = column.series()
    assert [value if isinstance(value, str) else None for value in series] == values


def test_mostly_alike_findings_take_a_byte_a_row() -> None:
    column = FindingColumn()
    for _ in range(100_000):
        column.append("no")
    assert column.series().memory_usage(deep=True) < 101_000


def test_counts_come_back() -> None:
    column = CountColumn()
    for value in (3, None, 0):
        column.append(value)
    series = column.series()
    assert series.isna().tolist() == [False, True, False]
    assert series.dropna().tolist() == [3, 0]


def test_text_comes_back_over_chunks() -> None:
    values = [f"id {number}" for number in range(70_000)]
    column = TextColumn()
    for value in values:
        column.append(value)
    assert column.series().tolist() == values


def test_empty_columns_are_columns() -> None:
    assert [len(column().series()) for column in (FindingColumn, CountColumn, TextColumn)] == [0, 0, 0]
