r"""BAPO: clip bounds chosen anew for every update, so that positive tokens carry a given share of it.

Off-policy, negative tokens dominate the gradient and a fixed clip silences just those updates that would raise entropy:
unlikely tokens with a positive advantage, whose ratio leaves the window first. BAPO widens the window until the share
:math:`\rho = P / (P + N)` of positive contributions reaches a target.

When to use: several epochs per rollout batch, partial or asynchronous rollouts, wrong answers longer than right ones.
With group-centered advantages and equal lengths the share is 1/2 on policy, and a target of 0.4 never acts.

Reference:
    "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive
    Clipping", 2025, arXiv:2510.18927.

Deviations:
    - Contributions are absolute values per token. The paper's equation divides by the absolute value of a net sum,
      which vanishes at balance; sampled tokens carry no further weight :math:`\pi_{rollout}`, being drawn from it.
    - The search is one evaluation of all bounds (authors' code: one synchronization and one all-reduce a step).
    - A step of 0 switches a bound off (the paper's loop would not end); an empty mask gives 0.
    - Raising the lower bound cannot help under the published measure: it enlarges N. It is raised all the same, as
      published; under ``contribution="active"``, which counts the tokens that have a gradient, both moves help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.losses._select import SCOPES, summed
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.ppo import AggregationLike, check_clip, clipped_surrogate, importance_ratio, reduce_loss
from infotorch.losses.registry import Part, register, register_recipe

_SLACK = 1e-9  # of the paper's comparisons, against rounding in sums of steps


@dataclass(frozen=True)
class RatioBounds:
    """Chosen bounds on the ratio, and what they make of the batch; scalars without gradient.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        positive: Contribution P of tokens with a positive advantage, by the surrogate's measure.
        negative: Contribution N of those with a negative one.
        active_positive: The same by the active measure.
        active_negative: Likewise.
    """

    low: Tensor
    high: Tensor
    positive: Tensor
    negative: Tensor
    active_positive: Tensor
    active_negative: Tensor

    @property
    def share(self) -> Tensor:
        """``P / (P + N)``; 1 where nothing is negative."""
        return _share(self.positive, self.negative)

    @property
    def active_share(self) -> Tensor:
        """The same among tokens that have a gradient."""
        return _share(self.active_positive, self.active_negative)


def _share(positive: Tensor, negative: Tensor) -> Tensor:
    return torch.where(negative > 0, positive / (positive + negative), 1.0)


def bapo_bounds(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    variant: str = "paper",
    target: float = 0.4,
    low: float = 0.6,
    low_max: float = 0.9,
    low_step: float = 0.02,
    high: float = 1.2,
    high_max: float = 3.0,
    high_step: float = 0.05,
    contribution: str = "surrogate",
    negative_cap: float | None = None,
    dual_clip: float | None = None,
    eps: float = 1e-8,
    scope: str = "local",
) -> RatioBounds:
    r"""The first pair of bounds on the search path at which positive tokens contribute enough.

    .. math:: P = \sum_{A > 0} \min(r, c_{high})\, A, \qquad N = \sum_{A < 0} \max(r, c_{low})\, |A|

    Args:
        ratio: :math:`r = \pi / \pi_{rollout}`, shape ``(B, T)``.
        advantages: Shape ``(B, T)``.
        mask: Boolean, shape ``(B, T)``.
        variant: ``"paper"``: the upper bound moves first, a step at a time up to ``high_max``, then the lower one;
            nothing moves if the lower bound has no room for a step. ``"verl"`` (authors' code): the lower bound first,
            the last step of each cut to its maximum.
        target: Share :math:`P / (P + N)` at which the search ends. (The code's ``adv_ratio_target`` is the ratio
            :math:`t = P / N`, a share of :math:`t / (1 + t)`.)
        low: Where the lower bound starts (the paper's :math:`a^-`).
        low_max: Where it ends (:math:`b^-`).
        low_step: Its step; 0 keeps it where it starts.
        high: Where the upper bound starts (:math:`a^+`).
        high_max: Where it ends (:math:`b^+`).
        high_step: Its step; 0 keeps it where it starts.
        contribution: ``"surrogate"`` as above; ``"active"``: :math:`r |A|` over the tokens that the bounds leave a
            gradient.
        negative_cap: Largest ratio that counts in N (an outlier of ratio :math:`e^{20}` decides alone otherwise).
        dual_clip: Tokens silenced by it count as inactive.
        eps: Added to N in the comparison of ``"verl"``.
        scope: Sums over this batch, or over all data-parallel ranks (``"global"``), which then take the same bounds.

    Returns:
        Bounds and contributions. If no pair reaches the target: the last of the path.

    Raises:
        ValueError: An option out of range, unknown names.

    Reference: arXiv:2510.18927, 2025, equation 8 and algorithm 1 (deviations: see the module).

    >>> ratio = torch.tensor([[1.5, 1.0, 1.0]])
    >>> bounds = bapo_bounds(ratio, torch.tensor([[1.0, -1.0, -1.0]]), torch.ones(1, 3, dtype=torch.bool), target=0.4)
    >>> bounds.low, bounds.high, bounds.share  # 1.35 / (1.35 + 2) is the first share above 0.4
    (tensor(0.6000), tensor(1.3500), tensor(0.4030))
    """
    check_choice("variant", variant, ("paper", "verl"))
    check_choice("contribution", contribution, ("surrogate", "active"))
    check_choice("scope", scope, SCOPES)
    check_range("target", target, 0.0, 1.0)
    check_range("low", low, 0.0, 1.0)
    check_range("low_max", low_max, low, 1.0)
    check_range("high", high, 1.0)
    check_range("high_max", high_max, high)
    for name, value in (("low_step", low_step), ("high_step", high_step), ("eps", eps)):
        check_range(name, value, 0.0)
    for name, step, way in (("low_step", low_step, low_max - low), ("high_step", high_step, high_max - high)):
        if step > 0:  # all bounds are evaluated at once
            check_range(name, step, way / 1e5)
    if negative_cap is not None:
        check_range("negative_cap", negative_cap, 0.0, low_open=True)
    # In float64, so that a sum over ranks or in another order chooses the same bounds.
    r = torch.where(mask, ratio.detach().double(), 1.0)
    a = torch.where(mask, advantages.detach().double(), 0.0)
    lows, highs, path = _path(variant, (low, low_max, low_step), (high, high_max, high_step), r.device)
    sums = summed(_histograms(r, a, lows, highs, negative_cap, dual_clip), scope)
    at_high, at_low = sums[:, : len(highs) + 1], sums[:, len(highs) + 1 :]
    # Tokens with r <= c_high, and those with r >= c_low, for every c of the grids.
    below, above = at_high.cumsum(1)[:, :-1], (at_low.sum(1, keepdim=True) - at_low.cumsum(1)[:, :-1]).clamp(min=0)
    positive = below[1] + highs * (at_high[0].sum() - below[0])
    negative = above[1] + lows * (at_low[0].sum() - above[0])
    measures = {"surrogate": (positive, negative), "active": (below[2], above[2])}
    p, n = (x[index] for x, index in zip(measures[contribution], path, strict=True))
    if variant == "paper":
        enough = _share(p, n) >= target - _SLACK
    else:
        odds = math.inf if target == 1 else target / (1 - target)
        enough = (n <= 0) | (p >= odds * (n + eps))
    first = torch.where(enough.any(), enough.to(torch.int64).argmax(), len(enough) - 1).reshape(1)
    high_at, low_at = (index[first] for index in path)  # of one element: a scalar as index would not compile
    found = (lows[low_at], highs[high_at], positive[high_at], negative[low_at], below[2][high_at], above[2][low_at])
    return RatioBounds(*(x.squeeze(0).to(ratio.dtype) for x in found))


Range = tuple[float, float, float]


def _path(variant: str, low: Range, high: Range, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Both grids, and the search's pairs in order, as positions in the grids of ``(high, low)``."""
    cut = variant == "verl"
    lows, highs = (_grid(*bound, cut=cut, device=device) for bound in (low, high))
    n, k = len(lows) - 1, len(highs) - 1
    stuck = not cut and n == 0 and low[2] > 0  # the paper's loop asks for room below before it moves anything
    step = torch.arange(1 if stuck else n + k + 1, device=device)
    if cut:
        return lows, highs, ((step - n).clamp(min=0), step.clamp(max=n))
    return lows, highs, (step.clamp(max=k), (step - k).clamp(min=0))


def _grid(start: float, end: float, step: float, *, cut: bool, device: torch.device) -> Tensor:
    """``start, start + step, ...`` up to ``end``; with ``cut`` a last shorter step reaches it."""
    count = 0
    if step > 0:
        count = math.ceil((end - start) / step - _SLACK) if cut else math.floor((end - start + _SLACK) / step)
    return (start + step * torch.arange(count + 1, dtype=torch.float64, device=device)).clamp(max=end)


def _histograms(
    r: Tensor, a: Tensor, lows: Tensor, highs: Tensor, cap: float | None, dual_clip: float | None
) -> Tensor:
    """Sums of ``|A|``, ``r |A|``, and ``r |A|`` of tokens with a gradient, over the intervals of both grids.

    Shape ``(3, len(highs) + 1 + len(lows) + 1)``: positive tokens first, then negative ones.
    """
    capped = r if cap is None else r.clamp(max=cap)
    live = a.clamp(max=0) if dual_clip is None else torch.where(r > dual_clip, 0.0, a.clamp(max=0))
    parts = []
    for grid, weight, x, flows, right in (
        (highs, a.clamp(min=0), r, a.clamp(min=0), False),
        (lows, -a.clamp(max=0), capped, -live, True),
    ):
        at = torch.searchsorted(grid, x.contiguous(), right=right).reshape(-1)
        values = torch.stack([weight.reshape(-1), (weight * x).reshape(-1), (flows * x).reshape(-1)])
        parts.append(values.new_zeros(3, len(grid) + 1).index_add(1, at, values))
    return torch.cat(parts, 1)


@register(
    "bapo",
    "policy",
    requires=("advantages",),
    neutral={"low": 0.8, "high": 1.2, "low_step": 0.0, "high_step": 0.0, "dual_clip": 3.0},
    base="ppo",
)
def bapo(
    batch: TokenBatch,
    *,
    variant: str = "paper",
    target: float = 0.4,
    low: float = 0.6,
    low_max: float = 0.9,
    low_step: float = 0.02,
    high: float = 1.2,
    high_max: float = 3.0,
    high_step: float = 0.05,
    contribution: str = "surrogate",
    negative_cap: float | None = None,
    bounds_per: str = "micro_batch",
    scope: str = "local",
    dual_clip: float | None = None,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""BAPO: the clipped surrogate with bounds that balance positive and negative tokens.

    .. math:: \ell = \max(-A r,\; -A\,\mathrm{clip}(r, c_{low}, c_{high}))

    with :math:`c_{low}, c_{high}` from :func:`bapo_bounds`, which carry no gradient. The defaults are the paper's; the
    recipe ``"bapo_verl"`` has those of the authors' code.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs`` (of the policy that sampled), ``advantages``.
        variant: See :func:`bapo_bounds`, like the next nine.
        target: Share of positive contributions.
        low: Start of the lower bound.
        low_max: Its end.
        low_step: Its step.
        high: Start of the upper bound.
        high_max: Its end.
        high_step: Its step.
        contribution: What is counted.
        negative_cap: Largest ratio that counts among negative tokens.
        bounds_per: ``"micro_batch"``: bounds for every batch that the loss is given. ``"step"``: :class:`BAPO` takes
            one pair for an optimizer step that is cut into micro-batches, which costs a forward pass.
        scope: Local, or global over data-parallel ranks.
        dual_clip: Bound on the ratio where the advantage is negative (authors' code: 3), None for none.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics of :func:`infotorch.losses.ppo` plus ``ratio_low``, ``ratio_high`` (the bounds),
        ``positive_share`` and ``positive_share_active`` (at these bounds, by either measure).

    Raises:
        ValueError: Missing advantages, an option out of range.

    Reference: arXiv:2510.18927, 2025.

    >>> batch = TokenBatch(log_probs=torch.tensor([[0.5, 0.0, 0.0]]), old_log_probs=torch.zeros(1, 3),
    ...                    mask=torch.ones(1, 3, dtype=torch.bool), advantages=torch.tensor([[1.0, -1.0, -1.0]]))
    >>> bapo(batch).metrics["ratio_high"]
    tensor(1.3500)
    """
    batch.require("bapo", "advantages")
    check_choice("bounds_per", bounds_per, ("micro_batch", "step"))
    assert batch.advantages is not None
    bounds = bapo_bounds(
        importance_ratio(batch, log_ratio_bound),
        batch.advantages,
        batch.mask,
        variant=variant,
        target=target,
        low=low,
        low_max=low_max,
        low_step=low_step,
        high=high,
        high_max=high_max,
        high_step=high_step,
        contribution=contribution,
        negative_cap=negative_cap,
        dual_clip=dual_clip,
        scope=scope,
    )
    return _within(batch, bounds, dual_clip, log_ratio_bound, aggregation)


def _within(
    batch: TokenBatch,
    bounds: RatioBounds,
    dual_clip: float | None,
    log_ratio_bound: float | None,
    aggregation: AggregationLike,
) -> LossOutput:
    check_clip(0.0, 0.0, dual_clip)
    per_token, metrics = clipped_surrogate(
        importance_ratio(batch, log_ratio_bound),
        batch,
        clip_low=1 - bounds.low,
        clip_high=bounds.high - 1,
        dual_clip=dual_clip,
    )
    metrics |= {
        "ratio_low": bounds.low,
        "ratio_high": bounds.high,
        "positive_share": bounds.share,
        "positive_share_active": bounds.active_share,
    }
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


class BAPO(Part, name="bapo"):
    """Module of :func:`bapo`; with ``bounds_per="step"`` it keeps the bounds of the present optimizer step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._bounds: RatioBounds | None = None

    @property
    def sees_step(self) -> bool:
        """Whether the bounds are to be those of the whole step."""
        return self.options.get("bounds_per") == "step"

    def before_step(self, batch: TokenBatch) -> None:
        """Choose the step's bounds."""
        batch.require("bapo", "advantages")
        assert batch.advantages is not None
        settings = self.settings
        ratio = importance_ratio(batch, settings["log_ratio_bound"])
        rest = ("bounds_per", "log_ratio_bound", "aggregation")
        options = {name: value for name, value in settings.items() if name not in rest}
        self._bounds = bapo_bounds(ratio, batch.advantages, batch.mask, **options)

    def forward(self, batch: TokenBatch) -> LossOutput:
        """The loss within the step's bounds, or within the batch's own where there is no step under way."""
        if self._bounds is None:
            return super().forward(batch)
        batch.require("bapo", "advantages")
        settings = self.settings
        return _within(batch, self._bounds, settings["dual_clip"], settings["log_ratio_bound"], settings["aggregation"])

    def after_step(self) -> None:
        """Forget the step's bounds."""
        self._bounds = None


register_recipe(
    "bapo_verl",
    advantage="grpo",
    policy={
        "name": "bapo",
        "variant": "verl",
        "target": 0.5,
        "low_max": 0.8,
        "low_step": 0.05,
        "high_max": 2.0,
        "dual_clip": 3.0,
    },
)
