"""From checked options to a number: which function of the core a penalty calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core import dependence as D
from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core.dependence._variables import Variable, as_weights
from infotorch.core.dependence.distance import result_dtype

MEASURES = ("marginal", "jdcov", "ccdcov", "correlation")
SCALES = ("none", "std", "dcor")


@dataclass(frozen=True)
class Options:
    """What a penalty measures.

    Attributes:
        name: One of `MEASURES`.
        unbiased: U-statistic in place of the V-statistic.
        scale: One of `SCALES`.
        c: Weight of low orders, for ``"jdcov"``.
        exponent: Power of the distances.
    """

    name: str
    unbiased: bool = True
    scale: str = "none"
    c: float = 1.0
    exponent: float = 1.0

    def check(self) -> Options:
        """Refuse what is out of range."""
        check_choice("measure", self.name, MEASURES)
        check_choice("scale", self.scale, SCALES)
        check_range("c", self.c, 0.0, math.inf, low_open=True, high_open=True)
        check_range("exponent", self.exponent, 0.0, 2.0, low_open=True, high_open=True)
        return self


def check_inputs(
    prediction: Tensor, attributes: Sequence[Tensor] | Tensor, weights: Tensor | None, *, unbiased: bool
) -> list[Tensor]:
    """Shapes and types; values are looked at by the core."""
    if not check_tensor("prediction", prediction).is_floating_point():
        raise TypeError(f"prediction: expected a floating-point tensor, got {prediction.dtype}")
    if prediction.ndim not in (1, 2):
        raise ValueError(f"prediction: expected shape (n,) or (n, classes), got {tuple(prediction.shape)}")
    found = [attributes] if isinstance(attributes, Tensor) else list(attributes)
    if not found:
        raise ValueError("attributes: expected at least one tensor, got none")
    n = len(prediction)
    for k, attribute in enumerate(found):
        if len(check_tensor(f"attributes[{k}]", attribute)) != n:
            raise ValueError(
                f"attributes[{k}]: expected as many rows as prediction has, {n}, got shape {tuple(attribute.shape)}"
            )
    if unbiased and n < 4:
        raise ValueError(
            f"prediction: expected at least 4 rows for the unbiased statistic, got {n} (unbiased=False takes fewer)"
        )
    if unbiased and weights is not None:
        raise ValueError(
            "weights: expected None for the unbiased statistic, got a tensor (unbiased=False takes weights)"
        )
    return [attribute.detach() for attribute in found]


def measure(prediction: Tensor, attributes: Sequence[Tensor], weights: Tensor | None, options: Options) -> Tensor:
    """The penalty, 0-d."""
    for name, x in (("prediction", prediction), *((f"attributes[{k}]", s) for k, s in enumerate(attributes))):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if options.name == "correlation":
        return _correlation(prediction, attributes, weights)
    if options.scale == "std":
        prediction = unit_deviation(prediction, weights)
    more = {"exponent": options.exponent} if options.unbiased else {"exponent": options.exponent, "weights": weights}
    name = "dcor" if options.scale == "dcor" else "dcov"
    prefix = "u_" if options.unbiased else ""
    if options.name == "marginal":
        full = {"dcov": "distance_covariance_sqr", "dcor": "distance_correlation_sqr"}[name]
        values = [getattr(D, prefix + full)(prediction, s, **more) for s in attributes]
        return torch.stack([v.double() for v in values]).sum().to(result_dtype(prediction, *attributes))
    if options.name == "ccdcov" or len(attributes) == 1:  # one attribute alone makes all three equal; this is quickest
        return getattr(D, f"{prefix}cc{name}_sqr")(prediction, attributes, **more)
    return getattr(D, f"{prefix}j{name}_sqr")([prediction, *attributes], c=options.c, part="first", **more)


def unit_deviation(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """``x [n]`` or ``[n, d]`` over its standard deviation (of all columns together), gradient kept.

    A constant stays as it is.
    """
    wide, w = x.double(), _weights(weights, x)
    # About the first point, so that a constant is exactly 0.
    moved = wide - wide[:1].detach()
    variance = (w @ (moved - (w @ moved)).square()).sum()
    varies = variance > 0
    return (wide / torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 1.0)).to(
        x.dtype if x.dtype == torch.float64 else torch.float32
    )


def _weights(weights: Tensor | None, like: Tensor) -> Tensor:
    """Checked, summing to 1."""
    return as_weights(weights, Variable(points=like))


def _correlation(prediction: Tensor, attributes: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Sum over attributes of the share of the prediction's variance that a linear model of each explains."""
    w, f = _weights(weights, prediction), prediction.double().reshape(len(prediction), -1)
    f = f - f[:1].detach()  # a constant is exactly 0
    f = f - w @ f
    total = (w @ f.square()).sum()
    found = f.new_zeros(())
    for attribute in attributes:
        if attribute.is_floating_point():
            s = attribute.double().reshape(len(f), -1)
            s = s - w @ s
            gram = s.T @ (w.unsqueeze(1) * s)
            cross = s.T @ (w.unsqueeze(1) * f)
            found = found + (cross * (torch.linalg.pinv(gram, hermitian=True) @ cross)).sum()
        else:
            cell = torch.unique(attribute, return_inverse=True)[1]
            masses = w.new_zeros(int(cell.max()) + 1).index_add_(0, cell, w)
            sums = f.new_zeros(len(masses), f.shape[1]).index_add(0, cell, w.unsqueeze(1) * f)
            found = found + (sums.square().sum(1) / masses.clamp(min=1e-300)).sum()
    varies = total > 0
    value = torch.where(varies, found / torch.where(varies, total, 1.0), 0.0)
    return value.to(result_dtype(prediction, *attributes))
