"""Reading csv files: what is guessed is guessed right, what cannot be read is said in one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from infotorch.report import ReadError, read_csv


def write(folder: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(table, name: str) -> list[str]:
    column = table.columns[name]
    return [column.levels[i] for i in column.codes]


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a,b\n1,2\n3,4\n", ","),
        ("a;b\n1,5;2,5\n3,5;4,5\n", ";"),
        ("a\tb\nx, y\tz\nu\tv\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ("1,5;2,5\n3,5;4,5\n", ";"),
        ('a,b\n"x;y",1\n"u;v;w",2\n', ","),
    ],
)
def test_delimiter_is_found(tmp_path: Path, text: str, delimiter: str) -> None:
    table = read_csv(write(tmp_path, text))
    assert table.delimiter == delimiter
    assert len(table.columns) == 2


def test_delimiter_can_be_given(tmp_path: Path) -> None:
    assert list(read_csv(write(tmp_path, "a b\n1 2\n"), delimiter=" ").columns) == ["a", "b"]
    assert list(read_csv(write(tmp_path, "a,x\tb\n1\t2\n"), delimiter="tab").columns) == ["a,x", "b"]
    with pytest.raises(ReadError, match="expected one character or 'tab', got '::'"):
        read_csv(write(tmp_path, "a b\n1 2\n"), delimiter="::")


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("age,sex\n31,f\n7,m\n", True),
        ("31,f\n7,m\n", False),
        ("1,2\n3,4\n", False),
        ("sex,color\nf,red\nm,blue\n", True),
        ("f,red\nm,blue\nf,blue\n", False),  # its cells are found again below
        ("id,2019,2020\n1,5,6\n2,7,8\n", True),  # a column of numbers below a name
        ("when,what\n2024-01-01,a\n2024-01-02,b\n", True),
        (",b\n1,2\n", True),
        ("a,a\nx,y\n", False),
    ],
)
def test_header_is_found(tmp_path: Path, text: str, header: bool) -> None:
    table = read_csv(write(tmp_path, text))
    assert table.header is header
    assert ("column_1" in table.columns) is (not header or text.startswith(","))
    assert any("holds data, not names" in note for note in table.notes) is not header


def test_header_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, "2019,2020\n1,2\n")
    assert list(read_csv(path, header="yes").columns) == ["2019", "2020"]
    assert read_csv(path, header="no").n_rows == 2


def test_quotes_blank_lines_and_spaces(tmp_path: Path) -> None:
    text = 'name, note\r\n"Smith, John","said ""no"""\r\n\r\nJo , "two\nlines"\r\n'
    table = read_csv(write(tmp_path, text))
    assert cells(table, "name") == ["Smith, John", "Jo"]
    assert cells(table, "note") == ['said "no"', "two\nlines"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("zipped", [False, True])
def test_encodings(tmp_path: Path, encoding: str, zipped: bool) -> None:
    content = "ort,n\nKöln,1\nMünchen,2\n".encode(encoding)
    table = read_csv(write(tmp_path, gzip.compress(content) if zipped else content))
    assert cells(table, "ort") == ["Köln", "München"]
    assert any("Latin-1" in note for note in table.notes) is (encoding == "latin-1")


def test_encoding_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\nś,1\n".encode("cp1250"))
    assert cells(read_csv(path, encoding="cp1250"), "a") == ["ś"]
    with pytest.raises(ReadError, match="not encoded in utf-8: invalid start byte at byte 4"):
        read_csv(path, encoding="utf-8")
    with pytest.raises(ReadError, match="unknown encoding 'utf-99'"):
        read_csv(path, encoding="utf-99")


def test_names_are_made_different(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "a,a,,a.1\n1,2,3,4\n"))
    assert list(table.columns) == ["a", "a.2", "column_3", "a.1"]
    assert "a.2, column_3" in table.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("a,b\n", "there is a header, and no rows below it"),
        ("a\n1\n2\n", "found one column only"),
        ("a,b\n1,2\n\n3\n", "line 4 has 1 cells, line 1 has 2"),
        ('a,b\n1,"x\ny"\n3,4,5\n', "line 4 has 3 cells, line 1 has 2"),
        ('a,b\n"1,2\n3,4\n', "line 3: unexpected end of data"),
        (b"a,b\n1,\x00\n", "this is not a text file"),
        (b"PK\x03\x04rest", "this is a zip or Excel file; save it as csv"),
        (gzip.compress(b"a,b\n1,2\n" * 500)[:40], "ended before the end-of-stream marker"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ReadError, match=message) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)


def test_missing_file_names_its_neighbors(tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,2\n", "sales.csv")
    with pytest.raises(ReadError, match=r"sale\.csv: no such file \(in that folder: sales\.csv\)"):
        read_csv(tmp_path / "sale.csv")
    with pytest.raises(ReadError, match="this is a folder"):
        read_csv(tmp_path)


def test_memory_follows_the_variety_of_a_column(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "a,b\n" + "x,y\nu,v\n" * 5000))
    assert table.n_rows == 10_000
    assert all(len(column.levels) == 2 and column.codes.itemsize == 4 for column in table.columns.values())
