from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", ["joint", "separable"])
def test_all_competitors_do_the_same_work(monkeypatch, part):
    """Two steps of each: finite values near those of an untrained critic, and names that do not change."""
    monkeypatch.syspath_prepend(str(ROOT))
    bench, common = (importlib.import_module(f"benchmarks.{name}") for name in ("neural_mi", "common"))
    monkeypatch.setattr(bench, "QUICK_STEPS", 2)
    cases = [c for c in bench.cases(common.Options(quick=True)) if f"/{part} critic" in c.name]
    assert list(dict.fromkeys(c.name.split("/")[0] for c in cases)) == list(bench.METHODS)
    met: dict[str, set[str]] = {}
    for case in cases:
        built = case.build()
        truth = built.reference()["value"]
        assert float(truth) == pytest.approx(5.108, abs=1e-3)
        met.setdefault(case.name.split("/")[0], set()).update(peer.name for peer in built.peers)
        for subject in (built.ours, *(peer for peer in built.peers if peer.name == "bare loop")):
            value = subject.run()["value"]
            assert value.shape == torch.Size([])
            assert -1 < float(value) < 3, (case.name, subject.name)
    assert all(peers == {"torch-mist", "bare loop"} for peers in met.values())
