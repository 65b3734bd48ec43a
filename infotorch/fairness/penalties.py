r"""Penalties on the dependence of a prediction on protected attributes, alone or together.

Add ``strength * penalty(prediction, attributes)`` to the loss of any model; the attributes are needed in training
only. With :math:`\mathrm{dCov}^2` the squared distance covariance of
:mod:`infotorch.core.dependence` and attributes :math:`S_1, \ldots, S_d`:

- :class:`DistanceCovariancePenalty`: :math:`\sum_k \mathrm{dCov}^2(f, S_k)`. Sees every attribute alone; a prediction
  that follows their combination only (``f = a xor b``, "gerrymandering") passes.
- :class:`JdCovPenalty`: :math:`\sum_{\emptyset \ne T} c^{d-|T|} \mathrm{dCov}^2(f, S_T)`, the joint distance covariance
  without what attributes have among themselves: 0 in the population exactly where f is independent of all together.
- :class:`CCdCovPenalty`: :math:`\mathrm{dCov}^2(f, (S_1, \ldots, S_d))`, the attributes as one vector. Likewise.
- :class:`CorrelationPenalty`: the linear yardstick.

Attributes are tensors: floats are numbers (standardize them), integers and booleans are categories at distance 1.
`encode_attributes` makes them from columns of any kind.

With a prediction on a line the dCov penalty takes ``O(n log n)`` time for attributes on a line or categories. The two
others take ``O(n log n + n G)`` where all attributes are categories with G cells that occur. With one number among
them JdCov takes ``O(G n log n)``; CCdCov, and JdCov with more numbers, visit all pairs, ``O(n^2)`` in tiles: about a
second per 10,000 rows on a CPU core, milliseconds for a mini-batch of 1,000 (take the unbiased statistic there). Memory
is ``O(n)`` always.

References:
    - Lee, Antonio, Avanzi, Marchi and Zhou, "Machine learning with multitype protected attributes: intersectional
      fairness through regularisation", 2025, arXiv:2509.08163.
    - S. Chakraborty and X. Zhang, "Distance metrics for measuring joint dependence with application to causal
      inference", 2019, arXiv:1711.09179.

Deviations:
    - No code of the authors is published. Distances between categories are 0 and 1, not those of integer codes.
    - JdCov is taken without the terms that do not hold the prediction. Their gradient is 0, and they make the value
      depend on how attributes depend on each other.
    - Unbiased statistics are the default: the bias of a V-statistic has a gradient that only shrinks the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infotorch.core import distributed as dist
from infotorch.fairness._compiled import value_and_gradient
from infotorch.fairness._measure import Options, check_inputs, measure

__all__ = [
    "CCdCovPenalty",
    "CorrelationPenalty",
    "DependencePenalty",
    "DistanceCovariancePenalty",
    "JdCovPenalty",
    "ccdcov_penalty",
    "correlation_penalty",
    "distance_covariance_penalty",
    "jdcov_penalty",
]


def distance_covariance_penalty(
    prediction: Tensor,
    attributes: Sequence[Tensor] | Tensor,
    *,
    unbiased: bool = True,
    scale: str = "none",
    exponent: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Sum of the squared distance covariances with every attribute, :math:`\sum_k \mathrm{dCov}^2(f, S_k)`.

    Args:
        prediction: Shape ``(n,)``, or ``(n, classes)`` for probabilities; the gradient goes here.
        attributes: One or more, of shape ``(n,)`` or ``(n, e)``; floats are numbers, integers and booleans categories.
        unbiased: U-statistic (``n >= 4``, may be negative) in place of the V-statistic.
        scale: ``"none"``: in units of the prediction, so that shrinking it lowers the penalty; ``"std"``: the
            prediction is divided by its standard deviation in the batch first; ``"dcor"``: distance correlation.
        exponent: Power of the distances, in (0, 2).
        weights: Shape ``(n,)``, non-negative, such as exposures; with ``unbiased=False`` only.

    Returns:
        0-d; float64 if an input is, else float32. 0 with gradient 0 for a constant prediction or attribute.

    Raises:
        TypeError: No tensors, or a prediction that is not floating.
        ValueError: Shapes that do not agree, fewer than 4 rows or weights with the unbiased statistic, values that
            are not finite, options out of range.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1]).repeat(8), torch.tensor([0, 1, 0, 1]).repeat(8)
    >>> distance_covariance_penalty((a ^ b).float(), [a, b], unbiased=False)  # blind to the combination
    tensor(0.)
    """
    return _penalty(prediction, attributes, weights, Options("marginal", unbiased, scale, exponent=exponent))


def jdcov_penalty(
    prediction: Tensor,
    attributes: Sequence[Tensor] | Tensor,
    *,
    c: float = 1.0,
    unbiased: bool = True,
    scale: str = "none",
    exponent: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Joint distance covariance of prediction and attributes, without the terms among attributes only.

    :math:`\overline{U^0_{ij} \prod_k (c + U^k_{ij})}` with :math:`U` minus the centered distances, which is
    :math:`\sum_{\emptyset \ne T} c^{d-|T|} \mathrm{dCov}^2(f, S_T)`. Other arguments, result and errors are those of
    :func:`distance_covariance_penalty`; ``scale="dcor"`` scales every variable to distance variance 1.

    Args:
        prediction: As there.
        attributes: As there.
        c: Positive; the larger, the more single attributes count against combinations.
        unbiased: As there, with U-centered distances.
        scale: As there.
        exponent: As there.
        weights: As there.

    Reference: S. Chakraborty and X. Zhang, 2019, arXiv:1711.09179; Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1]).repeat(8), torch.tensor([0, 1, 0, 1]).repeat(8)
    >>> jdcov_penalty((a ^ b).float(), [a, b], unbiased=False)
    tensor(0.1250)
    """
    return _penalty(prediction, attributes, weights, Options("jdcov", unbiased, scale, c, exponent))


def ccdcov_penalty(
    prediction: Tensor,
    attributes: Sequence[Tensor] | Tensor,
    *,
    unbiased: bool = True,
    scale: str = "none",
    exponent: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Squared distance covariance with all attributes as one vector, :math:`\mathrm{dCov}^2(f, (S_1, \ldots, S_d))`.

    Arguments, result and errors are those of :func:`distance_covariance_penalty`. What it has beyond that sum is the
    intersectional remainder, of either sign.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1]).repeat(8), torch.tensor([0, 1, 0, 1]).repeat(8)
    >>> ccdcov_penalty((a ^ b).float(), [a, b], unbiased=False)
    tensor(0.0732)
    """
    return _penalty(prediction, attributes, weights, Options("ccdcov", unbiased, scale, exponent=exponent))


def correlation_penalty(
    prediction: Tensor, attributes: Sequence[Tensor] | Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Sum of squared correlations with every attribute (correlation ratios with categories): what is linear only.

    The yardstick for the others. Invariant to the prediction's scale; without correction for chance.

    Args:
        prediction: Shape ``(n,)`` or ``(n, classes)``.
        attributes: As in :func:`distance_covariance_penalty`.
        weights: Shape ``(n,)``, non-negative.

    Raises:
        TypeError: No tensors, or a prediction that is not floating.
        ValueError: Shapes that do not agree, values that are not finite.

    >>> s = torch.linspace(-1, 1, 101)
    >>> correlation_penalty(3 * s, [s]), correlation_penalty(s.square(), [s]).abs() < 1e-6
    (tensor(1.), tensor(True))
    """
    return _penalty(prediction, attributes, weights, Options("correlation", unbiased=False))


def _penalty(
    prediction: Tensor, attributes: Sequence[Tensor] | Tensor, weights: Tensor | None, options: Options
) -> Tensor:
    checked = check_inputs(prediction, attributes, weights, unbiased=options.check().unbiased)
    if torch.compiler.is_compiling():
        o = options
        return value_and_gradient(prediction, checked, weights, o.name, o.unbiased, o.scale, o.c, o.exponent)[0]
    return measure(prediction, checked, weights, options)


class DependencePenalty(nn.Module):
    """What all penalties share: their options, and the choice of batch under data parallelism.

    Args:
        measure: ``"marginal"``, ``"jdcov"``, ``"ccdcov"`` or ``"correlation"``.
        unbiased: U-statistic in place of the V-statistic.
        scale: ``"none"``, ``"std"`` or ``"dcor"``.
        c: Weight of low orders, for ``"jdcov"``.
        exponent: Power of the distances.
        across_ranks: Gather predictions and attributes of all processes: the penalty and, once data parallelism has
            averaged them, the gradients of the model are those of one process with the whole batch. Otherwise every
            process takes its own rows, and the mean over processes is an unbiased estimate too.

    >>> DependencePenalty("jdcov", scale="std")
    DependencePenalty(measure='jdcov', unbiased=True, scale='std', c=1.0, exponent=1.0)
    """

    def __init__(
        self,
        measure: str = "ccdcov",
        *,
        unbiased: bool = True,
        scale: str = "none",
        c: float = 1.0,
        exponent: float = 1.0,
        across_ranks: bool = False,
    ) -> None:
        super().__init__()
        self.options = Options(measure, unbiased and measure != "correlation", scale, c, exponent).check()
        self.across_ranks = across_ranks

    def forward(
        self, prediction: Tensor, attributes: Sequence[Tensor] | Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """The penalty, 0-d; arguments as in :func:`distance_covariance_penalty`."""
        if self.across_ranks and dist.is_active():
            parts = check_inputs(prediction, attributes, weights, unbiased=False)
            prediction = dist.gather_cat_with_grad(prediction)
            attributes = [dist.gather_cat(s) for s in parts]
            weights = None if weights is None else dist.gather_cat(weights)
        return _penalty(prediction, attributes, weights, self.options)

    def extra_repr(self) -> str:
        """Options for ``repr``."""
        o = self.options
        return f"measure={o.name!r}, unbiased={o.unbiased}, scale={o.scale!r}, c={o.c}, exponent={o.exponent}"


class DistanceCovariancePenalty(DependencePenalty):
    """Module of :func:`distance_covariance_penalty`.

    Args:
        unbiased: U-statistic in place of the V-statistic.
        scale: ``"none"``, ``"std"`` or ``"dcor"``.
        exponent: Power of the distances.
        across_ranks: One statistic over all processes, see `DependencePenalty`.

    >>> penalty = DistanceCovariancePenalty(scale="dcor")
    >>> s = torch.linspace(-1, 1, 50)
    >>> penalty(2 * s, [s])
    tensor(1.)
    """

    def __init__(
        self, *, unbiased: bool = True, scale: str = "none", exponent: float = 1.0, across_ranks: bool = False
    ) -> None:
        super().__init__("marginal", unbiased=unbiased, scale=scale, exponent=exponent, across_ranks=across_ranks)


class JdCovPenalty(DependencePenalty):
    """Module of :func:`jdcov_penalty`.

    Args:
        c: Weight of low orders.
        unbiased: U-centered distances in place of double-centered ones.
        scale: ``"none"``, ``"std"`` or ``"dcor"``.
        exponent: Power of the distances.
        across_ranks: One statistic over all processes, see `DependencePenalty`.

    >>> a, b = torch.tensor([0, 0, 1, 1]).repeat(8), torch.tensor([0, 1, 0, 1]).repeat(8)
    >>> JdCovPenalty(unbiased=False)((a ^ b).float(), [a, b])
    tensor(0.1250)
    """

    def __init__(
        self,
        *,
        c: float = 1.0,
        unbiased: bool = True,
        scale: str = "none",
        exponent: float = 1.0,
        across_ranks: bool = False,
    ) -> None:
        super().__init__("jdcov", c=c, unbiased=unbiased, scale=scale, exponent=exponent, across_ranks=across_ranks)


class CCdCovPenalty(DependencePenalty):
    """Module of :func:`ccdcov_penalty`.

    Args:
        unbiased: U-statistic in place of the V-statistic.
        scale: ``"none"``, ``"std"`` or ``"dcor"``.
        exponent: Power of the distances.
        across_ranks: One statistic over all processes, see `DependencePenalty`.

    >>> a, b = torch.tensor([0, 0, 1, 1]).repeat(8), torch.tensor([0, 1, 0, 1]).repeat(8)
    >>> CCdCovPenalty(unbiased=False)((a ^ b).float(), [a, b])
    tensor(0.0732)
    """

    def __init__(
        self, *, unbiased: bool = True, scale: str = "none", exponent: float = 1.0, across_ranks: bool = False
    ) -> None:
        super().__init__("ccdcov", unbiased=unbiased, scale=scale, exponent=exponent, across_ranks=across_ranks)


class CorrelationPenalty(DependencePenalty):
    """Module of :func:`correlation_penalty`.

    Args:
        across_ranks: One statistic over all processes, see `DependencePenalty`.

    >>> s = torch.linspace(-1, 1, 50)
    >>> CorrelationPenalty()(2 * s, [s])
    tensor(1.)
    """

    def __init__(self, *, across_ranks: bool = False) -> None:
        super().__init__("correlation", across_ranks=across_ranks)
