"""The examples of the information measures run from end to end, offline, and write a record that becomes tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

SMALL = {
    "dependence": ("dcov-dependence", ["--repeats", "1"]),
    "dse": ("dse", ["--epochs", "1"]),
    "entropic_ot": ("entropic-ot", []),
    "koleo_neighbours": ("koleo-neighbours", ["--points", "300"]),
    "qarl": ("qarl", ["--methods", "qarl", "--iterations", "1"]),
    "representation_geometry": ("representation-geometry", ["--steps", "5"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_example(script, tmp_path):
    import records

    slug, options = SMALL[script]
    command = [sys.executable, f"examples/{script}.py", "--seeds", "1", "--out", str(tmp_path), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("INFOTORCH_DATA", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "---" in done.stdout  # the table
    record = json.loads((tmp_path / f"{slug}.json").read_text())
    assert record["slug"] == slug
    assert record["seeds"] == [0]
    assert "| --- |" in records.experiment(slug, record)
    assert (tmp_path / f"{slug}.png").stat().st_size > 10_000
