"""The example runs from end to end, offline, and writes a record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_example(tmp_path):
    command = [sys.executable, "examples/mee_gan.py", "--steps", "10", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("INFOTORCH_DATA", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "mee-gan.json").read_text())
    assert set(record["results"]) == {"ring", "grid", "stacked digits"}
    for arms in record["results"].values():
        assert set(arms) == {"plain", "DLLE, DIsoMap", "entropy", "MEE"}
        assert all("reverse KL" in found for found in arms.values())
    assert (tmp_path / "mee-gan.png").stat().st_size > 10_000
