"""The report: known dependence comes first, independence stays unremarkable, every rule on columns holds."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from infotorch.estimators import encode_column
from infotorch.report import Report, TableError, report_table
from infotorch.report.pairs import Options, Pair, measure, strength
from infotorch.report.records import p_text, ranked
from infotorch.report.table import _sharper

FAST = {"bootstrap": 0, "permutations": 0}


def table(n: int = 600, seed: int = 0) -> dict[str, np.ndarray]:
    """Two dependent numbers, one of them cut to three categories, and columns that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = 0.9 * x + math.sqrt(1 - 0.81) * rng.normal(size=n)
    return {
        "x": x,
        "y": y,
        "class": np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])],
        "noise": rng.exponential(size=n) ** 2,
        "coin": rng.integers(2, size=n).astype(bool),
        "count": rng.poisson(3, size=n),
        "claim": np.where(rng.random(n) < 0.7, 0.0, rng.exponential(size=n)),
    }


@pytest.fixture(scope="module")
def report() -> Report:
    return report_table(table(), seed=1)


def test_known_dependence_comes_first(report: Report) -> None:
    assert {frozenset((p.x, p.y)) for p in report.pairs[:3]} == {
        frozenset(pair) for pair in (("x", "y"), ("x", "class"), ("y", "class"))
    }
    first = report.pair("y", "x")
    assert first.estimator == "kraskov"
    assert first.strength == pytest.approx(0.9, abs=0.04)
    assert first.distance_correlation == pytest.approx(0.87, abs=0.05)
    assert first.interval is not None
    assert first.strength_interval is not None
    assert first.interval[0] < -0.5 * math.log(1 - 0.81) < first.interval[1]
    assert first.strength_interval[0] < 0.9 < first.strength_interval[1]
    assert report.pair("y", "class").share_y == pytest.approx(1.0, abs=0.02)
    assert {frozenset((p.x, p.y)) for p in report.shown} == {frozenset((p.x, p.y)) for p in report.pairs[:3]}


def test_independent_pairs_are_unremarkable(report: Report) -> None:
    others = report.pairs[3:]
    assert len(others) == 18
    for pair in others:
        assert pair.p_adjusted > 0.05
        assert abs(pair.mutual_information) < 0.06
        assert pair.distance_correlation < 0.2


def test_p_values_are_uniform_under_independence() -> None:
    p = [
        q.p_value
        for s in range(12)
        for q in report_table({k: v for k, v in table(80, s).items() if k not in ("y", "class")}, bootstrap=0).pairs
    ]
    assert len(p) == 120
    assert 2 <= sum(v <= 0.1 for v in p) <= 25  # 12 expected
    assert np.mean(p) == pytest.approx(0.5, abs=0.1)


def test_same_seed_same_report_whatever_else_is_in_the_table(report: Report) -> None:
    again = report_table(table(), seed=1)
    assert again.pairs == report.pairs
    alone = report_table({k: v for k, v in table().items() if k in ("x", "noise")}, seed=1).pairs[0]
    assert replace(alone, p_adjusted=None) == replace(report.pair("x", "noise"), p_adjusted=None)
    other = report_table(table(), seed=2)
    assert other.pair("x", "claim").p_value != report.pair("x", "claim").p_value


def test_processes_change_nothing(report: Report) -> None:
    columns = ("x", "class", "claim")
    data = {k: v for k, v in table().items() if k in columns}
    assert report_table(data, seed=1, jobs=2).pairs == report_table(data, seed=1).pairs


@pytest.mark.parametrize("monotone", [lambda x: 1000 * x + 5, np.exp, lambda x: x**3])
def test_units_and_monotone_maps_change_nothing(monotone) -> None:
    data = table()
    mapped = {**data, "x": monotone(data["x"])}
    pair, same = (report_table({k: d[k] for k in ("x", "y")}, **FAST).pairs[0] for d in (data, mapped))
    assert same.mutual_information == pytest.approx(pair.mutual_information, abs=1e-9)
    assert same.distance_correlation == pytest.approx(pair.distance_correlation, abs=1e-9)


def test_more_rows_than_the_limit_are_drawn_from() -> None:
    data = table(1500)
    report = report_table(data, max_rows=400, **FAST)
    assert report.pair("x", "y").n == 1500
    assert report.pair("x", "y").n_used == 400
    assert report.pair("x", "y").strength == pytest.approx(0.9, abs=0.06)
    assert report.pair("coin", "count").n_used == 1500  # a table of counts uses all


def test_all_rows_are_tested_even_if_some_are_drawn() -> None:
    rng = np.random.default_rng(0)
    n = 40_000
    x = rng.normal(size=n)
    data = {"x": x, "y": 0.05 * x + rng.normal(size=n)}  # weak: 2,000 rows do not show it
    assert report_table(data, bootstrap=0).pairs[0].p_value <= 0.01


# ---------------------------------------------------------------------------------------------------------
# One pair
# ---------------------------------------------------------------------------------------------------------


def pair_of(x, y, **options) -> Pair:
    defaults = {"bootstrap": 0, "permutations": 0} | options
    return measure(encode_column("x", x), encode_column("y", y), Options(**defaults))


def test_strength_is_one_where_a_column_determines_the_other() -> None:
    x = np.arange(600) % 12
    pair = pair_of([f"c{i}" for i in x], x // 3)
    assert pair.strength == pytest.approx(1.0)
    assert pair.share_y == pytest.approx(1.0)
    assert pair.share_x == pytest.approx(math.log(4) / math.log(12), abs=1e-6)
    assert pair.warnings == ("x determines y",)
    assert strength(0.0, 1.0) == 0.0
    assert strength(-0.1, 1.0) == 0.0
    assert strength(5.0, 0.0) == 0.0


def test_tables_are_adjusted_for_chance() -> None:
    rng = np.random.default_rng(0)
    x, y = (np.char.add("c", rng.integers(60, size=300).astype(str)) for _ in range(2))
    pair = pair_of(x, y, permutations=199)
    assert pair.estimator == "table"
    assert abs(pair.mutual_information) < 0.1
    assert metrics.mutual_info_score(x, y) > 1.5  # what the plain estimate says
    score = metrics.adjusted_mutual_info_score(x, y, average_method="min")
    entropies = [-sum(c / 300 * math.log(c / 300) for c in np.unique(v, return_counts=True)[1]) for v in (x, y)]
    assert pair.mutual_information == pytest.approx(score * min(entropies), abs=1e-9)
    assert pair.p_value > 0.05
    assert "the correction for chance is large" in pair.warnings[0]


def test_few_valued_numbers_are_counted_where_rows_are_many() -> None:
    rng = np.random.default_rng(0)
    for n, estimator in ((2000, "table"), (300, "mixed")):
        x = rng.integers(10, size=n)
        assert pair_of(x, (x + rng.integers(3, size=n))).estimator == estimator


def test_ties_are_no_trouble() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cut in (lambda v: v.round(1), lambda v: np.where(v < 0.5, 0.0, v), lambda v: np.clip(v, -0.5, 0.5)):
            pair = pair_of(cut(x), cut(y))
            assert math.isfinite(pair.mutual_information)
            assert abs(pair.mutual_information) < 0.08
            assert pair_of(cut(x), cut(x) + 1).mutual_information > 0.5


def test_estimators_are_chosen_by_the_columns() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300))
    label = np.where(x > 0, "a", "b")
    zeros = np.where(y < 0, 0.0, y)
    assert pair_of(x, y).estimator == "kraskov"
    assert pair_of(x, label).estimator == "ross"
    assert pair_of(x, zeros).estimator == "mixed"
    assert pair_of(label, y > 0).estimator == "table"
    assert pair_of(x, label).share_y == pytest.approx(1.0, abs=0.05)
    assert pair_of(x, label).share_x is None


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.5, 2.5, None] * 3, [1.0] * 9, "only 6 rows have both"),
        ([None] * 50 + list(range(50)), [0.5 * i for i in range(50)] + [None] * 50, "only 0 rows have both"),
        (
            [0.3 * i for i in range(40)] + [None] * 10,
            ["a"] * 40 + ["b"] * 10,
            "y has a single value where x is present",
        ),
    ],
)
def test_what_cannot_be_measured_says_why(x: list, y: list, reason: str) -> None:
    pair = pair_of(x, y, bootstrap=5, permutations=9)
    assert not pair.measured
    assert pair.strength is pair.p_value is pair.distance_correlation is None
    assert pair.warnings == (f"not measured: {reason}",)


def test_warnings() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    assert "only 60 rows have both" in pair_of(x, x + rng.normal(size=60)).warnings
    x = rng.normal(size=3000)
    assert "take it as a lower bound" in pair_of(x, x + 1e-6 * rng.normal(size=3000)).warnings[0]
    many = [f"c{i}" for i in rng.permutation(300) // 2]
    assert "in categories of 3 rows or fewer" in pair_of(x[:300], many).warnings[0]


def test_intervals_need_rows() -> None:
    rng = np.random.default_rng(0)
    assert pair_of(*rng.normal(size=(2, 15)), bootstrap=5).interval is None
    low, high = pair_of(*rng.normal(size=(2, 400)), bootstrap=10).interval
    assert low < 0.05
    assert high > -0.05


@pytest.mark.parametrize("kind", ["numbers", "table", "mixed"])
def test_intervals_cover_the_mean_of_the_estimator(kind: str) -> None:
    def draw(seed: int) -> Pair:
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 400))
        y = 0.6 * x + 0.8 * y
        if kind == "table":
            x, y = (np.digitize(v, [-1, 0, 1]).astype(str) for v in (x, y))
        elif kind == "mixed":
            x = np.where(x < 0, 0.0, x)
        return pair_of(x, y, bootstrap=20)

    pairs = [draw(seed) for seed in range(30)]
    center = np.mean([pair.mutual_information for pair in pairs])
    covered = sum(pair.interval[0] <= center <= pair.interval[1] for pair in pairs)
    assert covered >= 25  # 28.5 expected


# ---------------------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------------------


def flawed(n: int = 100) -> dict[str, object]:
    data = table(n)
    return {
        "x": data["x"],
        "y": data["y"],
        "again": data["x"],
        "nothing": [None] * n,
        "always": ["yes"] * n,
        "id": range(n),
        "name": [f"name {i}" for i in range(n)],
        "class": data["class"],
    }


def test_useless_columns_are_left_out_and_reported() -> None:
    report = report_table(flawed(), **FAST)
    assert report.used == ["x", "y", "class"]
    flags = {column.name: column.flag for column in report.columns if not column.used}
    assert flags == {
        "again": "duplicate of x",
        "nothing": "empty",
        "always": "constant",
        "id": "identifier",
        "name": "identifier",
    }


def test_named_columns_are_used_unless_there_is_nothing_in_them() -> None:
    data = flawed()
    assert report_table(data, columns=["x", "id", "always"], **FAST).used == ["x", "id"]
    assert report_table(data, columns=["x", "again"], **FAST).used == ["x", "again"]
    assert report_table(data, target="id", **FAST).used == ["x", "y", "id", "class"]
    assert "id" in report_table(data, types={"id": "integer"}, **FAST).used
    assert "x" not in report_table(data, types={"x": "identifier"}, **FAST).used


def test_types_can_be_given() -> None:
    data = {"grade": [1, 2, 3, 4] * 25, "x": table(100)["x"]}
    report = report_table(data, types={"grade": "categorical"}, **FAST)
    assert report.columns[0].kind == "categorical"
    assert report.pairs[0].share_x is not None


def test_target_has_one_pair_with_each_other_column(report: Report) -> None:
    found = report_table(table(), target="class", seed=1, **FAST)
    assert [p.x for p in found.pairs] == ["class"] * 6
    assert found.target == "class"
    assert {found.pairs[0].y, found.pairs[1].y} == {"x", "y"}


def test_missing_cells() -> None:
    data = {k: list(v) for k, v in table(200).items() if k in ("x", "y", "class")}
    data["x"][:50] = [None] * 50
    data["class"][150:] = [""] * 50
    pairwise = report_table(data, **FAST)
    assert {frozenset((p.x, p.y)): p.n for p in pairwise.pairs} == {
        frozenset(("x", "y")): 150,
        frozenset(("x", "class")): 100,
        frozenset(("y", "class")): 150,
    }
    assert [c.n_missing for c in pairwise.columns] == [50, 0, 50]
    drop = report_table(data, missing="drop", **FAST)
    assert {p.n for p in drop.pairs} == {drop.n_rows} == {100}
    assert "100 of 200 rows are incomplete and were dropped" in drop.notes
    level = report_table(data, missing="level", **FAST)
    assert level.pair("y", "class").n == 200
    assert level.pair("x", "class").n == 150  # numbers have no level for it


def test_missing_level_tells_by_its_absence() -> None:
    rng = np.random.default_rng(0)
    gone = rng.random(300) < 0.5
    data = {"sick": gone, "answer": np.where(gone, "", "here")}
    assert report_table(data, missing="level", **FAST).pairs[0].strength == pytest.approx(1.0)
    with pytest.raises(TableError, match="'answer' is constant"):
        report_table(data, **FAST)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"x": [1, 2], "y": [1, 2, 3]}, {}, "columns of equal length"),
        ({"x": [1, 2]}, {}, "expected at least 2, got 1: 'x'"),
        ({"x": [1, 2], "y": ["", ""]}, {"columns": ["y"], "target": "y"}, "expected at least 2, got 1: 'y'"),
        ({"x": ["", ""], "y": ["", ""]}, {}, "all cells of the chosen columns are missing"),
        ({"x": [1.5, 2.5], "y": ["a", "a"]}, {}, "fewer than 2 columns are left to compare: 'y' is constant"),
        ({"x": [1.5, 2.5], "y": ["a", "a"], "z": [1, 2]}, {"target": "y"}, "target: column 'y' is constant"),
        ({"age": [1, 2], "sex": [1, 2]}, {"target": "agee"}, r"target: no column 'agee' \(did you mean 'age'\?\)"),
        ({"age": [1, 2], "sex": [1, 2]}, {"columns": ["sx"]}, r"columns: no column 'sx' \(did you mean 'sex'\?\)"),
        ({"age": [1, 2], "sex": [1, 2]}, {"types": {"ag": "integer"}}, "types: no column 'ag'"),
        ({"age": [1, 2], "sex": [1, 2]}, {"types": {"age": "number"}}, "expected one of continuous"),
        ({"age": [1, None], "sex": [None, 2.5], "z": [1, 2]}, {"missing": "drop"}, "constant"),
        ({"x": ["7", "1,234"], "y": ["a", "b"]}, {}, "'1,234' may be 1234 or 1.234"),
        ({"x": [1, 2], "y": [1, 2]}, {"missing": "level3"}, "missing: expected one of"),
        ({"x": [1, 2], "y": [1, 2]}, {"bootstrap": 1}, "bootstrap: expected 0 or at least 2, got 1"),
        ({"x": [1, 2], "y": [1, 2]}, {"permutations": -1}, "permutations: expected"),
        ({"x": [1, 2], "y": [1, 2]}, {"max_rows": 10}, "max_rows: expected"),
        ({"x": [1, 2], "y": [1, 2]}, {"k": 0}, "k: expected"),
        ({"x": [1, 2], "y": [1, 2]}, {"jobs": 0}, "jobs: expected"),
        (np.zeros((3, 2)), {}, "data: expected a path, a mapping"),
        ("nowhere.csv", {}, "no such file"),
    ],
)
def test_bad_input_is_refused_in_a_line(data: object, options: dict, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        report_table(data, **options)
    assert "\n" not in str(caught.value)


def test_no_complete_row() -> None:
    data = {"x": [1.5, 2.5, 3.5, None, None], "y": [None, None, None, 1.5, 2.5]}
    with pytest.raises(TableError, match="no row is complete in all 2 columns"):
        report_table(data, missing="drop", **FAST)
    report = report_table(data, **FAST)
    assert not report.measured
    assert str(report) == "No pair of columns could be measured."


class Frame:
    """As much of a data frame as is used."""

    def __init__(self, data: dict) -> None:
        self.data = data
        self.columns = list(data)

    def __getitem__(self, name: str):
        return self.data[name]


def test_kinds_of_tables(tmp_path: Path) -> None:
    data = {k: v for k, v in table(100).items() if k in ("x", "class", "coin")}
    path = tmp_path / "data.csv"
    rows = zip(*data.values(), strict=True)
    path.write_text("x,class,coin\n" + "".join(f"{float(a)!r},{b},{c}\n" for a, b, c in rows))
    structured = np.rec.fromarrays(list(data.values()), names=list(data))
    tensors = {**data, "x": torch.from_numpy(data["x"])}
    expected = report_table(data, **FAST).pairs
    for other in (path, str(path), structured, tensors, Frame(data)):
        assert report_table(other, **FAST).pairs == expected
    assert report_table(path, **FAST).source == "data.csv"


# ---------------------------------------------------------------------------------------------------------
# Ranking and p-values
# ---------------------------------------------------------------------------------------------------------


def test_ranking() -> None:
    pairs = [
        Pair("a", "b", 9, mutual_information=0.1, strength=0.4, p_adjusted=0.5),
        Pair("a", "c", 9),
        Pair("a", "d", 9, mutual_information=0.1, strength=0.3, p_adjusted=0.01),
        Pair("a", "e", 9, mutual_information=2.0, strength=1.0, p_adjusted=0.01),
        Pair("a", "f", 9, mutual_information=3.0, strength=1.0, p_adjusted=0.01),
    ]
    assert "".join(p.y for p in ranked(pairs)) == "fedbc"


def test_a_lone_dependence_among_many_pairs_is_shown() -> None:
    rng = np.random.default_rng(0)
    data = {f"n{i}": rng.normal(size=60) for i in range(16)}
    data["x"] = data["n0"] + 0.3 * rng.normal(size=60)
    report = report_table(data, bootstrap=0, permutations=99)
    assert len(report.pairs) == 136
    assert [{p.x, p.y} for p in report.shown] == [{"n0", "x"}]
    assert report.pairs[0].p_value < 1 / 100  # more permutations were drawn for it


def test_sharper_p_values() -> None:
    assert _sharper([None, 0.5, 0.3], 199) == {}
    assert _sharper([0.005] * 100, 199) == {}  # good enough as they are
    count = _sharper([0.005] + [0.5] * 99, 199)
    assert set(count) == {0}
    assert 2 / (1 + count[0]) * 100 < 0.05


# ---------------------------------------------------------------------------------------------------------
# Forms
# ---------------------------------------------------------------------------------------------------------


def test_text_fits_its_width(report: Report) -> None:
    for width in (60, 80, 100):
        lines = report.table(None, width).splitlines()
        assert max(map(len, lines)) <= width
        assert len([line for line in lines if " ~ " in line or "…" in line]) == 21
    assert "interval" in report.table(width=100)
    assert "interval" not in report.table(width=80)
    assert str(report) == report.table()


def test_json_holds_everything(report: Report) -> None:
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["n_rows"] == 600
    assert len(found["pairs"]) == 21
    assert found["settings"]["seed"] == 1
    assert found["pairs"][0]["mutual_information"] == report.pairs[0].mutual_information
    with pytest.raises(KeyError, match="no pair of 'x' and 'z'"):
        report.pair("x", "z")


def test_p_text() -> None:
    assert [p_text(p) for p in (0.5, 0.05, 0.004, 0.0004, 1e-9, None)] == [
        "0.50",
        "0.05",
        "0.004",
        "0.0004",
        "<1e-5",
        "",
    ]


def test_pandas_frame() -> None:
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, 2, 5, None] * 30, dtype="Int64"),
            "number": rng.normal(size=120),
            "grade": pd.Categorical([3, 1, 2, 2] * 30),
            "flag": pd.array([True, False, None, True] * 30, dtype="boolean"),
            "day": pd.date_range("2024-01-01", periods=120, tz="Europe/Berlin"),
            "word": ["x", "y", None, "z"] * 30,
            "span": pd.to_timedelta(rng.integers(1000, size=120), unit="h"),
        }
    )
    report = report_table(frame, **FAST)
    assert [(c.kind, c.n_missing) for c in report.columns] == [
        ("integer", 30),
        ("continuous", 0),
        ("categorical", 0),
        ("boolean", 30),
        ("datetime", 0),
        ("categorical", 30),
        ("integer", 0),
    ]
    assert report.pair("whole", "grade").strength == pytest.approx(1.0)
    frame.columns = ["a", "a", "b", "c", "d", "e", "f"]
    with pytest.raises(TableError, match="columns of different names"):
        report_table(frame, **FAST)
