from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_competitors_play_the_same_episode(monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.syspath_prepend(str(ROOT))
    bench, common = (importlib.import_module(f"benchmarks.{name}") for name in ("qarl", "common"))
    (case,) = bench.cases(common.Options(quick=True))
    built = case.build()
    truth = built.reference()["return"]
    assert built.ours.run()["return"] == truth
    assert built.ours.run()["return"] == truth  # a second run starts anew
    assert [peer.run() for peer in built.peers] == [{}, {}]
    assert [peer.floor for peer in built.peers] == [False, True]
