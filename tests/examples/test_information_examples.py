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
    "categorical_dqn": ("categorical-dqn", ["--updates", "40"]),
    "dependence": ("dcov-dependence", ["--repeats", "1"]),
    "dse": ("dse", ["--epochs", "1"]),
    "entropic_ot": ("entropic-ot", []),
    "entrope": ("entrope", ["--steps", "3", "--switch-steps", "4"]),
    "crrelu": ("crrelu", []),
    "interval_coverage": ("interval-coverage", ["--samples", "2"]),
    "hl_gauss": ("hl-gauss", ["--steps", "5"]),
    "evodiff": ("evodiff", ["--starts", "16", "--steps", "20", "--samples", "40"]),
    "fairness": ("dcov-fairness", ["--epochs", "1"]),
    "koleo_neighbours": ("koleo-neighbours", ["--points", "300"]),
    "mist": ("mist", ["--tasks", "6"]),
    "mist_train": ("mist_train", ["--steps", "4"]),
    "sfda_segmentation": ("sfda-segmentation", ["--images", "40", "--epochs", "1"]),
    "qarl": ("qarl", ["--methods", "qarl", "--iterations", "1"]),
    "representation_geometry": ("representation-geometry", ["--steps", "5"]),
}

ONE_SEED = {"interval_coverage", "mist", "mist_train"}


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_example(script, tmp_path):
    import records

    slug, options = SMALL[script]
    seeds = [] if script in ONE_SEED else ["--seeds", "1"]
    command = [sys.executable, f"examples/{script}.py", *seeds, "--out", str(tmp_path), *options]
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
