"""Golden vectors: one loader, one parametrization by the cases that the file holds.

A conformance module names its file in ``SLUG``; every test of it that takes ``case`` runs once per case found.
``INFOTORCH_GOLDEN`` names another folder of files with the same structure.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("INFOTORCH_GOLDEN") or Path(__file__).parent / "golden")


@dataclass
class Case:
    """Inputs, outputs and parameters of one case; it notes which outputs were compared."""

    name: str
    params: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    seen: set[str] = field(default_factory=set)

    def out(self, name: str) -> Any:
        """An expected output."""
        self.seen.add(name)
        return self.outputs[name]

    @property
    def empty(self) -> bool:
        """Whether the case has a mask under which there is no token."""
        masks = [x for name, x in self.inputs.items() if name.endswith("mask")]
        return bool(masks) and not any(mask.any() for mask in masks)

    @property
    def single(self) -> bool:
        """Whether some input is of single precision, masks aside."""
        values = [x for name, x in self.inputs.items() if isinstance(x, Tensor) and not name.endswith("mask")]
        return any(x.dtype == torch.float32 for x in values)

    def close(
        self, name: str, actual: Tensor, *, rtol: float = 1e-9, atol: float = 1e-10, where: Tensor | None = None
    ) -> None:
        """Assert that ``actual`` is the expected output ``name``.

        An empty mask gives 0 in the whole library, where most of the authors' code divides 0 by 0. ``where`` leaves
        entries out from which the library deviates on purpose: there it has to be finite.
        """
        expected = self.out(name)
        actual = torch.as_tensor(actual).detach()
        if self.empty and expected.is_floating_point():
            expected = expected.nan_to_num(nan=0.0)
        if where is not None:
            assert actual.isfinite().all(), f"{self.name}/{name}: ours is not finite"
            where = where.expand_as(expected)
            actual, expected = actual[where], expected[where]
        self.near(actual, expected, name, rtol=rtol, atol=atol)

    def near(
        self, actual: Tensor, expected: Tensor, name: str = "", *, rtol: float = 1e-9, atol: float = 1e-10
    ) -> None:
        """Assert that two tensors agree, within a wider tolerance than one for doubles where the case has singles."""
        if (self.single or expected.dtype == torch.float32) and max(rtol, atol) < 1e-6:
            rtol, atol = 1e-5, 1e-6
        actual = actual.to(expected.dtype)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda m: f"{self.name}/{name}: {m}")

    def allow_params(self, *names: str) -> None:
        """A parameter that the test does not know is a failure."""
        unknown = set(self.params) - set(names) - {"source", "note"}
        assert not unknown, f"{self.name}: parameters {sorted(unknown)} are not known to this test"

    def all_seen(self) -> None:
        """An output that the test did not compare is a failure."""
        missed = set(self.outputs) - self.seen
        assert not missed, f"{self.name}: outputs {sorted(missed)} were not compared"


def load(slug: str) -> dict[str, Case]:
    """All cases of a golden file."""
    cases: dict[str, Case] = {}
    with np.load(FOLDER / f"{slug}.npz", allow_pickle=False) as archive:
        for key in archive.files:
            name, _, rest = key.partition("/")
            case = cases.setdefault(name, Case(name, {}, {}, {}))
            if rest == "params":
                case.params = json.loads(str(archive[key]))
            else:
                direction, _, field_name = rest.partition("/")
                target = {"in": case.inputs, "out": case.outputs}[direction]
                value = archive[key]
                # Texts (answers, labels) stay numpy arrays.
                target[field_name] = value if value.dtype.kind == "U" else torch.as_tensor(value)
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = load(metafunc.module.SLUG)
        assert cases, f"{metafunc.module.SLUG}: the golden file holds no case"
        metafunc.parametrize("case", cases.values(), ids=cases.keys())
