"""What the examples share: intervals over seeds, and runs that are kept."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_intervals_are_students(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    common = importlib.import_module("common")
    low, high = common.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))  # t of two degrees of freedom
    assert common.interval([5.0]) == (5.0, 5.0)
    found = common.difference([2.0, 5.0], [1.0, 2.0])
    assert found["mean difference"] == 2.0
    assert (found["95 % from"], found["to"]) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)
    with pytest.raises(ValueError, match="argument 2"):
        common.difference([2.0], [1.0, 2.0])


def test_finished_runs_are_taken_up_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    common = importlib.import_module("common")
    path = common.run_file(tmp_path, "COPO, soft: seed 0", {"steps": 3})
    assert path.parent == tmp_path / "runs"
    assert path.name.startswith("COPO-soft-seed-0-")
    assert path == common.run_file(tmp_path, "COPO, soft: seed 0", {"steps": 3})
    assert path != common.run_file(tmp_path, "COPO, soft: seed 0", {"steps": 4})

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        common.kept_run(path, fail)
    assert not path.exists()
    first = common.kept_run(path, lambda: {"rows": [1, 2.5]})
    assert first == common.kept_run(path, fail) == {"rows": [1, 2.5]}
    assert [found.suffix for found in path.parent.iterdir()] == [".json"]
