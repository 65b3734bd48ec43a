"""Columns of tables: what each is, and that nothing is read two ways or lost without a note."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal

import numpy as np
import pytest
import torch

from infotorch.estimators import Column, encode_column, encode_table

rng = np.random.default_rng(0)


def kind_of(cells: object, **options) -> str:
    return encode_column("x", cells, **options).kind


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1.5", "2", "-3e-2"], "continuous"),
        (["1", "2.0", "3e2"], "integer"),
        (["+1", " 2 ", "3"], "integer"),
        (["0", "1", "1"], "boolean"),
        (["1", "2", "1"], "integer"),
        (["yes", "No", "NO"], "boolean"),
        (["True", "false", ""], "boolean"),
        (["T", "F"], "boolean"),
        (["m", "f"], "categorical"),
        (["yes", "no", "maybe"], "categorical"),
        (["2024-01-31", "2024/02/01"], "datetime"),
        (["2024-01-31T10:20:30.5Z", "2024-02-01 10:20+02:00"], "datetime"),
        (["31.12.2023", "01.01.2024"], "datetime"),
        (["3 Feb 2024", "14 September 2023"], "datetime"),
        (["Feb 3, 2024", "Dec 24, 2023"], "datetime"),
        (["08:30", "23:59:59"], "datetime"),
        (["8:30 am", "12:15 PM"], "datetime"),
        (["2024-13-45", "2024-02-30"], "categorical"),
        (["007", "123"], "categorical"),
        (["1_000", "0x10"], "categorical"),
        (["nan", "", "NULL"], "categorical"),
        ([1.5, None, float("nan")], "continuous"),
        ([1, None, 3], "integer"),
        ([True, False, None], "boolean"),
        ([Decimal("1.5"), Decimal("2")], "continuous"),
        ([date(2024, 1, 31), None], "datetime"),
        ([datetime(2024, 1, 31, 10, tzinfo=timezone.utc), None], "datetime"),  # noqa: UP017
        ([b"a", b"b"], "categorical"),
        (np.array([1, 2], np.int8), "integer"),
        (np.array([0.5, 2], np.float16), "continuous"),
        (np.array([True, False]), "boolean"),
        (np.array(["2024-01-01", "NaT"], "datetime64[ns]"), "datetime"),
        (np.array([1500, "NaT"], "timedelta64[ms]"), "continuous"),
        (torch.tensor([0.5, 1], dtype=torch.bfloat16), "continuous"),
    ],
)
def test_kind_is_detected(cells: object, kind: str) -> None:
    assert kind_of(cells) == kind


@pytest.mark.parametrize(
    ("cells", "numbers", "options"),
    [
        (["1,5", "2,25"], [1.5, 2.25], {}),
        (["1.234,5", "7,0"], [1234.5, 7.0], {}),
        (["1,234.5", "7"], [1234.5, 7.0], {}),
        (["1,234,567", "7"], [1234567.0, 7.0], {}),
        (["1.234.567", "7"], [1234567.0, 7.0], {}),
        (["1 234", "7"], [1234.0, 7.0], {}),
        (["1'234.5", "7"], [1234.5, 7.0], {}),
        (["1,234", "7"], [1234.0, 7.0], {"decimal": "."}),
        (["1,234", "7"], [1.234, 7.0], {"decimal": ","}),
        (["1.234", "7"], [1.234, 7.0], {}),
        (["1.234", "7"], [1234.0, 7.0], {"decimal": ","}),
        (["0.123", "7"], [0.123, 7.0], {"decimal": ","}),  # no thousands begin with 0
        (["12 %", "7 %"], [12.0, 7.0], {}),
        (["$1,234.50", "$7"], [1234.5, 7.0], {}),
        (["3", "?", "4"], [3.0, None, 4.0], {}),
        (["3", "inf", "4"], [3.0, None, 4.0], {}),
    ],
)
def test_numbers_are_read_right_or_with_a_note(cells: list[str], numbers: list, options: dict) -> None:
    column = encode_column("x", cells, **options)
    assert column.numeric
    found = [None if np.isnan(v) else v for v in column.values.tolist()]
    assert found == numbers
    plain = all(c.replace(".", "", 1).isdigit() for c in cells) and options != {"decimal": ","}
    assert plain or column.notes or options == {"decimal": ","}


def test_ambiguous_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'1,234' may be 1234 or 1\.234; say decimal"):
        encode_column("x", ["7", "1,234"])


def test_other_columns_settle_the_decimal_mark() -> None:
    _, count = encode_table({"price": ["1,5", "2,5"], "count": ["1,234", "7"]})
    assert count.values.tolist() == [1.234, 7.0]
    with pytest.raises(ValueError, match="column 'count'"):  # two columns that disagree settle nothing
        encode_table({"price": ["1,5", "2,5"], "weight": ["1.5", "2.5"], "count": ["1,234", "7"]})


def test_ambiguous_dates_are_refused_and_settled() -> None:
    cells = ["03/04/2020", "05/06/2020"]
    with pytest.raises(ValueError, match="say dates='dmy' or dates='mdy'"):
        encode_column("x", cells)
    day_first, month_first = (encode_column("x", cells, dates=order).values[0] for order in ("dmy", "mdy"))
    assert day_first == datetime(2020, 4, 3, tzinfo=timezone.utc).timestamp()  # noqa: UP017
    assert month_first == datetime(2020, 3, 4, tzinfo=timezone.utc).timestamp()  # noqa: UP017
    proven = encode_column("x", [*cells, "12/25/2020"])
    assert proven.values[0] == month_first


def test_dates_are_seconds() -> None:
    text = encode_column("x", ["1970-01-02", "1970-01-01 00:00:01", ""])
    assert text.values[:2].tolist() == [86400.0, 1.0]
    assert text.missing.tolist() == [False, False, True]
    array = encode_column("x", np.array(["1970-01-02", "NaT"], "datetime64[D]"))
    assert array.values[0] == 86400.0
    assert array.n_missing == 1
    zoned = encode_column("x", ["1970-01-01 02:00+02:00", "1970-01-01T01:00Z"])
    assert zoned.values.tolist() == [0.0, 3600.0]


def test_categories_are_codes_in_alphabetical_order() -> None:
    column = encode_column("x", ["pear", "apple", "NA", "pear"])
    assert column.levels == ("apple", "pear")
    assert column.values.tolist() == [1, 0, -1, 1]
    assert column.codes is column.values
    assert column.counts.tolist() == [1, 2]


def test_missing_words() -> None:
    assert encode_column("x", ["none", "some", "none"]).n_missing == 0  # a category like any other
    column = encode_column("x", ["none", "1", "2"])  # among numbers, a placeholder
    assert column.n_missing == 1
    assert "1 cells read as missing: 'none'" in column.notes
    nearly = encode_column("x", [*map(str, range(30)), "abc"])
    assert nearly.kind == "categorical"
    assert any("'abc' is not" in note for note in nearly.notes)


def test_types_are_the_users_choice() -> None:
    assert kind_of(["1", "2"], kind="categorical") == "categorical"
    assert kind_of(["1", "2"], kind="continuous") == "continuous"
    assert kind_of([1, 2, 1], kind="boolean") == "boolean"
    assert kind_of(["a", "b"], kind="boolean") == "boolean"
    column = encode_column("x", ["1.5", "abc", "2"], kind="continuous")
    assert column.n_missing == 1
    assert "1 cells read as missing: 'abc'" in column.notes
    assert encode_column("x", ["a", "b", "a"], kind="identifier").flag == "identifier"


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (["a", "b"], {"kind": "continuous"}, "cannot be read as numbers, e.g. 'a'"),
        (["a", "b"], {"kind": "datetime"}, "cannot be read as datetimes"),
        (["1.5", "2"], {"kind": "integer"}, "expected whole numbers for integer, got 1.5"),
        (["a", "b", "c"], {"kind": "boolean"}, "at most 2 values for boolean, got 3"),
        (["a"], {"kind": "categoric"}, "did you mean 'categorical'"),
        (["a"], {"decimal": ";"}, "decimal: expected one of"),
        (["a"], {"dates": "ymd"}, "dates: expected one of"),
        (np.zeros((2, 2)), {}, "expected columns of shape"),
    ],
)
def test_bad_input_is_refused(cells: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_column("x", cells, **options)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="columns of equal length"):
        encode_table({"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match=r"types: no column 'agee' [(]did you mean 'age'"):
        encode_table({"age": [1, 2]}, types={"agee": "integer"})
    with pytest.raises(TypeError, match="complex"):
        encode_column("x", np.array([1j]))


def flags(cells: object, name: str = "x") -> str:
    return encode_column(name, cells).flag


def test_flags() -> None:
    assert flags(["", "NA"]) == "empty"
    assert flags(["a", "a", ""]) == "constant"
    assert flags([f"case {i}" for i in range(50)]) == "identifier"
    assert flags([f"case {i % 25}" for i in range(50)]) == ""
    assert flags(range(1000, 1050)) == "identifier"
    assert flags([i + (i > 20) for i in range(50)]) == "identifier"  # with a gap
    assert flags(rng.permutation(500)) == "identifier"
    assert flags(rng.normal(size=500)) == ""  # every value is different, and none is a name
    assert flags(rng.integers(10**9, size=500)) == ""
    assert flags(rng.integers(10**9, size=500), "customer_id") == "identifier"
    assert flags(np.sort((np.exp(3 * rng.normal(size=500)) * 10**6).astype(int))) == ""  # rows sorted by a quantity
    assert flags(["a", "b"]) == ""  # too few rows to tell
    assert encode_column("x", [f"case {i}" for i in range(50)], kind="categorical").flag == ""


def test_large_identifiers_do_not_collapse() -> None:
    column = encode_column("account", [str(2**60 + i) for i in range(40)])
    assert any("beyond 2^53" in note for note in column.notes)


def test_duplicates_are_flagged() -> None:
    x = rng.normal(size=50)
    sex = np.where(x > 0, "f", "m")
    a, b, c, d, e = encode_table({"x": x, "y": x, "z": np.exp(x), "sex": sex, "s": np.where(x > 0, "a", "b")})
    assert [column.flag for column in (a, b, c, d, e)] == ["", "duplicate of x", "", "", ""]
    assert encode_table({"x": x, "y": x}, types={"y": "continuous"})[1].flag == ""


def test_properties() -> None:
    column = encode_column("x", [1.5, 1.5, 2.5, None])
    assert column.codes.tolist() == [0, 0, 1, -1]
    assert (column.distinct, column.n_missing) == (2, 1)
    assert column.tied == pytest.approx(2 / 3)
    assert not column.discrete
    assert encode_column("x", [1.5, 2.5] * 5).discrete
    assert not encode_column("x", rng.normal(size=100)).discrete
    assert encode_column("x", ["a", "b"]).discrete


def test_missing_level() -> None:
    column = encode_column("x", ["a", "b", ""]).with_missing_level()
    assert column.levels == ("a", "b", "(missing)")
    assert column.values.tolist() == [0, 1, 2]
    assert encode_column("x", ["a", "a", ""]).with_missing_level().flag == ""
    numbers = encode_column("x", [1, 2, None] * 5).with_missing_level()
    assert numbers.levels == ("1", "2", "(missing)")
    whole = encode_column("x", ["a", "b"])
    assert whole.with_missing_level() is whole
    with pytest.raises(ValueError, match="discrete columns only"):
        encode_column("x", [0.5, 1.5, None]).with_missing_level()


class Series:
    """As much of a pandas series as is used."""

    def __init__(self, cells: list, dtype: str = "object") -> None:
        self.cells, self.dtype = cells, dtype

    def __len__(self) -> int:
        return len(self.cells)

    def to_numpy(self) -> np.ndarray:
        return np.array(self.cells)


def test_series_by_duck_typing() -> None:
    assert kind_of(Series([1, 2, 3])) == "integer"
    assert kind_of(Series([1, 2, 3], "category")) == "categorical"
    (column,) = encode_table({"x": Series([1, 2, 3], "category")})
    assert column.kind == "categorical"
    missing = type("NAType", (), {})()
    assert encode_column("x", np.array([1, missing, 3], dtype=object)).n_missing == 1


def test_a_long_text_does_not_widen_every_cell() -> None:
    column = encode_column("x", ["a" * 10**6, *["b"] * 10**4])
    assert isinstance(column, Column)
    assert column.distinct == 2
