"""What holds for every estimator: the checks of scikit-learn that make sense for two samples."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

import infotorch.estimators as E
from infotorch.distributions import Normal, dense_covariance

x, y = (z.numpy() for z in Normal(dense_covariance(4, 0.6), 2).sample(120))
few_x, few_y = (x[:, 0] > 0).astype(int), (y[:, 0] > 0).astype(int) + (y[:, 1] > 1)
CASES = {
    E.KSG: (x, y),
    E.MixedKSG: (x, few_y),
    E.RossMI: (x, few_y),
    E.AtomicMI: (x[:, 0].round(1), y[:, 0]),
    E.ConditionalMI: (x[:, 0], y[:, 0], x[:, 1]),
    E.KLEntropy: (x,),
    E.GaussianMI: (x, y),
    E.CopulaMI: (x, y),
    E.MIST: (x, y),
    E.DiscreteMI: (few_x, few_y),
    E.DiscreteEntropy: (few_y,),
    E.TransferEntropy: (x[:, 0], y[:, 0]),
    E.DistanceCorrelation: (x, y),
    E.HSIC: (x, y),
}
every = pytest.mark.parametrize(("kind", "data"), CASES.items(), ids=lambda v: getattr(v, "__name__", ""))


def make(kind, **more):
    names = inspect.signature(kind).parameters
    options = {"resamples": 10, "permutations": 9, "check_bias": True} | more
    return kind(**{name: value for name, value in options.items() if name in names})


def learned(estimator):
    return {name: value for name, value in vars(estimator).items() if name.endswith("_")}


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value, dtype=object), np.asarray(b[name], dtype=object), err_msg=name)


def test_every_estimator_is_here():
    trained = {kind for kind in vars(E).values() if inspect.isclass(kind) and "neural" in kind.__module__}
    bases = {E.Estimator, E.PairEstimator, E.SampleEstimator}
    kinds = {k for k in vars(E).values() if inspect.isclass(k) and issubclass(k, E.Estimator)} - bases - trained
    assert kinds == set(CASES)


@every
def test_parameters_are_stored_and_nothing_else(kind, data):
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    assert vars(kind()) == defaults == kind().get_params()
    assert repr(kind()) == f"{kind.__name__}()"
    estimator = make(kind).fit(*data)
    twin = clone(estimator)
    assert twin.get_params() == estimator.get_params()
    assert not learned(twin)
    assert twin.set_params(confidence=0.5).confidence == 0.5
    assert eval(repr(twin), vars(E)).get_params() == twin.get_params()


@every
def test_fit(kind, data):
    estimator = make(kind)
    with pytest.raises(ValueError, match="is there after fit"):
        _ = estimator.value_
    before = [np.copy(z) for z in data]
    frozen = [z.copy() for z in data]
    for z in frozen:
        z.flags.writeable = False
    state = torch.random.get_rng_state()
    assert estimator.fit(*frozen) is estimator
    check_is_fitted(estimator)
    assert torch.equal(torch.random.get_rng_state(), state)
    for was, z in zip(before, frozen, strict=True):
        np.testing.assert_array_equal(was, z)
    assert type(estimator.value_) is float
    low, high = estimator.interval_
    assert low < estimator.value_ < high
    assert estimator.std_error_ is None if kind is E.MIST else estimator.std_error_ > 0
    assert estimator.n_samples_ == 120
    assert estimator.n_features_x_ == estimator.n_features_in_ == (1 if data[0].ndim == 1 else data[0].shape[1])
    assert estimator.estimate(*data) == estimator.value_


@every
def test_repeated_and_reloaded_fits_are_equal(kind, data):
    estimator = make(kind).fit(*data)
    first = learned(copy.deepcopy(estimator))
    same(first, learned(estimator.fit(*data)))
    same(first, learned(make(kind).fit(*data)))
    same(first, learned(pickle.loads(pickle.dumps(estimator))))
    other = make(kind, random_state=1).fit(*data)
    if not getattr(estimator, "noise", 0.0):
        assert other.value_ == estimator.value_
    assert other.std_error_ != estimator.std_error_ or kind is E.MIST  # which draws nothing for so few points
    fewer = make(kind, permutations=4).fit(*data)  # asking for less of one thing leaves the others alone
    assert fewer.std_error_ == estimator.std_error_


@every
def test_kinds_of_input(kind, data):
    by_numpy = make(kind).fit(*data)
    by_torch = make(kind).fit(*(torch.from_numpy(z) for z in data))
    by_list = make(kind).fit(*(z.tolist() for z in data))
    same(learned(by_numpy), learned(by_list))
    for name, value in learned(by_numpy).items():
        other = getattr(by_torch, name)
        assert isinstance(other, torch.Tensor) is isinstance(value, np.ndarray)
        np.testing.assert_array_equal(np.asarray(value, dtype=object), np.asarray(other, dtype=object))
    half = make(kind).fit(*(torch.from_numpy(z).float() if z.dtype.kind == "f" else torch.from_numpy(z) for z in data))
    assert half.value_ == pytest.approx(by_numpy.value_, abs=0.05)


@every
def test_bad_data(kind, data):
    if data[0].dtype.kind == "f":
        broken = data[0].copy()
        broken.flat[3] = np.inf
        with pytest.raises(ValueError, match="x: expected finite values, got 1 that are NaN or infinity"):
            make(kind).fit(broken, *data[1:])
    if len(data) > 1:
        with pytest.raises(ValueError, match=r"x, y.*: expected equal numbers of points, got 119 and 120"):
            make(kind).fit(data[0][1:], *data[1:])
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\) or \(n,\)"):
        make(kind).fit(data[0].reshape(120, -1, 1), *data[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(kind).fit(*data)


@every
def test_documentation(kind, data):
    text = inspect.getdoc(kind)
    if kind is not E.CopulaMI:  # "those of GaussianMI"
        for name in kind().get_params():
            assert f"\n    {name}: " in text, name
    assert f"{kind.quantity}_" in text or "Reference" in text
    assert ">>> " in text
