"""Attributes at the border, training, data parallelism and resumption."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from joined import Joined
from lightning import Trainer
from sklearn.base import clone, is_classifier, is_regressor
from torch import nn
from torch.utils.data import DataLoader

from infotorch.core import distributed
from infotorch.estimators.base import NotFitted
from infotorch.fairness import (
    DependencePenalty,
    FairBatch,
    FairClassifier,
    FairModule,
    FairRegressor,
    batch_loader,
    ccdcov_penalty,
    encode_attributes,
    poisson_deviance,
)


def xor(n: int = 1200, seed: int = 0):
    """A target that follows the combination of two coins."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (n,), generator=g) for _ in range(2))
    x = torch.stack(((a ^ b) + 0.5 * torch.randn(n, generator=g), torch.randn(n, generator=g)), 1)
    return x, x @ torch.tensor([1.2, 1.0]) + 0.3 * torch.randn(n, generator=g), {"a": a, "b": b}


# -- attributes ----------------------------------------------------------------------------------------------------


def test_kinds_are_detected_or_said():
    rng = np.random.default_rng(0)
    table = {
        "sex": ["f", "m"] * 30,
        "race": rng.integers(0, 4, 60),
        "age": np.arange(60),
        "income": rng.normal(50, 9, 60).round(),  # whole, but floats
        "member": [True, False, False] * 20,
    }
    found = encode_attributes(table)
    assert set(found.units) == {"age", "income"}
    assert found.levels["sex"] == ("f", "m")
    assert found.columns["race"].dtype == torch.int64
    assert float(found.columns["age"].std(correction=0)) == pytest.approx(1.0)
    assert found.units["age"] == pytest.approx((29.5, np.arange(60).std()))
    other = encode_attributes(table, kinds={"race": "continuous", "age": "categorical"})
    assert set(other.units) == {"race", "income"}
    assert encode_attributes(found) is found
    assert encode_attributes(torch.arange(4.0)).names == ("0",)
    assert encode_attributes(np.array([[0, 1], [1, 0]])).names == ("0", "1")


def test_a_frame_is_its_columns():
    pandas = pytest.importorskip("pandas")
    table = {"sex": ["f", "m", "m"], "age": [20.0, 30.0, 40.0]}
    frame, plain = encode_attributes(pandas.DataFrame(table)), encode_attributes(table)
    assert frame.levels == plain.levels
    assert all(torch.equal(x, y) for x, y in zip(frame.tensors, plain.tensors, strict=True))


def test_groups():
    found = encode_attributes({"a": ["x", "y"] * 4, "s": torch.arange(8.0)})
    cell, names = found.groups("s", parts=2)
    assert cell.tolist() == [0] * 4 + [1] * 4
    assert names == ["s < 4", "s >= 4"]
    cell, names = found.groups(parts=2)
    assert names[0] == "a=x, s < 4"
    assert torch.bincount(cell).tolist() == [2, 2, 2, 2]
    assert found.rows(torch.tensor([0, 2])).columns["a"].tolist() == [0, 0]
    skewed = encode_attributes({"s": torch.tensor([0.0] * 9 + [1.0])})
    assert skewed.groups(parts=4)[1] == ["s: any"]


@pytest.mark.parametrize(
    ("attributes", "error", "text"),
    [
        ({"a": [1, 1, 1]}, ValueError, r"attributes\['a'\]: expected at least two levels, got 1"),
        ({"a": [0.5, math.nan, 1.0]}, ValueError, r"attributes\['a'\]: expected no missing or infinite values, got 1"),
        ({"a": [0.5, math.inf, 1.0]}, ValueError, "expected no missing or infinite values, got 1"),
        ({"a": ["x", None, "y"]}, ValueError, "expected no missing"),
        ({"a": [0, 1], "b": [0, 1, 1]}, ValueError, "attributes: expected equal lengths, got"),
        ({}, ValueError, "attributes: expected at least one"),
        (3, TypeError, "attributes: expected columns by name, a frame or an array, got int"),
        (torch.zeros(2, 2, 2), ValueError, r"attributes: expected shape \(n,\) or \(n, d\)"),
    ],
)
def test_bad_attributes_are_refused(attributes, error, text):
    with pytest.raises(error, match=text):
        encode_attributes(attributes)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"kinds: no attribute 'sexe' .did you mean 'sex'"):
        encode_attributes({"sex": [0, 1]}, kinds={"sexe": "categorical"})
    with pytest.raises(ValueError, match="expected one of continuous, categorical"):
        encode_attributes({"sex": [0, 1]}, kinds={"sex": "ordinal"})
    with pytest.raises(ValueError, match="parts: expected"):
        encode_attributes({"sex": [0, 1]}).groups(parts=1)


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["ccdcov", "jdcov"])
def test_joint_penalties_cure_what_the_sum_leaves(penalty):
    x, y, s = xor(3000)
    cell = 2 * s["a"] + s["b"]

    def gap(model: FairRegressor) -> float:
        f = model.fit(x, y, s).predict(x)
        means = torch.stack([f[cell == k].mean() for k in range(4)])
        return float(means.max() - means.min())

    options = {"epochs": 12, "batch_size": 500}
    free = gap(FairRegressor(strength=0.0, **options))
    assert gap(FairRegressor(penalty="marginal", strength=20.0, **options)) > 0.9 * free
    assert gap(FairRegressor(penalty=penalty, strength=20.0, **options)) < 0.8 * free


def test_objective_is_loss_plus_penalty():
    x, y, s = xor(50)
    module = FairModule(nn.Linear(2, 1), DependencePenalty("ccdcov"), strength=3.0)
    batch = FairBatch(x, y, list(s.values()), torch.linspace(0.5, 1.5, 50))
    f = module(x)
    by_hand = (batch.weights * (f - y).square()).mean() + 3 * ccdcov_penalty(f, list(s.values()))
    torch.testing.assert_close(module.training_step(batch, 0), by_hand)


def test_poisson_deviance_is_that_of_scikit_learn():
    from sklearn.metrics import mean_poisson_deviance

    g = torch.Generator().manual_seed(0)
    score, y = torch.randn(50, generator=g), torch.poisson(torch.ones(50), generator=g)
    expected = mean_poisson_deviance(y.numpy(), score.exp().numpy())
    assert float(poisson_deviance(score, y).mean()) == pytest.approx(expected, rel=1e-5)


def test_frequencies_with_exposures_find_the_rate():
    g = torch.Generator().manual_seed(0)
    exposure = 0.1 + torch.rand(4000, generator=g)
    a = torch.randint(2, (4000,), generator=g)
    x = torch.randn(4000, 1, generator=g)
    claims = torch.poisson(exposure * (0.3 * x[:, 0] - 1).exp(), generator=g)
    model = FairRegressor(likelihood="poisson", strength=0.0, hidden=(), epochs=30)
    model.fit(x, claims / exposure, {"a": a}, exposure)
    slope = (model.predict(torch.tensor([[1.0], [0.0]])).log().diff()).item()
    assert -slope == pytest.approx(0.3, abs=0.08)
    assert 0 < model.score(x, claims / exposure, exposure) < 0.2


def test_same_seed_same_model_and_torch_is_left_alone():
    x, y, s = xor(200)
    state = torch.get_rng_state()
    first, second = (FairRegressor(epochs=2).fit(x, y, s).predict(x) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, FairRegressor(epochs=2, random_state=1).fit(x, y, s).predict(x))


def test_warm_start_goes_on():
    x, y, s = xor(400)
    model = FairRegressor(epochs=3, warm_start=True).fit(x, y, s)
    start = model.loss(x, y)
    model.set_params(strength=0.0, penalty="jdcov").fit(x, y, s)
    assert model.module_.penalty.options.name == "jdcov"
    assert [row["strength"] for row in model.history_] == [1.0] * 3 + [0.0] * 3
    assert model.loss(x, y) < start
    assert len(model.set_params(warm_start=False).fit(x, y, s).history_) == 3


def test_labels_of_any_kind_and_many_classes():
    x, y, s = xor(300)
    binary = FairClassifier(epochs=2, penalty="jdcov").fit(x.numpy(), np.where(y > 0.6, "yes", "no"), s)
    assert binary.classes_.tolist() == ["no", "yes"]
    assert isinstance(binary.predict_proba(x.numpy()), np.ndarray)
    assert binary.score(x, np.where(y > 0.6, "yes", "no")) > 0.5
    many = FairClassifier(epochs=2).fit(x, (2 * y).round().clamp(0, 2).long(), s)
    torch.testing.assert_close(many.predict_proba(x).sum(1), torch.ones(300))
    assert set(many.predict(x)) <= {0, 1, 2}


def test_conventions_of_scikit_learn():
    model = FairRegressor(penalty="jdcov", strength=2.0)
    assert repr(model) == "FairRegressor(penalty='jdcov', strength=2.0)"
    assert clone(model).get_params() == model.get_params()
    assert is_regressor(model)
    assert is_classifier(FairClassifier())
    with pytest.raises(NotFitted, match="module_ is there after fit"):
        model.predict(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="did you mean 'strength'"):
        model.set_params(strenght=1.0)


def test_own_network_is_copied():
    x, y, s = xor(100)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    before = network[0].weight.clone()
    FairRegressor(hidden=network, epochs=2).fit(x, y, s)
    assert torch.equal(network[0].weight, before)


X, Y, S = xor(40)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: FairRegressor().fit(X, Y[:-1], S), ValueError, r"X, y, attributes: expected equal .* \[40, 39, 40\]"),
        (lambda: FairRegressor().fit(X, Y, S, -Y.abs()), ValueError, "sample_weight: expected positive"),
        (lambda: FairRegressor().fit(X[:3], Y[:3], {"a": [0, 1, 0]}), ValueError, "X: expected at least 4 rows, got 3"),
        (lambda: FairRegressor().fit(X * math.nan, Y, S), ValueError, "X: expected finite"),
        (lambda: FairRegressor().fit(X, Y * math.nan, S), ValueError, "y: expected finite"),
        (lambda: FairRegressor().fit(X, X, S), ValueError, r"y: expected shape \(n,\)"),
        (lambda: FairRegressor(likelihood="poisson").fit(X, Y - 9, S), ValueError, "y: expected non-negative"),
        (lambda: FairRegressor(likelihood="poison").fit(X, Y, S), ValueError, "did you mean 'poisson'"),
        (lambda: FairRegressor(penalty="jdcof").fit(X, Y, S), ValueError, "penalty: .*did you mean 'jdcov'"),
        (lambda: FairRegressor(scale="sd").fit(X, Y, S), ValueError, "scale: expected one of"),
        (lambda: FairRegressor(strength=-1.0).fit(X, Y, S), ValueError, "strength: expected"),
        (lambda: FairRegressor(epochs=0).fit(X, Y, S), ValueError, "epochs: expected"),
        (lambda: FairRegressor(batch_size=3).fit(X, Y, S), ValueError, "batch_size: expected"),
        (lambda: FairRegressor(learning_rate=0.0).fit(X, Y, S), ValueError, "learning_rate: expected"),
        (lambda: FairClassifier().fit(X, torch.ones(40), S), ValueError, "y: expected at least two classes"),
        (lambda: FairClassifier().fit(X, Y * math.nan, S), ValueError, "y: expected no missing labels"),
        (
            lambda: FairClassifier(epochs=1).fit(X, Y > 0, S).loss(X, torch.full((40,), 7)),
            ValueError,
            "y: expected labels among",
        ),
        (lambda: FairRegressor(epochs=1).fit(X, Y, S).predict(X[:, :1]), ValueError, "X: expected 2 columns"),
        (lambda: batch_loader(X, Y[1:], []), ValueError, "expected equal numbers of rows"),
    ],
)
def test_bad_input_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


# -- Lightning -----------------------------------------------------------------------------------------------------


def trainer(**options) -> Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    return Trainer(**{"accelerator": "cpu", "devices": 1, **dict.fromkeys(quiet, False), **options})


def make_module(**options) -> FairModule:
    torch.manual_seed(0)
    return FairModule(
        nn.Linear(2, 1).double(), DependencePenalty("ccdcov", **options), strength=2.0, learning_rate=0.01
    )


@pytest.mark.filterwarnings("ignore")
def test_module_resumes_exactly(tmp_path):
    x, y, s = xor(100)
    loader = lambda: batch_loader(x.double(), y.double(), list(s.values()), batch_size=32, seed=1)  # noqa: E731
    straight = make_module()
    trainer(max_epochs=4).fit(straight, loader())
    first = make_module()
    half = trainer(max_epochs=2)
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    second = make_module()
    trainer(max_epochs=4).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert second.history == straight.history
    assert len(second.history) == 4
    for one, other in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def train_on_ranks() -> list[torch.Tensor]:
    """Three steps, each on all 100 rows, half of them on each of two processes."""
    warnings.filterwarnings("ignore")
    x, y, s = xor(100)
    world = distributed.world_size()
    rows = slice(distributed.rank() * 100 // world, (distributed.rank() + 1) * 100 // world)
    batch = FairBatch(x[rows].double(), y[rows].double(), [column[rows] for column in s.values()])
    module = make_module(across_ranks=True)
    more = {"strategy": "ddp", "devices": world, "plugins": [Joined()]} if world > 1 else {}
    trainer(max_epochs=3, use_distributed_sampler=False, **more).fit(module, DataLoader([batch], batch_size=None))
    return [p.detach() for p in module.parameters()]


def test_two_processes_train_like_one(run_distributed):
    whole = train_on_ranks()
    for found in run_distributed(train_on_ranks, 2):
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other)
