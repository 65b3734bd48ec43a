from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_all_competitors_cut_alike_and_train(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    bench, common = (importlib.import_module(f"benchmarks.{name}") for name in ("entrope", "common"))
    patching, training = (case.build() for case in bench.cases(common.Options(quick=True)))
    expected = patching.reference()["lengths"]
    assert expected.max() == bench.MAX_LENGTH  # some patches are cut
    for subject in (patching.ours, *patching.peers):
        assert torch.equal(subject.run()["lengths"], expected)
    assert float(training.ours.run()["loss"]) == pytest.approx(float(training.reference()["loss"]), abs=1e-4)
    for peer in training.peers:
        assert peer.run() == {}
