from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def built(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    common, sfda = (importlib.import_module(f"benchmarks.{name}") for name in ("common", "sfda"))
    return {case.name: case.build() for case in sfda.cases(common.Options(quick=True))}


def test_every_way_computes_the_same(built):
    assert len(built) == 3
    for name, case in built.items():
        expected = case.reference()
        assert set(expected) == ({"loss"} if name.startswith("forward/") else {"loss", "grad_logits"})
        for subject in [case.ours, *(peer for peer in case.peers if not peer.floor)]:
            for key, value in subject.run().items():
                wide = (
                    {"rtol": 1e-2, "atol": 1e-6}
                    if key == "grad_logits" and "bfloat16" in name
                    else {"rtol": 1e-5, "atol": 1e-7}
                )
                torch.testing.assert_close(value.double(), expected[key].double(), **wide)
