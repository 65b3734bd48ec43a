r"""Penalties on what a prediction has to do with protected attributes, one by one or all together.

With the squared distance covariance dCov² (:mod:`infotorch.core.dependence`), prediction f, attributes S_1 .. S_d:

- marginal: :math:`\sum_k \mathrm{dCov}^2(f, S_k)`. Blind to combinations: f may be independent of sex and of race, and
  depend on both together.
- JdCov: the part of the joint distance covariance that holds f,
  :math:`\mathrm{avg}_{ij}\,(-A^f_{ij}) \prod_k (c - A^k_{ij}) = \sum_T c^{d - |T|} \mathrm{dCov}^2(f, S_T)` over all
  non-empty sets T of attributes.
- CCdCov: :math:`\mathrm{dCov}^2(f, (S_1, \dots, S_d))`, all attributes as one vector.

The last two are 0 in the population exactly where f is independent of all attributes together.

Reference: Lee, Antonio, Avanzi, Marchi and Zhou, "Machine learning with multitype protected attributes: Intersectional
fairness through regularisation", 2025, arXiv:2509.08163. The authors published no code: the encoding of categories
(distance 1 between different ones), scaling and estimator are this library's choices. JdCov without its terms between
attributes, which f cannot change, follows from S. Chakraborty and X. Zhang, 2019, arXiv:1711.09179.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infotorch.core import distributed as dist
from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core.dependence import (
    ccdcov_sqr,
    distance_covariance_sqr,
    jdcov_sqr,
    u_ccdcov_sqr,
    u_distance_covariance_sqr,
    u_jdcov_sqr,
)

SCALES = ("none", "std", "dcor")
ESTIMATORS = ("u", "v")


def scale_prediction(prediction: Tensor, scale: str) -> Tensor:
    r"""The prediction without its size, so that shrinking it is no way to lower a penalty. The graph is kept.

    Args:
        prediction: Shape ``(n,)`` or ``(n, K)``.
        scale: ``"none"``; ``"std"``: over the root of its total variance; ``"dcor"``: over the root of its distance
            variance, which makes a penalty the squared distance correlation up to a factor that the attributes set.

    Returns:
        Float64, the same shape. A constant prediction stays as it is, and so has penalty 0.

    Raises:
        ValueError: Another ``scale``.

    >>> float(scale_prediction(torch.tensor([0.0, 2.0]), "std").std(correction=0))
    1.0
    """
    check_choice("scale", scale, SCALES)
    f = prediction.double()
    if scale == "none":
        return f
    rows = f.unsqueeze(1) if f.ndim == 1 else f
    power = (rows - rows.mean(0)).square().sum(1).mean() if scale == "std" else distance_covariance_sqr(f, f)
    # Rounding leaves a constant prediction a power that is not quite 0.
    floor = torch.finfo(f.dtype).eps ** 2 * rows.detach().square().sum(1).mean()
    return f / torch.where(power > floor, power, 1.0).sqrt()


class FairnessPenalty(nn.Module):
    """What all penalties share: scale, estimator, and the batch over all processes.

    Args:
        scale: What is done about the size of the prediction: ``"none"``, ``"std"`` or ``"dcor"``, see
            :func:`scale_prediction`.
        estimator: ``"u"``: unbiased for every batch of 4 or more, and may be negative; ``"v"``: never negative, with
            a positive bias of order 1/n whose gradient merely shrinks the prediction.
        exponent: Power of the distances, in (0, 2).
        gather: Take the statistic over the batches of all processes. Where processes average their gradients, the
            result is that of one process with the whole batch.

    Raises:
        ValueError: An option out of range.
    """

    def __init__(
        self, *, scale: str = "std", estimator: str = "u", exponent: float = 1.0, gather: bool = False
    ) -> None:
        super().__init__()
        self.scale = check_choice("scale", scale, SCALES)
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)
        self.exponent = check_range("exponent", exponent, 0.0, 2.0, low_open=True, high_open=True)
        self.gather = gather

    @abstractmethod
    def statistic(self, prediction: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        """The penalty of a scaled prediction."""

    def forward(self, prediction: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        """The penalty of a batch.

        Args:
            prediction: Rate, probability or score, ``(n,)``, ``(n, 1)``, or several outputs ``(n, K)``.
            attributes: Each ``(n,)`` or ``(n, e)``: floats are numbers (standardize them over the data, as
                :class:`~infotorch.fairness.Attributes` does), integers and booleans categories.

        Returns:
            0-d, of the prediction's dtype (float32 for half precision).

        Raises:
            TypeError: Arguments that are no tensors, a prediction that is no float.
            ValueError: No attributes, different lengths, fewer than 4 rows for ``estimator="u"``, values that are not
                finite.
        """
        if not check_tensor("prediction", prediction).is_floating_point():
            raise TypeError(f"prediction: expected a floating-point tensor, got {prediction.dtype}")
        if not attributes:
            raise ValueError("attributes: expected at least one, got none")
        for k, attribute in enumerate(attributes):
            if len(check_tensor(f"attributes[{k}]", attribute)) != len(prediction):
                raise ValueError(
                    f"attributes[{k}]: expected {len(prediction)} rows, as the prediction has, got {len(attribute)}"
                )
        f = prediction.squeeze(1) if prediction.ndim == 2 and prediction.shape[1] == 1 else prediction
        if self.gather:
            f, attributes = dist.gather_cat_with_grad(f), [dist.gather_cat(a) for a in attributes]
        if self.estimator == "u" and len(f) < 4:
            raise ValueError(f'prediction: expected at least 4 rows for estimator="u", got {len(f)}')
        value = self.statistic(scale_prediction(f, self.scale), attributes)
        return value.to(torch.promote_types(prediction.dtype, torch.float32))

    def extra_repr(self) -> str:
        """Options."""
        return f"scale={self.scale!r}, estimator={self.estimator!r}, exponent={self.exponent:g}"


class DistanceCovariancePenalty(FairnessPenalty):
    """Sum of the squared distance covariances with each attribute: blind to their combinations.

    ``O(n log n)`` for a prediction on a line and an attribute that is one column or a category, with gradient.
    Arguments are those of `FairnessPenalty`.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1] * 9), torch.tensor([0, 1, 0, 1] * 9)
    >>> abs(float(DistanceCovariancePenalty(estimator="v")((a ^ b).float(), [a, b]))) < 1e-12
    True
    """

    def statistic(self, prediction: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        """Sum over the attributes."""
        covariance = u_distance_covariance_sqr if self.estimator == "u" else distance_covariance_sqr
        return torch.stack([covariance(prediction, a, exponent=self.exponent) for a in attributes]).sum()


class JdCovPenalty(FairnessPenalty):
    """The joint distance covariance's terms that hold the prediction: sees every combination of attributes.

    ``O(n^2)`` time and ``O(n)`` memory, with gradient.

    Args:
        c: Positive; the larger, the more single attributes count against combinations.
        **options: As for `FairnessPenalty`.

    Reference: S. Chakraborty and X. Zhang, 2019, arXiv:1711.09179; Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1] * 9), torch.tensor([0, 1, 0, 1] * 9)
    >>> JdCovPenalty(estimator="v")((a ^ b).float(), [a, b])
    tensor(0.2500)
    """

    def __init__(self, *, c: float = 1.0, **options: object) -> None:
        super().__init__(**options)  # pyright: ignore[reportArgumentType]
        self.c = check_range("c", c, 0.0, float("inf"), low_open=True, high_open=True)

    def statistic(self, prediction: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        """All subsets with the prediction."""
        joint = u_jdcov_sqr if self.estimator == "u" else jdcov_sqr
        return joint([prediction, *attributes], c=self.c, part="first", exponent=self.exponent)


class CCdCovPenalty(FairnessPenalty):
    """Squared distance covariance with all attributes as one vector: sees every combination of attributes.

    ``O(n log n + n G)`` for a prediction on a line and categories with G cells in all, else ``O(n^2)`` time; ``O(n)``
    memory, with gradient. Arguments are those of `FairnessPenalty`.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1] * 9), torch.tensor([0, 1, 0, 1] * 9)
    >>> CCdCovPenalty(estimator="v")((a ^ b).float(), [a, b])
    tensor(0.1464)
    """

    def statistic(self, prediction: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        """Of the vector of attributes."""
        covariance = u_ccdcov_sqr if self.estimator == "u" else ccdcov_sqr
        return covariance(prediction, attributes, exponent=self.exponent)


class CorrelationPenalty(FairnessPenalty):
    """Sum of squared correlations with each attribute's columns: the usual penalty, blind to all but straight lines.

    Categories count by the indicators of their levels but one. ``scale`` and ``estimator`` change nothing: a
    correlation has no scale. For comparison.

    >>> f = torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> CorrelationPenalty()(f, [f]), CorrelationPenalty()(f, [(f - 1.5) ** 2]).round(decimals=6)
    (tensor(1.), tensor(0.))
    """

    def statistic(self, prediction: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        """Sum over columns of attributes and of the prediction."""
        f = _unit(prediction.unsqueeze(1) if prediction.ndim == 1 else prediction)
        return torch.stack([(f.mT @ _unit(_columns(a))).square().sum() for a in attributes]).sum()


def _unit(x: Tensor) -> Tensor:
    """Centered columns of norm 1; constant ones are 0."""
    centered = x - x.mean(0)
    power = centered.square().sum(0)
    return centered / torch.where(power > 0, power, 1.0).sqrt()


def _columns(attribute: Tensor) -> Tensor:
    if attribute.is_floating_point():
        return attribute.double().unsqueeze(1) if attribute.ndim == 1 else attribute.double()
    codes = attribute if attribute.ndim == 1 else attribute.unique(dim=0, return_inverse=True)[1]
    codes = codes.unique(return_inverse=True)[1]
    return nn.functional.one_hot(codes).double()[:, 1:]


PENALTIES: dict[str, type[FairnessPenalty]] = {
    "dcov": DistanceCovariancePenalty,
    "jdcov": JdCovPenalty,
    "ccdcov": CCdCovPenalty,
    "correlation": CorrelationPenalty,
}
"""By the names that `FairRegressor` and `FairClassifier` take."""
