"""estimate_all: which estimators run, what is said about them, which is recommended."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas
import pytest
import torch

from infotorch.distributions.tasks import beyond_normal_tasks
from infotorch.estimators import KSG, EstimationWarning, GaussianMI, estimate_all

TASKS = beyond_normal_tasks()


@pytest.fixture(scope="module")
def plain():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return estimate_all(*TASKS["1v1-normal-0.75"].sample(300), permutations=19)


def test_continuous(plain):
    assert (plain.x_type, plain.y_type, plain.n) == ("continuous", "continuous", 300)
    assert {"KSG", "KSG variant 2", "MixedKSG", "GaussianMI", "CopulaMI", "MIST", "DistanceCorrelation", "HSIC"} <= {
        r.name for r in plain.results
    }
    assert plain["KSG"].value == KSG().estimate(*TASKS["1v1-normal-0.75"].sample(300))
    assert plain.recommended == "KSG"
    assert plain.disagreements == ()
    for r in plain.results:
        assert r.interval[0] < r.value < r.interval[1]
        assert r.p_value == (None if r.name == "MIST" else 0.05)  # it has no test
        assert r.seconds > 0
    with pytest.raises(KeyError, match="'KGS': expected one of KSG"):
        _ = plain["KGS"]


def test_table_and_dict(plain):
    table = plain.table()
    lines = table.splitlines()
    assert lines[1].startswith(f"* KSG                  {plain['KSG'].value:.3f}")
    assert sum("not in nats" in line for line in lines) == 2
    assert "quote KSG: it assumes no shape" in table
    assert len({line.index(" 0.05") for line in lines[1:10] if "MIST" not in line}) == 1
    record = json.loads(json.dumps(plain.to_dict()))
    assert record["results"][0]["value"] == plain["KSG"].value
    assert record["results"][0]["interval"] == list(plain["KSG"].interval)
    assert record["recommended"] == "KSG"


def test_heavy_tails():
    found = estimate_all(*TASKS["student-identity-1-1-1"].sample(500))
    assert found.recommended == "KSG normal scores"
    assert ("KSG normal scores", "CopulaMI") in found.disagreements
    assert not any("normal_scores" in text for text in found["DistanceCorrelation"].warnings)
    assert found.table().count("x: column 0 has heavy tails") == 1


def test_high_dimension():
    found = estimate_all(*TASKS["multinormal-dense-25-25-0.5"].sample(300), confidence=None)
    assert found.recommended == "CopulaMI"
    assert found["CopulaMI"].value > found["KSG"].value + 0.2
    assert "25 + 25 dimensions" in found.table()
    x, y = torch.randn(2, 200, 20, generator=torch.Generator().manual_seed(0))
    found = estimate_all(x, y)
    assert found.recommended is None
    assert "quote none: nearest neighbors fall short" in found.table()


def test_types():
    x, y = (z[:, 0] for z in TASKS["1v1-normal-0.75"].sample(200))
    label = x > 0
    one, other = estimate_all(label, y), estimate_all(y, label)
    assert one.recommended == other.recommended == "RossMI"
    assert one["RossMI"].value == other["RossMI"].value
    assert (one.x_type, one.y_type, other.x_type) == ("discrete", "continuous", "continuous")
    both = estimate_all(label.numpy(), np.where(y > 0, "up", "down"))
    assert both.recommended == "DiscreteMI grassberger"
    assert len(both.results) == 7
    whole = (3 * y).round()
    assert estimate_all(x, whole).y_type == "continuous"  # few values, and yet floats
    counted = estimate_all(x, whole, y_type="discrete")
    assert counted.y_type == "discrete"
    assert not any("floats given" in text for r in counted.results for text in r.warnings)
    back = estimate_all(x, whole.long(), y_type="continuous")
    assert back["MixedKSG"].value == estimate_all(x, whole)["MixedKSG"].value
    sparse = estimate_all(torch.arange(200) // 2, label)
    assert sparse.recommended == "DiscreteMI adjusted"


def test_text():
    x, y = (z[:, 0] for z in TASKS["1v1-normal-0.75"].sample(100))
    found = estimate_all([f"{v:.17g}" for v in x.tolist()], y, confidence=None)
    assert found.x_type == "continuous"
    assert found.notes == ("x: text read as continuous numbers",)
    assert found["KSG"].value == pytest.approx(estimate_all(x, y, confidence=None)["KSG"].value)
    frame = pandas.Series(np.where(x > 0, "a", "b"))
    assert estimate_all(frame, y, confidence=None).x_type == "discrete"
    with pytest.raises(TypeError, match="x_type: expected discrete for text, got continuous"):
        estimate_all(frame, y, x_type="continuous")
    with pytest.raises(ValueError, match="x_type: expected one of continuous, discrete; got 'number'"):
        estimate_all(x, y, x_type="number")


def test_failures_are_results():
    x, y = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(0))
    found = estimate_all(x, y, confidence=None)
    assert found["GaussianMI"].value is None
    assert "expected more points than columns" in found["GaussianMI"].failure
    assert "failed" in found.table()
    json.dumps(found.to_dict())
    with pytest.raises(ValueError, match="x: expected finite values"):
        estimate_all(x.log(), y)
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points"):
        estimate_all(x, y[:5])


def test_own_choice_and_bar(capsys):
    data = TASKS["1v1-normal-0.75"].sample(100)
    found = estimate_all(*data, estimators={"linear": GaussianMI(confidence=None)}, progress=True)
    assert [r.name for r in found.results] == ["linear"]
    assert found.recommended == "linear"
    assert "estimators" in capsys.readouterr().err


def test_neural_bounds_are_opt_in(monkeypatch):
    import infotorch.estimators.neural as neural

    class Quick(GaussianMI):
        pass

    for name in ("InfoNCE", "NWJ", "SMILE"):
        monkeypatch.setattr(neural, name, type(name, (Quick,), {}))
    data = TASKS["1v1-normal-0.75"].sample(100)
    names = {r.name for r in estimate_all(*data, neural=True).results}
    assert {"InfoNCE", "NWJ", "SMILE"} <= names
    assert not {"InfoNCE", "NWJ", "SMILE"} & {r.name for r in estimate_all(*data).results}


def test_warnings_stay_in_the_record():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimationWarning)
        found = estimate_all(torch.ones(50), torch.randn(50, generator=torch.Generator().manual_seed(0)))
    assert found["KSG"].value == 0
    assert "constant columns" in found["KSG"].warnings[0]


def test_rounded_numbers_and_zeros():
    """Nearest neighbors are misled by ties: what is recommended is not."""
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(2, 1000, generator=generator, dtype=torch.float64) * 20).round() / 20
    found = estimate_all(x, y, confidence=None)
    assert found["KSG"].value > 0.15
    assert found.recommended == "AtomicMI"
    assert "values repeat" in found.reason
    for name in ("AtomicMI", "KSG with noise"):
        assert abs(found[name].value) < 0.06
    pairs = torch.randn(1000, generator=generator, dtype=torch.float64)
    wide = estimate_all(torch.stack((x, pairs), 1), y, confidence=None)
    assert wide.recommended == "KSG with noise"
    assert abs(wide["KSG with noise"].value) < 0.1
    zeros = torch.stack((x.clamp(min=0), pairs), 1)
    assert estimate_all(zeros, y, confidence=None).recommended is None
