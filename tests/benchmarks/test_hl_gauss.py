from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_all_competitors_compute_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    bench, common = (importlib.import_module(f"benchmarks.{name}") for name in ("hl_gauss", "common"))
    cases = bench.cases(common.Options(quick=True))
    assert len(cases) == 2
    for case in cases:
        built = case.build()
        truth = built.reference()
        runs = [subject for subject in (built.ours, *built.peers) if subject.run is not None]
        assert len(runs) >= 2
        for subject in runs:
            found = subject.run()
            assert found.keys() == truth.keys()
            for name, value in found.items():
                assert value.dtype == torch.float32
                assert (value.double() - truth[name]).abs().max().item() == pytest.approx(0, abs=1e-5), subject.name
