"""The benchmark of diffusion samplers: all competitors run, and the error rows hold distances to the solution."""

from __future__ import annotations

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_competitors_run(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    bench, common = (importlib.import_module(f"benchmarks.{name}") for name in ("evodiff", "common"))
    cases = bench.cases(common.Options(quick=True))
    assert [case.name.split("/")[0] for case in cases] == ["overhead", "error"]
    for case in cases:
        built = case.build()
        subjects = [s for s in (built.ours, *built.peers) if s.run is not None]
        results = {subject.name: subject.run() for subject in subjects}
        if case.name.startswith("error"):
            assert float(built.reference()["rms"]) == 0
            errors = {name: float(result["rms"]) for name, result in results.items()}
            assert 0 < errors["EVODiff"] < errors["DPM-Solver++(2M)"] < errors["DDIM"] < 1
        else:
            assert results[built.ours.name].keys() <= built.reference().keys()
