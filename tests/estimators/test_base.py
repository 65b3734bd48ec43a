"""estimators.base: the conventions of scikit-learn, and what may go in."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from infotorch.estimators._samples import as_sample
from infotorch.estimators.base import Estimate, EstimationWarning, NotFitted, PairEstimator, generator_of


class Share(PairEstimator):
    """Not an estimate of anything."""

    def __init__(self, scale=1.0, inner=None, random_state=0):
        self.scale, self.inner, self.random_state = scale, inner, random_state

    def _fit(self, x, y):
        warnings.warn("half of it is missing")
        warnings.warn("half of it is missing")
        return Estimate(self.scale * float((x * y).mean()), 0.1, (0.0, 1.0), {"parts": x * y})


def fitted(*arguments, **options):
    with pytest.warns(EstimationWarning, match="half of it is missing"):
        return Share(**options).fit(*arguments)


def test_parameters():
    share = Share(scale=2.0, inner=Share(scale=3.0))
    assert share.get_params(deep=False) == {"scale": 2.0, "inner": share.inner, "random_state": 0}
    assert share.get_params()["inner__scale"] == 3.0
    assert share.set_params(inner__scale=4.0, random_state=None) is share
    assert share.inner.scale == 4.0
    assert share.random_state is None
    assert repr(Share()) == "Share()"
    assert repr(share) == "Share(scale=2.0, inner=Share(scale=4.0), random_state=None)"
    with pytest.raises(ValueError, match=r"Share: expected one of scale, inner, random_state; got 'scal' \(did you"):
        share.set_params(scal=1)
    twin = clone(share)
    assert twin is not share
    assert repr(twin) == repr(share)
    assert twin.inner is not share.inner


def test_fitted_and_not():
    share = Share()
    with pytest.raises(NotFitted, match="Share: mutual_information_ is there after fit"):
        _ = share.mutual_information_
    assert not hasattr(share, "interval_")
    with pytest.raises(NotFittedError):
        check_is_fitted(share)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = share.other
    share = fitted([1.0, 2.0], [1.0, 3.0])
    check_is_fitted(share)
    assert share.mutual_information_ == share.value_ == 3.5
    assert type(share.value_) is float
    assert (share.std_error_, share.interval_, share.warnings_) == (0.1, (0.0, 1.0), ("half of it is missing",))
    assert (share.n_samples_, share.n_features_x_, share.n_features_y_, share.n_features_in_) == (2, 1, 1, 1)
    for twin in (copy.deepcopy(share), pickle.loads(pickle.dumps(share))):
        assert twin.value_ == 3.5
    assert not hasattr(clone(share), "value_")
    with pytest.warns(EstimationWarning):
        assert share.estimate([[1.0, 0.0]], [[1.0, 1.0]]) == 0.5
    assert (share.n_samples_, share.n_features_x_) == (1, 2)


def test_kinds_come_back():
    x, y = np.array([1.0, 2.0], dtype=np.float32), np.array([1, 3])
    by_numpy = fitted(x, y)
    by_torch = fitted(torch.from_numpy(x), torch.from_numpy(y))
    assert isinstance(by_numpy.parts_, np.ndarray)
    assert isinstance(by_torch.parts_, torch.Tensor)
    np.testing.assert_array_equal(by_numpy.parts_, by_torch.parts_)
    assert by_numpy.value_ == by_torch.value_


def test_samples_by_type():

    for x, discrete in (
        (np.array([1, 2], dtype=np.uint8), True),
        (np.array([True, False]), True),
        ([1.0, 2.0], False),
        (np.array([1.0, 2.0], dtype=np.float16), False),
        (torch.tensor([1, 2], dtype=torch.int8), True),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True), False),
        (pandas.Series([1.0, 2.0]), False),
        (pandas.Series(["a", "b"], dtype="category"), True),
        (pandas.DataFrame({"a": [1, 2], "b": [True, False]}), True),
    ):
        sample = as_sample("x", x)
        assert sample.discrete is discrete
        assert sample.values.dtype == (torch.int64 if discrete else torch.float64)
        assert not sample.values.requires_grad
        assert sample.values.ndim == 2
    objects = as_sample("x", np.array([["b", 1], ["a", "1"], ["b", 1]], dtype=object)).values
    assert objects.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_input_is_left_alone():
    x, y = np.array([1.0, 2.0]), np.array([1.0, 3.0])
    x.flags.writeable = False
    before = x.copy(), y.copy()
    fitted(x, y).parts_[:] = 0
    np.testing.assert_array_equal((x, y), before)


def test_errors():
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points, got 2 and 3"):
        Share().fit([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="y: expected finite values, got 1 that are NaN or infinity"):
        Share().fit([1.0, 2.0], [1.0, float("nan")])
    with pytest.raises(ValueError, match="x: expected no missing values, got 2"):
        as_sample("x", np.array(["a", None, float("nan")], dtype=object))
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\) or \(n,\), not empty, got \(2, 1, 1\)"):
        as_sample("x", np.zeros((2, 1, 1)))
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\) or \(n,\), not empty, got \(0, 1\)"):
        as_sample("x", [])
    with pytest.raises(TypeError, match=r"x: expected real numbers, got torch\.complex128"):
        as_sample("x", np.array([1j]))
    with pytest.raises(TypeError, match="x: expected numbers, booleans or strings, got datetime64"):
        as_sample("x", np.array(["2020-01-01"], dtype="datetime64[D]"))

    with pytest.raises(TypeError, match="x: expected columns of one type, got categories, numbers; pass them apart"):
        as_sample("x", pandas.DataFrame({"a": [1.0], "b": ["u"]}))
    with pytest.raises(TypeError, match="random_state: expected an int or None, got float"):
        generator_of(0.5)
    with pytest.raises(ValueError, match="random_state: expected a seed of at least 0, got -1"):
        generator_of(-1)
