"""What is written: a picture, a csv file, and a page that needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from infotorch.report import Report, report_table
from infotorch.report.chart import clustered, draw, strengths
from infotorch.report.page import page

NASTY = "<script>alert('x')</script> & \"co\""


def make(n_columns: int = 4, **options) -> Report:
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    data = {"x": x, NASTY: x + 0.2 * rng.normal(size=120), "constant": np.ones(120), "id": np.arange(120)}
    data |= {f"noise {i}": rng.normal(size=120) for i in range(n_columns - 2)}
    return report_table(data, permutations=19, bootstrap=2, source="a <b> & c.csv", **options)


@pytest.fixture(scope="module")
def report() -> Report:
    return make()


@pytest.fixture(scope="module")
def files(report: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return report.save(tmp_path_factory.mktemp("report") / "made" / "deep")


class Tags(HTMLParser):
    """All tags and texts of a page, and whether they are closed in order."""

    VOID = ("meta", "img", "input", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"] and self.open[-1:] != ["style"]:
            self.texts.append(data)


def test_files(report: Report, files: dict[str, Path]) -> None:
    assert {kind: path.name for kind, path in files.items()} == {
        "json": "report.json",
        "csv": "pairs.csv",
        "png": "report.png",
        "html": "report.html",
    }
    assert json.loads(files["json"].read_text(encoding="utf-8"))["source"] == report.source
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_csv_is_complete(report: Report, files: dict[str, Path]) -> None:
    with files["csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.pairs) == 6
    assert (rows[0]["x"], rows[0]["y"]) == ("x", NASTY)
    first = report.pairs[0]
    assert float(rows[0]["strength"]) == pytest.approx(first.strength, rel=1e-5)
    assert float(rows[0]["mutual_information_low"]) == pytest.approx(first.interval[0], rel=1e-5)
    assert rows[0]["share_of_x"] == ""
    assert rows[0]["rank"] == "1"


def test_page_needs_nothing_but_itself(files: dict[str, Path]) -> None:
    text = files["html"].read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.open
    outward = [
        value
        for _, attributes in tags.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert len(outward) == 1
    assert outward[0].startswith("data:image/png;base64,")
    assert base64.b64decode(outward[0].split(",")[1]) == files["png"].read_bytes()
    without_picture = text.replace(outward[0], "")
    assert "http" not in without_picture
    assert "//" not in without_picture
    assert "url(" not in without_picture
    assert "@import" not in without_picture
    assert not any(name in ("link", "iframe", "object", "embed", "base") for name, _ in tags.tags)


def test_names_cannot_become_markup(files: dict[str, Path]) -> None:
    tags = Tags(files["html"].read_text(encoding="utf-8"))
    assert sum(name == "script" for name, _ in tags.tags) == 1
    assert any(NASTY in text for text in tags.texts)
    assert any("a <b> & c.csv" in text for text in tags.texts)


def test_page_says_what_was_done(report: Report, files: dict[str, Path]) -> None:
    text = " ".join(Tags(files["html"].read_text(encoding="utf-8")).texts)
    assert "constant (a single value), id (names the rows)" in text
    assert "95% intervals from 2 half-samples" in text
    assert "in 19 shuffles" in text
    for column in report.columns:
        assert column.name in text
    assert text.count("noise 0") >= 4


def test_page_follows_the_settings() -> None:
    quick = report_table({"x": [0, 1] * 60, "y": [0, 1] * 60, "z": [0, 0, 1, 1] * 30}, permutations=0, bootstrap=0)
    text = page(quick, b"")
    assert "shuffles" not in text
    assert "half-samples" not in text
    assert "nothing was tested against chance" in text
    one = make(target="x")
    text = page(one, b"")
    assert "What tells about x in a &lt;b&gt; &amp; c.csv?" in text
    assert text.count("<tr class=pale") + text.count("<tr>") == 2 + 3 + 6  # headings, pairs, columns


def test_long_tables_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "id='more'" not in page(make(), b"")
    many = page(make(11, columns=None), b"")
    assert "Show all 55" in many
    assert "++seen > 40" in many


def size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_picture_grows_with_the_columns_up_to_a_limit() -> None:
    rng = np.random.default_rng(0)
    sizes = []
    for n in (2, 10, 50):
        data = {f"a column of long name {i}": rng.normal(size=12) for i in range(n)}
        sizes.append(size(draw(report_table(data, permutations=0, bootstrap=0))))
    assert sizes[0] < sizes[1] < sizes[2]
    assert max(sizes[2]) <= 2450


def test_order_of_the_picture(report: Report) -> None:
    names, values, shown = strengths(report)
    assert names == report.used
    assert np.isnan(np.diag(values)).all()
    assert shown.sum() == 2
    blocks = np.array([[np.nan, 0, 0.9, 0], [0, np.nan, 0, 0.9], [0.9, 0, np.nan, 0], [0, 0.9, 0, np.nan]])
    order = clustered(blocks)
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == abs(order.index(1) - order.index(3)) == 1
    assert draw(report, order="given") != draw(report, order="clustered") or clustered(values) == [0, 1, 2, 3]
    assert size(draw(make(target="x")))[0] > 600
    with pytest.raises(ValueError, match="order: expected one of clustered, given"):
        draw(report, order="alphabetical")


def test_pyplot_is_left_alone(report: Report) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), plt.rcParams["font.size"], plt.get_backend()
    draw(report)
    assert (plt.get_fignums(), plt.rcParams["font.size"], plt.get_backend()) == before


def test_bars_carry_their_number(files: dict[str, Path]) -> None:
    found = re.findall(r"--v:([\d.]+)'><b>([\d.]+)<", files["html"].read_text(encoding="utf-8"))
    assert found
    assert all(abs(float(v) - float(b)) <= 0.006 for v, b in found)
