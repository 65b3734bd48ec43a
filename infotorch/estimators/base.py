"""What all estimators share: the conventions of scikit-learn, without depending on it.

``__init__`` stores its arguments and does nothing else; ``fit`` returns the object; what is learned ends in an
underscore; ``get_params``, ``set_params`` and ``repr`` follow from the signature, so that ``sklearn.base.clone`` works.
Numbers come out as Python floats, in nats; arrays as numpy or tensors, whichever went in.

A new estimator is a class with a signature and one method:

>>> from torch import Tensor
>>> class Covariance(PairEstimator):
...     '''Covariance of two columns.'''
...
...     def __init__(self, scale: float = 1.0) -> None:
...         self.scale = scale
...
...     def _fit(self, x: Tensor, y: Tensor) -> Estimate:
...         return Estimate(float(self.scale * ((x - x.mean()) * (y - y.mean())).mean()))
>>> Covariance(scale=2.0).fit([0.0, 1.0], [0.0, 1.0])
Covariance(scale=2.0)
>>> _.mutual_information_
0.5
"""

from __future__ import annotations

import inspect
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from infotorch.core._checks import did_you_mean
from infotorch.estimators._samples import Sample, as_sample, same_kind


class EstimationWarning(UserWarning):
    """The estimate may be off; the text says why, and by how much where that is known."""


class NotFitted(ValueError, AttributeError):
    """A learned attribute was asked for before ``fit``."""


@dataclass(frozen=True)
class Estimate:
    """What ``_fit`` returns.

    Attributes:
        value: The estimate, nats (or the unit of the quantity).
        std_error: Its standard error; None where none was computed.
        interval: Confidence interval; None where none was computed.
        extra: Further learned attributes by name, without the underscore; tensors go back in the kind of the input.
    """

    value: float
    std_error: float | None = None
    interval: tuple[float, float] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Parameters:
    """Named options as scikit-learn has them, and learned attributes that are missed with a clear error."""

    @classmethod
    def _parameters(cls) -> dict[str, inspect.Parameter]:
        if cls.__init__ is object.__init__:
            return {}
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found):
            raise TypeError(f"{cls.__name__}: expected __init__ to name its parameters, got *args or **kwargs")
        return {p.name: p for p in found}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; with ``deep``, those of estimators among them too, as ``name__parameter``."""
        found: dict[str, Any] = {}
        for name in self._parameters():
            value = found[name] = getattr(self, name)
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                found |= {f"{name}__{key}": inner for key, inner in value.get_params().items()}
        return found

    def set_params(self, **params: Any) -> Self:
        """Change parameters; ``name__parameter`` reaches into an estimator that is a parameter.

        Raises:
            ValueError: A name that is no parameter.
        """
        known = self._parameters()
        for key, value in params.items():
            name, _, inner = key.partition("__")
            if name not in known:
                choices = f"expected one of {', '.join(known)}" if known else "expected no parameter"
                raise ValueError(f"{type(self).__name__}: {choices}; got {name!r}{did_you_mean(name, known)}")
            if inner:
                getattr(self, name).set_params(**{inner: value})
            else:
                setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, parameter in self._parameters().items()
            if repr(getattr(self, name)) != repr(parameter.default)
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_") and not name.startswith("_"):
            raise NotFitted(f"{type(self).__name__}: {name} is there after fit, which has not been called")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Estimator(Parameters, ABC):
    """Parameters, learned attributes and warnings of every estimator.

    Attributes:
        quantity: What is estimated; its value is the learned attribute of that name with an underscore.
        std_error_: Standard error, or None.
        interval_: Confidence interval ``(low, high)``, or None.
        warnings_: Texts of the warnings of the last fit.
        n_samples_: Number of points.
    """

    quantity: ClassVar[str] = "mutual_information"

    std_error_: float | None
    interval_: tuple[float, float] | None
    warnings_: tuple[str, ...]
    n_samples_: int

    @property
    def value_(self) -> float:
        """The estimate, whatever its quantity."""
        return getattr(self, f"{self.quantity}_")

    def __sklearn_is_fitted__(self) -> bool:
        return f"{self.quantity}_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags  # only scikit-learn calls this

        return Tags(estimator_type=None, target_tags=TargetTags(required=True))

    def _store(self, samples: Mapping[str, Sample], found: Estimate, caught: list[warnings.WarningMessage]) -> Self:
        """Put what was learned in the place of what an earlier fit had learned, and give its warnings."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        like = next(iter(samples.values()))
        setattr(self, f"{self.quantity}_", float(found.value))
        self.std_error_, self.interval_ = found.std_error, found.interval
        self.n_samples_ = len(like)
        for name, sample in samples.items():
            setattr(self, f"n_features_{name}_", sample.n_features)
        self.n_features_in_ = like.n_features
        for name, value in found.extra.items():
            setattr(self, f"{name}_", same_kind(value, like) if isinstance(value, Tensor) else value)
        own = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
        self.warnings_ = tuple(own)
        for text in own:
            warnings.warn(text, EstimationWarning, stacklevel=3)
        for other in caught:
            if not issubclass(other.category, UserWarning):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        return self


class SampleEstimator(Estimator):
    """Estimators of something of one variable: ``fit(x)``.

    Attributes:
        entropy_: The estimate in nats.
        n_features_x_: Columns of x.
    """

    quantity = "entropy"

    entropy_: float
    n_features_x_: int

    def fit(self, x: Any) -> Self:
        """Estimate from a sample.

        Args:
            x: Shape ``(n, d)`` or ``(n,)``: array, tensor, list or frame.

        Raises:
            TypeError: Types that are no numbers or categories.
            ValueError: Other shapes, values that are not finite, too few points.
        """
        sample = as_sample("x", x)
        with recorded() as caught:
            found = self._fit(self._prepare(sample))
        return self._store({"x": sample}, found, caught)

    def estimate(self, x: Any) -> float:
        """Fit and return the number."""
        return self.fit(x).value_

    def _prepare(self, sample: Sample) -> Tensor:
        """The variable as ``_fit`` wants it: here numbers, ``(n, d)`` float64."""
        return sample.values.double()

    @abstractmethod
    def _fit(self, x: Tensor) -> Estimate:
        """The estimate, as :meth:`PairEstimator._fit`."""


class PairEstimator(Estimator):
    """Estimators of something that two variables share: ``fit(x, y)``.

    Attributes:
        mutual_information_: The estimate in nats (subclasses with another ``quantity`` name it otherwise).
        n_features_x_: Columns of x.
        n_features_y_: Columns of y.
    """

    mutual_information_: float
    n_features_x_: int
    n_features_y_: int

    def fit(self, x: Any, y: Any) -> Self:
        """Estimate from paired samples.

        Args:
            x: Shape ``(n, d)`` or ``(n,)``: array, tensor, list or frame.
            y: Likewise.

        Raises:
            TypeError: Types that are no numbers or categories.
            ValueError: Different numbers of points, other shapes, values that are not finite, too few points.
        """
        samples = paired_samples(x=x, y=y)
        with recorded() as caught:
            found = self._fit(*(self._prepare(name, sample) for name, sample in samples.items()))
        return self._store(samples, found, caught)

    def estimate(self, x: Any, y: Any) -> float:
        """Fit and return the number."""
        return self.fit(x, y).value_

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        """One variable as ``_fit`` wants it: here numbers, ``(n, d)`` float64."""
        del name
        return sample.values.double()

    @abstractmethod
    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        """The estimate. Warnings raised in here are kept in ``warnings_`` and given as `EstimationWarning`."""


def paired_samples(**arrays: Any) -> dict[str, Sample]:
    """Checked samples by name, of one length and on one device.

    Raises:
        TypeError: As :func:`as_sample`.
        ValueError: As :func:`as_sample`; different lengths or devices.

    >>> paired_samples(x=[1.0, 2.0], y=[1.0])
    Traceback (most recent call last):
    ValueError: x, y: expected equal numbers of points, got 2 and 1
    """
    samples = {name: as_sample(name, x) for name, x in arrays.items()}
    names, lengths = ", ".join(samples), [len(s) for s in samples.values()]
    if len(set(lengths)) > 1:
        raise ValueError(f"{names}: expected equal numbers of points, got {' and '.join(map(str, lengths))}")
    devices = [str(s.values.device) for s in samples.values()]
    if len(set(devices)) > 1:
        raise ValueError(f"{names}: expected one device, got {' and '.join(devices)}")
    return samples


@contextmanager
def recorded() -> Iterator[list[warnings.WarningMessage]]:
    """Collect all warnings of a block instead of giving them, unless an error ends it."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    except Exception:
        for w in caught:
            warnings.warn(str(w.message), w.category, stacklevel=4)
        raise


def warn(text: str) -> None:
    """Warn that an estimate may be off."""
    warnings.warn(text, EstimationWarning, stacklevel=2)


def generator_of(random_state: int | None, purpose: str = "", device: torch.device | str = "cpu") -> torch.Generator:
    """A generator from a seed; None draws a new seed.

    Each ``purpose`` has a stream of its own, so that asking for one thing more does not change another.

    Raises:
        ValueError: A negative seed.
        TypeError: Not an int.

    >>> float(torch.rand((), generator=generator_of(0)))
    0.49625658988952637
    """
    generator = torch.Generator(device)
    if random_state is None:
        generator.seed()
        return generator
    if isinstance(random_state, bool) or not isinstance(random_state, int):
        raise TypeError(f"random_state: expected an int or None, got {type(random_state).__name__}")
    if random_state < 0:
        raise ValueError(f"random_state: expected a seed of at least 0, got {random_state}")
    return generator.manual_seed(random_state if not purpose else random_state ^ zlib.crc32(purpose.encode()))
