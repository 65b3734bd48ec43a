r"""Values as histograms: HL-Gauss and two-hot targets, their cross-entropy, and the expectation that reads them.

A scalar head trained by the squared error is replaced by m logits z over bins of a fixed range. The target y becomes a
histogram p, the loss is :math:`-\sum_i p_i \log \mathrm{softmax}(z)_i`, and the prediction is the mean of the centers
under the softmax. Use it where targets are noisy, heavy-tailed or move, as bootstrapped values do.

References:
    - E. Imani and M. White, "Improving regression performance with distributional losses", 2018, arXiv:1806.04613.
    - J. Farebrother et al., "Stop regressing: training value functions via classification for scalable deep RL", 2024,
      arXiv:2403.03950.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from infotorch.core import categorical
from infotorch.core._checks import check_bool_mask, check_choice, check_no_nan, check_range, check_tensor
from infotorch.core.reduce import masked_mean, zero_outside
from infotorch.nn.supports import TRANSFORMS, Transform, bin_edges, categorical_projection, neighbors

__all__ = ["HLGauss", "Histogram", "RangeReport", "TwoHot", "hl_gauss_probs", "two_hot_probs"]


def hl_gauss_probs(target: Tensor, edges: Tensor, sigma: float | Tensor) -> Tensor:
    r"""Histogram of a normal distribution around each target, cut off at the ends of the support.

    .. math:: p_i = \frac{F(e_{i+1}) - F(e_i)}{F(e_m) - F(e_0)}, \qquad
              F(e) = \mathrm{erf}\!\left(\frac{e - y}{\sqrt 2 \sigma}\right)

    Args:
        target: Values y, any shape; they are clamped to the support, and no gradient flows to them.
        edges: Ascending, shape ``(m + 1,)``.
        sigma: Standard deviation, positive.

    Returns:
        Shape ``(..., m)``, in the type of ``edges``; each row sums to 1. A NaN gives a row of NaN.

    Reference: J. Farebrother et al., 2024, arXiv:2403.03950; E. Imani and M. White, 2018, arXiv:1806.04613.

    Deviation from the paper's listing: targets are clamped. Far outside the support its normalizer underflows.

    >>> hl_gauss_probs(torch.tensor(0.5), torch.tensor([0.0, 1.0, 2.0]), 0.5)
    tensor([0.8127, 0.1873])
    """
    y = target.detach().to(edges.dtype).clamp(edges[0], edges[-1]).unsqueeze(-1)
    return _normal_masses(y, edges, sigma)


def two_hot_probs(target: Tensor, centers: Tensor) -> Tensor:
    r"""Two masses at the centers around each target, so that their mean is the target.

    Args:
        target: Values y, any shape; they are clamped to the centers, and no gradient flows to them.
        centers: Ascending, shape ``(m,)``.

    Returns:
        Shape ``(..., m)``, in the type of ``centers``; each row sums to 1.

    Deviation from rlax: no slop in the denominator, so the mean is exact.

    >>> two_hot_probs(torch.tensor([0.25, 1.0]), torch.tensor([0.0, 1.0, 2.0]))
    tensor([[0.7500, 0.2500, 0.0000],
            [0.0000, 1.0000, 0.0000]])
    """
    y = target.detach().to(centers.dtype).unsqueeze(-1)
    return categorical_projection(torch.ones_like(y), y, centers)


class RangeReport(NamedTuple):
    """How a batch of targets fits a support; 0-d tensors.

    Attributes:
        below: Share of targets below ``v_min``.
        above: Share above ``v_max``.
        distance: Mean distance by which targets lie outside, in their units; infinite where one is.
        cut: Share of the targets' mass that falls outside the support and is put back into it: for HL-Gauss of the
            normal distribution around each clamped target, else the share of targets outside.
    """

    below: Tensor
    above: Tensor
    distance: Tensor
    cut: Tensor


class Histogram(nn.Module):
    r"""What the histogram heads share: a support, a readout, a cross-entropy. Use :class:`HLGauss` or :class:`TwoHot`.

    The head has no weights: it turns the last dimension of logits into values, and targets into losses. Its edges are
    kept in float32 (float64 after ``.double()``) whatever the model is cast to, and are part of ``state_dict``.

    Args:
        v_min: Smallest value that can be represented.
        v_max: Largest.
        bins: Number m of bins.
        range_is: Whether the range ends at the outermost ``"edges"`` or ``"centers"``; None: as is usual for the head
            (edges for :class:`HLGauss`, centers for :class:`TwoHot`).
        pad: Bins by which the support is wider than the range, on either side.
        transform: ``"identity"``, ``"symlog"``, ``"signed_hyperbolic"`` or a
            :class:`~infotorch.nn.supports.Transform`. Bins are equal after the map; range, targets and values stay in
            their own units.
        readout: With a transform: ``"inverse_of_mean"`` maps the mean back, ``"mean_of_inverse"`` takes the mean of the
            centers mapped back.

    Attributes:
        edges: ``(m + 1,)``, after the map.
        centers: ``(m,)``, after the map.

    Raises:
        ValueError: ``v_min >= v_max``, fewer than two bins, unknown choices.
    """

    edges: Tensor
    centers: Tensor
    usual_range: ClassVar[str] = "edges"

    def __init__(
        self,
        v_min: float,
        v_max: float,
        bins: int = 51,
        *,
        range_is: str | None = None,
        pad: float = 0.0,
        transform: str | Transform = "identity",
        readout: str = "inverse_of_mean",
    ) -> None:
        super().__init__()
        if isinstance(transform, str):
            transform = TRANSFORMS[check_choice("transform", transform, TRANSFORMS)]
        self.transform = transform
        self.readout = check_choice("readout", readout, ("inverse_of_mean", "mean_of_inverse"))
        if not v_min < v_max:
            raise ValueError(f"v_min, v_max: expected finite numbers with v_min < v_max, got {v_min} and {v_max}")
        low, high = transform.forward(_exactly([v_min, v_max])).tolist()
        self.v_min, self.v_max, self.bins = float(v_min), float(v_max), bins
        self.register_buffer("edges", torch.zeros(0), persistent=False)
        self.register_buffer("centers", torch.zeros(0), persistent=False)
        self._set_edges(bin_edges(low, high, bins, range_is=range_is or self.usual_range, pad=pad))

    @classmethod
    def from_edges(cls, edges: Sequence[float] | Tensor, **options: Any) -> Self:
        """A head with given edges, which need not be equally spaced; they are the support, and are not padded.

        Args:
            edges: Ascending, in the targets' units; with a transform they are mapped.
            **options: Of the constructor, without those of the range and its padding.

        Raises:
            ValueError: Fewer than three edges, or edges that do not ascend; an option that edges leave no room for.

        >>> HLGauss.from_edges([0.0, 1.0, 3.0]).centers
        tensor([0.5000, 2.0000])
        """
        given = torch.as_tensor(edges, dtype=torch.float64)
        if given.ndim != 1 or len(given) < 3 or not bool((given.diff() > 0).all() & given.isfinite().all()):
            raise ValueError(f"edges: expected at least three finite ascending numbers, got {given.tolist()}")
        if unused := sorted({"pad", "pad_sigma", "range_is"} & options.keys()):
            raise ValueError(f"{unused[0]}: expected none where edges are given, got {options[unused[0]]!r}")
        head = cls(float(given[0]), float(given[-1]), len(given) - 1, **options)
        head._set_edges(head.transform.forward(given).tolist())
        if head.usual_range == "centers":
            exact = _exactly(head._exact)
            ends = (exact[1:] + exact[:-1])[[0, -1]] / 2
            head.v_min, head.v_max = head.transform.inverse(ends).tolist()
        return head

    @classmethod
    def from_data(cls, target: Tensor, *, q: tuple[float, float] = (0.001, 0.999), **options: Any) -> Self:
        """A head whose range is that of the targets between two quantiles.

        Args:
            target: Finite values, at least two that differ.
            q: Lower and upper quantile.
            **options: Of the constructor, ``bins`` among them.

        Raises:
            ValueError: Values that are not finite, quantiles that are not ordered or coincide on these values.

        >>> head = TwoHot.from_data(torch.arange(101.0), q=(0.1, 0.9), bins=11)
        >>> head.v_min, head.v_max
        (10.0, 90.0)
        """
        values = check_tensor("target", target).detach().double().flatten()
        if not len(values) or not bool(values.isfinite().all()):
            raise ValueError("target: expected finite values, got none, NaN or infinity")
        if not 0 <= q[0] < q[1] <= 1:
            raise ValueError(f"q: expected two quantiles 0 <= low < high <= 1, got {q}")
        ordered = values.sort().values  # torch.quantile refuses large inputs
        low, high = (_at(ordered, level) for level in q)
        if low >= high:
            raise ValueError(f"target: expected values that differ between the quantiles {q}, got {low} at both")
        return cls(low, high, **options)

    # -- the support ---------------------------------------------------------------------------------------------

    def _set_edges(self, edges: Sequence[float]) -> None:
        self._exact = tuple(edges)
        wide = _exactly(self._exact)
        mean = (self._exact[-1] - self._exact[0]) / self.bins
        equal = all(abs((b - a) / mean - 1) < 1e-9 for a, b in pairwise(self._exact))
        self._step = mean if equal else None
        dtype = torch.float64 if self.edges.dtype == torch.float64 else torch.float32
        where = {"device": self.edges.device, "dtype": dtype}
        self.edges, self.centers = wide.to(**where), ((wide[1:] + wide[:-1]) / 2).to(**where)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.edges.device.type != "meta":
            self._set_edges(self._exact)  # half precision would misplace the edges by a percent
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The support, which values cannot be read without."""
        return {"edges": list(self._exact), "range": [self.v_min, self.v_max]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the support of a checkpoint.

        Raises:
            ValueError: It has another number of bins.
        """
        if len(state["edges"]) != self.bins + 1:
            raise ValueError(f"state: expected a support of {self.bins} bins, got {len(state['edges']) - 1}")
        self.v_min, self.v_max = state["range"]
        self._set_edges(state["edges"])

    def extra_repr(self) -> str:
        """Range and bins."""
        return f"v_min={self.v_min:g}, v_max={self.v_max:g}, bins={self.bins}"

    # -- values --------------------------------------------------------------------------------------------------

    def forward(self, logits: Tensor) -> Tensor:
        """Values of logits ``(..., m)``: shape ``(...)``, at least float32."""
        self._check_logits(logits)
        return self.mean(categorical.log_softmax(logits).exp())

    def mean(self, probs: Tensor) -> Tensor:
        """Values of probabilities ``(..., m)``."""
        centers = self.centers.to(probs.dtype)
        if self.readout == "mean_of_inverse":
            return (probs * self.transform.inverse(centers)).sum(-1)
        return self.transform.inverse((probs * centers).sum(-1))

    @torch.no_grad()
    def std(self, logits: Tensor) -> Tensor:
        """Standard deviation of the distribution that the logits describe, ``(...)``, in the targets' units.

        For logs: no gradient flows.
        """
        self._check_logits(logits)
        probs = categorical.log_softmax(logits).exp()
        values = self.transform.inverse(self.centers.to(probs.dtype))
        mean = (probs * values).sum(-1, keepdim=True)
        return (probs * (values - mean).square()).sum(-1).sqrt()

    # -- targets and losses --------------------------------------------------------------------------------------

    def probs(self, target: Tensor) -> Tensor:
        """Histograms ``(..., m)`` of targets ``(...)``, in at least float32.

        Raises:
            TypeError: Not a tensor.
            ValueError: A target is NaN. Infinite ones are clamped like all outside the range.
        """
        index, mass = self._masses(self._mapped(self._wide(target)))
        if index is None:
            return mass
        return mass.new_zeros(*mass.shape[:-1], self.bins).scatter(-1, index, mass)

    def loss(self, logits: Tensor, target: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        r"""Cross-entropy :math:`-\sum_i p_i \log \mathrm{softmax}(z)_i` in nats.

        Its floor is the entropy of p; :meth:`divergence` is what lies above.

        Args:
            logits: Shape ``(..., m)``.
            target: Shape ``(...)``; no gradient flows to it.
            mask: Boolean ``(...)``: which entries count. What stands elsewhere, NaN included, changes nothing; an empty
                mask gives 0, as does an empty batch.
            reduction: ``"mean"`` or ``"none"`` (0 outside the mask).

        Raises:
            TypeError: ``mask`` is not boolean.
            ValueError: Shapes that do not fit, a target that is NaN.
        """
        self._check_logits(logits)
        if target.shape != logits.shape[:-1]:
            raise ValueError(f"target: expected shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}")
        if mask is not None:
            check_bool_mask("mask", mask, target.shape)
            target = torch.where(mask, target, self.v_min)
        index, mass = self._masses(self._mapped(self._wide(target)))
        return self._cross_entropy(logits, index, mass, mask, reduction)

    def cross_entropy(
        self, logits: Tensor, probs: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
    ) -> Tensor:
        """The same loss for histograms ``(..., m)`` that are given."""
        if probs.shape != logits.shape:
            raise ValueError(f"probs: expected shape {tuple(logits.shape)}, got {tuple(probs.shape)}")
        if mask is not None:
            check_bool_mask("mask", mask, logits.shape[:-1])
        return self._cross_entropy(logits, None, probs.detach(), mask, reduction)

    def _cross_entropy(
        self, logits: Tensor, index: Tensor | None, mass: Tensor, mask: Tensor | None, reduction: str
    ) -> Tensor:
        check_choice("reduction", reduction, ("mean", "none"))
        if mask is not None:  # before the softmax: its backward would turn NaN times 0 into NaN
            logits, mass = (zero_outside(x, mask.unsqueeze(-1)) for x in (logits, mass))
        log_q = categorical.log_softmax(logits)
        log_q = log_q if index is None else log_q.gather(-1, index)
        # A bin without mass counts nothing even where the logits forbid it.
        each = -torch.where(mass == 0, 0.0, mass * log_q).sum(-1)
        if mask is None:
            return each if reduction == "none" else each.mean() if each.numel() else each.sum()
        return masked_mean(each, mask) if reduction == "mean" else zero_outside(each, mask)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss minus its floor: the divergence KL(p || softmax) of each entry, shape ``(...)``, in nats."""
        self._check_logits(logits)
        return categorical.kl_divergence(p_probs=self.probs(target), q_logits=logits)

    @torch.no_grad()
    def range_report(self, target: Tensor) -> RangeReport:
        """How many targets lie outside the range, how far, and how much mass the support cuts off.

        Raises:
            ValueError: A target is NaN, or there is none.
        """
        y = self._wide(target)
        if not y.numel():
            raise ValueError("target: expected at least one value, got none")
        below, above = y < self.v_min, y > self.v_max
        distance = (self.v_min - y).clamp(min=0) + (y - self.v_max).clamp(min=0)
        return RangeReport(below.float().mean(), above.float().mean(), distance.mean(), self._cut(y).mean())

    def _cut(self, y: Tensor) -> Tensor:
        """Mass of each target outside the support."""
        return ((y < self.v_min) | (y > self.v_max)).float()

    def _masses(self, mapped: Tensor) -> tuple[Tensor | None, Tensor]:
        """Index and mass ``(..., K)`` of the bins that have any, or None and all masses ``(..., m)``."""
        raise NotImplementedError

    def _wide(self, target: Tensor, name: str = "target") -> Tensor:
        """Targets in the type of the support."""
        return check_no_nan(name, check_tensor(name, target).detach().to(self.edges.dtype))

    def _mapped(self, wide: Tensor) -> Tensor:
        return self.transform.forward(wide.clamp(self.v_min, self.v_max))

    def _check_logits(self, logits: Tensor) -> None:
        if not logits.ndim or logits.shape[-1] != self.bins:
            raise ValueError(f"logits: expected shape (..., {self.bins}), got {tuple(logits.shape)}")


class TwoHot(Histogram):
    """Targets as two masses on neighboring centers; the mean of a histogram is its target exactly.

    The range is that of the centers unless told otherwise. All else as in :class:`Histogram`.

    >>> head = TwoHot(-1.0, 1.0, 5)
    >>> head.probs(torch.tensor(0.25))
    tensor([0.0000, 0.0000, 0.5000, 0.5000, 0.0000])
    >>> head(torch.zeros(2, 5))
    tensor([0., 0.])
    """

    usual_range = "centers"

    def _masses(self, mapped: Tensor) -> tuple[Tensor | None, Tensor]:
        lower, share = neighbors(mapped, self.centers, self._step)
        return torch.stack((lower, lower + 1), -1), torch.stack((1 - share, share), -1)


class HLGauss(Histogram):
    r"""Targets as histograms of a normal distribution around them (HL-Gauss).

    Near an end of the support the normal distribution is cut off, and the mean of a histogram is pulled inwards (with
    51 bins on [-10, 10], 10 reads back as 9.73). ``pad_sigma=3`` widens the support so that all of the range reads back
    as it is; the default, 0, is the paper's.

    Args:
        v_min: Smallest value; smaller targets are clamped to it.
        v_max: Largest value.
        bins: Number m of bins.
        sigma_ratio: Standard deviation in (mean) bin widths; 0.75 as in the paper puts nearly all mass on six bins.
        pad_sigma: Standard deviations by which the support is wider than the range, on either side.
        **options: ``range_is``, ``transform`` and ``readout`` of :class:`Histogram`.

    Attributes:
        sigma: Standard deviation, after the map.

    Raises:
        ValueError: As :class:`Histogram`; ``sigma_ratio`` not positive, ``pad_sigma`` negative or too large.

    Reference: J. Farebrother et al., 2024, arXiv:2403.03950.

    >>> head = HLGauss(-10.0, 10.0, 51)
    >>> loss = head.loss(torch.zeros(2, 51), torch.tensor([0.0, 3.3]))  # log 51
    >>> print(f"{loss:.4f}")
    3.9318
    >>> print([f"{head.mean(head.probs(torch.tensor(y))):.4f}" for y in (3.3, 10.0)])
    ['3.3000', '9.7294']
    """

    def __init__(
        self,
        v_min: float,
        v_max: float,
        bins: int = 51,
        *,
        sigma_ratio: float = 0.75,
        pad_sigma: float = 0.0,
        **options: Any,
    ) -> None:
        self._ratio = check_range("sigma_ratio", sigma_ratio, 0.0, math.inf, low_open=True, high_open=True)
        check_range("pad_sigma", pad_sigma, 0.0, math.inf, high_open=True)
        super().__init__(v_min, v_max, bins, pad=pad_sigma * sigma_ratio, **options)

    @property
    def sigma(self) -> float:
        """Standard deviation, after the map."""
        return self._ratio * (self._exact[-1] - self._exact[0]) / self.bins

    def _cut(self, y: Tensor) -> Tensor:
        y = self._mapped(y)
        scale = math.sqrt(2) * self.sigma
        return (torch.erfc((self.edges[-1] - y) / scale) + torch.erfc((y - self.edges[0]) / scale)) / 2

    def _masses(self, mapped: Tensor) -> tuple[Tensor | None, Tensor]:
        # Beyond a few sigma the error function is 1 to the last bit, and a bin has no mass: look at the others alone.
        double = self.edges.dtype == torch.float64
        reach = math.ceil((6.0 if double else 4.0) * math.sqrt(2) * self._ratio)
        few = 2 * reach + 1
        if self._step is None or 2 * few > self.bins:
            return None, hl_gauss_probs(mapped, self.edges, self.sigma)
        first = ((mapped - self.edges[reach]) / self._step).long().clamp(0, self.bins - few)
        near = self.edges.unfold(0, few + 1, 1).index_select(0, first.flatten()).view(*first.shape, few + 1)
        index = first.unsqueeze(-1) + torch.arange(few, device=first.device)
        return index, _normal_masses(mapped.unsqueeze(-1), near, self.sigma)


def _exactly(values: Sequence[float]) -> Tensor:
    """In float64, and not on the device, which may lack the type."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _at(ordered: Tensor, level: float) -> float:
    """Quantile of ascending values, interpolated."""
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def _normal_masses(y: Tensor, edges: Tensor, sigma: float | Tensor) -> Tensor:
    """Masses of normal distributions between edges ``(..., K + 1)``, over their sum."""
    cdf = torch.erf((edges - y) / (math.sqrt(2) * sigma))
    return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])
