"""Fair models, the path of strengths, the report, and attributes at the border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import Trainer
from sklearn.base import clone
from torch import nn
from torch.utils.data import DataLoader

from infotorch.fairness import (
    Attributes,
    CCdCovPenalty,
    FairBatch,
    FairClassifier,
    FairModule,
    FairRegressor,
    fairness_report,
    held_out_loss,
    poisson_deviance,
    strength_path,
)


def gerrymandered(n: int = 1500, seed: int = 0):
    """A target that depends on the exclusive or of two attributes, and on each of them hardly."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, n), rng.integers(0, 2, n)
    p = (a ^ b) + 0.5 * rng.standard_normal(n)
    z = rng.standard_normal(n)
    y = z + 1.2 * p + 0.3 * rng.standard_normal(n)
    return np.stack((p, z), 1), y, {"a": a, "b": b}


QUICK = {"epochs": 5, "batch_size": 250, "hidden": (16,)}


def gap(model, data) -> float:
    x, _, attributes = data
    return fairness_report(model.predict(x), attributes).gap


def test_a_combination_is_hidden_from_single_attributes_only():
    data, test = gerrymandered(), gerrymandered(seed=1)
    gaps = {
        name: gap(FairRegressor(penalty=name, strength=20.0, **QUICK).fit(*data), test)
        for name in ("dcov", "correlation", "ccdcov", "jdcov")
    }
    plain = gap(FairRegressor(strength=0.0, **QUICK).fit(*data[:2]), test)
    assert gaps["dcov"] > 0.9 * plain
    assert gaps["correlation"] > 0.8 * plain  # its bias on a batch shrinks the prediction a little
    assert gaps["ccdcov"] < 0.75 * plain
    assert gaps["jdcov"] < 0.75 * plain


def test_regressor():
    x, y, attributes = gerrymandered(400)
    model = FairRegressor(**QUICK)
    twin = clone(model).fit(x, y, attributes)
    model.fit(x, y, attributes)
    np.testing.assert_array_equal(model.predict(x), twin.predict(x))
    assert isinstance(model.predict(torch.from_numpy(x)), torch.Tensor)
    assert model.attributes_ == ("a", "b")
    with pytest.raises(ValueError, match="X: expected 2 columns as in fit, got 1"):
        model.predict(x[:, :1])
    with pytest.raises(ValueError, match="is there after fit"):
        FairRegressor().predict(x)
    assert "penalty='jdcov'" in repr(FairRegressor(penalty="jdcov"))
    before = model.predict(x)
    assert not np.allclose(model.set_params(warm_start=True, strength=0.0).fit(x, y).predict(x), before)


def test_counts_with_exposure():
    rng = np.random.default_rng(0)
    x, exposure = rng.standard_normal((2000, 1)), rng.uniform(0.2, 2, 2000)
    rate = 0.3 * np.exp(0.5 * x[:, 0])
    y = rng.poisson(rate * exposure)
    model = FairRegressor(loss="poisson", strength=0.0, hidden=(), epochs=30).fit(x, y, exposure=exposure)
    assert np.abs(np.log(model.predict(x) / rate)).max() < 0.35
    assert np.sum(model.predict(x) * exposure) == pytest.approx(y.sum(), rel=0.05)
    with pytest.raises(ValueError, match="y: expected counts of at least 0"):
        FairRegressor(loss="poisson", strength=0.0).fit(x, y - 1.0)
    with pytest.raises(ValueError, match="exposure: expected 2000 positive numbers"):
        FairRegressor(loss="poisson", strength=0.0).fit(x, y, exposure=0 * exposure)


def test_classifier():
    x, y, attributes = gerrymandered(600)
    labels = np.where(y > 1, "yes", "no")
    model = FairClassifier(**QUICK).fit(x, labels, attributes)
    assert model.classes_.tolist() == ["no", "yes"]
    assert (model.predict(x) == labels).mean() > 0.7
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1, rtol=1e-6)
    three = np.digitize(y, (0, 1.5))
    several = FairClassifier(penalty="jdcov", **QUICK).fit(x, three, attributes)
    assert several.predict_proba(x).shape == (600, 3)
    assert (several.predict(x) == three).mean() > 0.5
    with pytest.raises(ValueError, match="y: expected at least two classes"):
        FairClassifier().fit(x, np.zeros(600), attributes)
    with pytest.raises(ValueError, match=r"y: expected labels among \['no', 'yes'\], got maybe"):
        held_out_loss(model, x[:2], ["no", "maybe"])


def test_own_network_and_penalty():
    x, y, attributes = gerrymandered(300)
    network = nn.Linear(2, 1)
    before = network.weight.clone()
    FairRegressor(hidden=network, penalty=CCdCovPenalty(scale="dcor"), epochs=1).fit(x, y, attributes)
    assert torch.equal(network.weight, before)


def test_bad_fits():
    x, y, attributes = gerrymandered(50)
    with pytest.raises(ValueError, match="attributes: expected columns by name, got None"):
        FairRegressor().fit(x, y)
    with pytest.raises(ValueError, match="X, y: expected equal numbers of rows, got 50 and 49"):
        FairRegressor().fit(x, y[1:], attributes)
    with pytest.raises(ValueError, match="attributes: expected 50 rows, as X has, got 49"):
        FairRegressor().fit(x, y, {"a": attributes["a"][1:]})
    with pytest.raises(ValueError, match="penalty: expected one of"):
        FairRegressor(penalty="dcor").fit(x, y, attributes)
    with pytest.raises(ValueError, match="batch_size: expected"):
        FairRegressor(batch_size=3).fit(x, y, attributes)


def test_path():
    x, y, attributes = gerrymandered(1200)
    model = FairRegressor(penalty="jdcov", **QUICK)
    model.epochs = 20
    path = strength_path(model, x, y, attributes, strengths=(0.0, 5.0, 40.0))
    assert model.strength == 1.0
    loss, js = ([getattr(p, name) for p in path.points] for name in ("loss", "js"))
    assert js[0] > js[2]
    assert loss[0] < loss[2]
    assert path.points[0] in path.front()
    chosen = path.choose(js=(js[0] + js[2]) / 2)
    assert chosen.strength > 0
    assert path.choose(share=1.0).strength == 0
    with pytest.raises(ValueError, match="try greater strengths"):
        path.choose(js=0.0)
    with pytest.raises(ValueError, match="js, share: expected exactly one"):
        path.choose()
    with pytest.raises(ValueError, match="strengths: expected numbers that increase from 0"):
        strength_path(model, x, y, attributes, strengths=(1.0, 2.0))


def test_report(tmp_path):
    x, y, attributes = gerrymandered(2000)
    found = fairness_report(x[:, 0], attributes | {"age": x[:, 1]}, y, parts=2)
    assert len(found.groups) == 6
    assert len(found.intersections) == 8
    assert sum(r.share for r in found.intersections) == pytest.approx(1)
    assert sum(r.share * r.gap for r in found.intersections) == pytest.approx(0, abs=1e-9)
    assert found.remainder == pytest.approx(found.joint - found.marginal)
    assert found.js > 5 * found.js_chance
    assert "a=0, b=1" in fairness_report(x[:, 0], attributes).table()
    fair = fairness_report(x[:, 1], attributes | {"age": x[:, 1]}, y, parts=2)
    assert fair.plot(tmp_path / "fair.png", before=found).stat().st_size > 1000
    with pytest.raises(ValueError, match="before: expected a report of the same groups"):
        found.plot(tmp_path / "no.png", before=fairness_report(x[:, 0], attributes))
    with pytest.raises(ValueError, match=r"prediction: expected shape \(2000,\) as the attributes"):
        fairness_report(x, attributes)
    weighted = fairness_report(x[:, 0], attributes, exposure=1.0 + attributes["a"])
    share = {r.group: r.share for r in weighted.groups}
    assert share["a=1"] / share["a=0"] == pytest.approx(2 * attributes["a"].mean() / (1 - attributes["a"].mean()))


def test_attributes():
    found = Attributes.of({"race": np.array(["x", "y", "x"]), "old": [True, False, True], "age": [20.0, 30.0, 70.0]})
    assert found.levels == {"race": ("x", "y"), "old": ("0", "1")}
    assert abs(float(found.columns["age"].mean())) < 1e-12
    assert float(found.columns["age"].std(correction=0)) == pytest.approx(1)
    assert found.groups("age", bins=3)[1] == ("age part 1 of 3", "age part 2 of 3", "age part 3 of 3")
    for bad, message in (
        ({"sex": ["f", "f"]}, r"attributes\['sex'\]: expected at least two levels, got 1"),
        ({"age": [1.0, float("nan")]}, r"attributes\['age'\]: expected finite values"),
        ({"a": [0, 1], "b": [0, 1, 1]}, "attributes: expected equal lengths"),
        ({"a": np.zeros((2, 2))}, r"attributes\['a'\]: expected one column, got 2"),
        ({}, "attributes: expected at least one, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            Attributes.of(bad)
    with pytest.raises(TypeError, match="attributes: expected columns by name, got list"):
        Attributes.of([[0, 1]])
    with pytest.raises(ValueError, match="names: expected some of race, old, age, got 'sex'"):
        found.groups("sex")


def test_module_resumes_exactly(tmp_path):
    x, y, attributes = gerrymandered(200)
    data = FairBatch(
        torch.from_numpy(x).float(),
        torch.from_numpy(y).float(),
        torch.ones(200),
        list(map(torch.from_numpy, attributes.values())),
    )
    batches = [
        FairBatch(data.x[r], data.y[r], data.exposure[r], [a[r] for a in data.attributes])
        for r in torch.arange(200).split(50)
    ]

    def run(folder, epochs, path=None):
        torch.manual_seed(0)
        module = FairModule(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), CCdCovPenalty(), strength=2.0)
        trainer = Trainer(
            default_root_dir=folder, max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=path, weights_only=False)
        return module, trainer

    whole, _ = run(tmp_path, 4)
    _, halted = run(tmp_path, 2)
    halted.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(tmp_path, 4, tmp_path / "half.ckpt")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_poisson_deviance():
    batch = FairBatch(torch.zeros(3, 1), torch.tensor([0.0, 1.0, 4.0]), torch.tensor([1.0, 2.0, 0.5]), [])
    output = torch.tensor([[0.0], [-1.0], [2.0]], requires_grad=True)
    mean = batch.exposure * output.squeeze(1).exp()
    expected = 2 * (torch.special.xlogy(batch.y, batch.y / mean) - batch.y + mean).mean()
    torch.testing.assert_close(poisson_deviance(output, batch), expected)
    assert torch.autograd.grad(poisson_deviance(output, batch), output)[0].isfinite().all()
