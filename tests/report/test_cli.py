"""The command line: exit codes, one-line errors, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infotorch.__main__ import main

ROOT = Path(__file__).parents[2]
QUICK = ["--bootstrap", "0", "--permutations", "19", "--quiet"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    y = x + 0.1 * rng.normal(size=80)
    lines = [f'{a:.4f},{b:.4f},{"mf"[i % 2]},"{i % 3}, c"' for i, (a, b) in enumerate(zip(x, y, strict=True))]
    (tmp_path / "data.csv").write_text("\n".join(['x,y,sex,"class, odd"', *lines]) + "\n")
    return "data.csv"


def read(folder: str = "data-report") -> dict:
    return json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))


def test_report(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", data, *QUICK]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split()[:4] == ["1", "x", "~", "y"]
    assert printed[-1].split() == ["html", str(Path("data-report") / "report.html")]
    assert sorted(p.name for p in Path("data-report").iterdir()) == [
        "pairs.csv",
        "report.html",
        "report.json",
        "report.png",
    ]


def test_options(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--target", "sex", "--columns", "x,y", "--columns", "class, odd", "--types", "class, odd=categorical"]
    options += ["--types", "x=continuous,sex=categorical", "--out", "here", "--missing", "drop", "--seed", "3"]
    options += ["--max-rows", "500", "-k", "4", "--order", "given", "--confidence", "0.9", "--top", "1", "--jobs", "1"]
    assert main(["report", data, *options, "--bootstrap", "2", "--permutations", "9", "--quiet"]) == 0
    found = read("here")
    assert found["target"] == "sex"
    assert {p["y"] for p in found["pairs"]} == {"x", "y", "class, odd"}
    assert found["settings"] == {
        "missing": "drop",
        "bootstrap": 2,
        "confidence": 0.9,
        "permutations": 9,
        "max_rows": 500,
        "k": 4,
        "seed": 3,
        "columns": ["x", "y", "class, odd"],
        "types": {"class, odd": "categorical", "x": "continuous", "sex": "categorical"},
        "decimal": None,
        "dates": None,
    }
    assert capsys.readouterr().out.count("class, odd") <= 1


def test_reading_options(tmp_path: Path) -> None:
    rows = "".join(f"0{i % 9 + 1}/0{i % 7 + 1}/2020:1,{100 + i}:{i % 2}\n" for i in range(60))
    (tmp_path / "odd.txt").write_bytes(rows.encode("cp1250"))
    options = ["--delimiter", ":", "--header", "no", "--decimal", ",", "--dates", "dmy", "--encoding", "cp1250"]
    assert main(["report", "odd.txt", *options, *QUICK]) == 0
    found = read("odd-report")
    assert [(c["name"], c["kind"]) for c in found["columns"]] == [
        ("column_1", "datetime"),
        ("column_2", "continuous"),
        ("column_3", "boolean"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv"], "nowhere.csv: no such file"),
        (["data.csv", "--target", "sexx"], "target: no column 'sexx' (did you mean 'sex'?)"),
        (["data.csv", "--columns", "x,z"], "columns: no column 'z'"),
        (["data.csv", "--columns", "x"], "columns: expected at least 2, got 1"),
        (["data.csv", "--types", "x"], "--types: expected NAME=KIND, got 'x'"),
        (["data.csv", "--types", "sx=integer"], "--types: no column 'sx' (did you mean 'sex'?)"),
        (["data.csv", "--types", "x=number"], "expected one of continuous"),
        (["data.csv", "--types", "sex=integer"], "types: 'sex' cannot be read as numbers"),
        (["data.csv", "--bootstrap", "1"], "bootstrap: expected 0 or at least 2, got 1"),
        (["data.csv", "--top", "-1"], "--top, --jobs: expected"),
        (["data.csv", "--delimiter", "::"], "delimiter: expected one character"),
        (["data.csv", "--out", "data.csv"], "--out data.csv: this is a file, not a folder"),
        (["ragged.csv"], "ragged.csv: line 3 has 1 cells, line 1 has 2"),
        (["empty.csv"], "empty.csv: the file is empty"),
        (["gone.csv"], "all cells of the chosen columns are missing"),
        (["when.csv"], "either number may be the month; say --dates dmy or --dates mdy"),
    ],
)
def test_bad_input_gives_2_and_one_line(
    data: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "gone.csv").write_text("a,b\n,\nNA,\n")
    (tmp_path / "when.csv").write_text("a,b\n01/02/2024,1\n03/04/2024,2\n")
    assert main(["report", *QUICK, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("data-report").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions")
def test_folder_that_cannot_be_made(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main(["report", data, "--out", "file/below", *QUICK]) == 2
    assert capsys.readouterr().err.startswith("error: --out file/below: ")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "report" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("infotorch ")
    assert main(["repot"]) == 2
    assert capsys.readouterr().err == "error: no command 'repot'; there is: report\n"
    with pytest.raises(SystemExit) as stop:
        main(["report", "--help"])
    assert stop.value.code == 0
    assert "--target NAME" in capsys.readouterr().out


def test_as_a_program(data: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "infotorch", "report"]
    good = subprocess.run([*command, data, *QUICK, "--jobs", "2"], capture_output=True, text=True, env=env, timeout=120)
    assert good.returncode == 0, good.stderr
    assert good.stderr == ""
    bad = subprocess.run([*command, "nowhere.csv"], capture_output=True, text=True, env=env, timeout=120)
    assert bad.returncode == 2
    assert bad.stderr == "error: nowhere.csv: no such file\n"


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from infotorch.__main__ import main; main(['--help']); print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert found.stdout.endswith("False\n")
