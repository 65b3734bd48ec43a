r"""CANON: advantages that let the batch decide whether more of a metric is better.

The completions of a prompt are split into halves by a metric such as entropy or length. The inter-group advantage
compares each completion with the mean of the *other* half, so that the half that does better wins as a whole; the
intra-group advantage compares within the half. With halves of equal size their average is Dr. GRPO.

When to use: a metric matters, and nobody knows in which direction. With ``alpha`` below 1 and ``metric="length"``
(CANON-Eff) the direction is set by hand: shorter answers.

Reference:
    "Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models", 2025, arXiv:2509.23962.

Deviations from the authors' code:
    - A group of one completion has advantage 0 (``singleton="raw"``: its raw reward, as there).
    - ``odd="drop_median"`` keeps halves equal in odd groups, which the theory wants and the code lacks;
      ``ties="average"`` takes R minus the prompt's mean where all metrics are equal (there: batch order decides).
    - A metric that is not finite raises (there: it sorts unpredictably).
    - Groups of equal rewards get exactly 0 for ``alpha=1, beta=0``.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range, check_tensor, is_traced
from infotorch.core.reduce import masked_mean
from infotorch.losses._groups import Groups
from infotorch.losses._select import SCOPES, summed
from infotorch.losses.batch import TokenBatch, widen
from infotorch.losses.registry import ScheduledPart, register, register_recipe

SCHEDULES = ("constant", "accuracy", "accuracy_reversed", "cosine", "cosine_reversed")


def canon_advantages(
    rewards: Tensor,
    group: Tensor,
    metric: Tensor,
    *,
    mu: float | Tensor = 1.0,
    alpha: float = 1.0,
    beta: float = 0.0,
    weighted: str = "low",
    odd: str = "high",
    ties: str = "order",
    singleton: str = "zero",
) -> Tensor:
    r"""Inter- and intra-group advantages of completions split by a metric.

    Sorted by the metric, the first :math:`\lfloor n/2 \rfloor` completions of a prompt are Low, the others High, with
    mean rewards :math:`\bar R_L, \bar R_H`:

    .. math:: A = \mu\,(R - \bar R_{\text{other half}}) + (1 - \mu)\,(R - \bar R_{\text{own half}})

    With ``alpha`` the rewards of the weighted half count so many times in the first term, as reward and as baseline;
    ``beta`` is added there for High and taken off for Low.

    Args:
        rewards: Shape ``(B,)``.
        group: Prompt ids, ``(B,)``.
        metric: One finite number per completion, ``(B,)``.
        mu: Share of the inter-group term; 1 is CANON-Inter, 0 CANON-Intra, 1/2 Dr. GRPO for even groups.
        alpha: Weight of one half.
        beta: Shift in favor of High.
        weighted: The half that ``alpha`` weighs, ``"low"`` or ``"high"``.
        odd: Where the median of an odd group goes: ``"high"``, or into neither half (``"drop_median"``; it gets
            ``R - mean``).
        ties: Equal metrics keep batch order (``"order"``); ``"average"`` gives ``R - mean`` where all are equal.
        singleton: A group of one gets 0 (``"zero"``) or the formula with both means 0 (``"raw"``).

    Returns:
        Shape ``(B,)``, without gradient.

    Raises:
        ValueError: An unknown choice, ``mu`` outside [0, 1], a weight, shift or metric that is not finite, a metric of
            another shape.

    >>> canon_advantages(torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.long),
    ...                  torch.tensor([1.0, 2.0, 3.0, 4.0]))  # the upper half does better
    tensor([-0.5000, -0.5000,  1.0000,  0.0000])
    """
    check_choice("weighted", weighted, ("low", "high"))
    check_choice("odd", odd, ("high", "drop_median"))
    check_choice("ties", ties, ("order", "average"))
    check_choice("singleton", singleton, ("zero", "raw"))
    if not isinstance(mu, Tensor):
        check_range("mu", mu, 0.0, 1.0)
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_range(name, value, -math.inf, math.inf, low_open=True, high_open=True)
    rewards, metric = widen(rewards.detach()), check_tensor("metric", metric).detach()
    if metric.shape != rewards.shape:
        raise ValueError(f"metric: expected shape {tuple(rewards.shape)}, as rewards have, got {tuple(metric.shape)}")
    if not is_traced() and not bool(metric.isfinite().all()):
        raise ValueError(f"metric: expected finite numbers, got {metric[~metric.isfinite()][0].item()}")
    groups = Groups(group)
    rank, half = groups.rank(metric), groups.size // 2
    low = rank < half
    high = rank >= (groups.size - half if odd == "drop_median" else half)
    alone = groups.size == 1
    mean_low = groups.mean_of(rewards, low)
    mean_high = torch.where(alone, 0.0, groups.mean_of(rewards, high))
    weight_low, weight_high = (alpha, 1.0) if weighted == "low" else (1.0, alpha)
    inter = torch.where(
        low,
        weight_low * rewards - weight_high * mean_high - beta,
        weight_high * rewards - weight_low * mean_low + beta,
    )
    found = mu * inter + (1 - mu) * (rewards - torch.where(low, mean_low, mean_high))
    centered = rewards - groups.mean(rewards)
    found = torch.where(low | high | alone, found, centered)
    if ties == "average":
        found = torch.where(groups.uniform(metric) & ~alone, centered, found)
    nothing = alone if singleton == "zero" else torch.zeros_like(alone)
    if alpha == 1.0 and beta == 0.0:
        nothing = nothing | (groups.uniform(rewards) & ~alone)
    return torch.where(nothing, 0.0, found).to(rewards.dtype)


def cosine_restarts(
    step: int | Tensor, *, high: float, low: float, total: int = 150, warmup: int = 30, cycles: int = 3
) -> Tensor:
    r"""Linear warm-up, then a cosine that starts again ``cycles`` times.

    :math:`high\,(k + 1)/w` for :math:`k < w`, then :math:`low + (high - low)(1 + \cos(\pi j / p))/2` with
    :math:`j = (k - w) \bmod p` and :math:`p` = ``(total - warmup) / cycles``.

    Raises:
        ValueError: ``warmup`` that is not below ``total``, no cycle.

    >>> [round(float(cosine_restarts(k, high=0.6, low=0.0)), 3) for k in (0, 29, 30, 50, 69, 70)]
    [0.02, 0.6, 0.6, 0.3, 0.001, 0.6]
    """
    _check_cycles(total, warmup, cycles)
    k = torch.as_tensor(step).to(torch.float64)
    period = (total - warmup) / cycles
    wave = low + (high - low) * (1 + torch.cos(math.pi * ((k - warmup) % period) / period)) / 2
    return torch.where(k < warmup, high * (k + 1) / max(warmup, 1), wave)


def _check_cycles(total: int, warmup: int, cycles: int) -> None:
    check_range("cycles", cycles, 1)
    check_range("warmup", warmup, 0, total, high_open=True)


def inter_share(
    schedule: str,
    *,
    mu: float = 1.0,
    rewards: Tensor | None = None,
    step: int | Tensor = 0,
    total: int = 150,
    warmup: int = 30,
    cycles: int = 3,
    scope: str = "local",
) -> float | Tensor:
    r"""Share :math:`\mu` of the inter-group term under a schedule.

    ===================== ==================================================================================
    schedule              :math:`\mu`
    ===================== ==================================================================================
    ``constant``          ``mu``
    ``accuracy``          mean reward of the batch: intra first, inter later
    ``accuracy_reversed`` 1 minus it: inter first, intra later
    ``cosine``            1 minus :func:`cosine_restarts` between 0.6 and 0
    ``cosine_reversed``   :func:`cosine_restarts` between 1 and 0.4 (authors: ``cosine_r``)
    ===================== ==================================================================================

    The authors call ``cosine`` "first intra, later inter". That describes each cycle; in the warm-up before them it
    moves from inter (0.98) to intra (0.4).

    Raises:
        ValueError: An unknown schedule or scope, an option out of range; rewards missing, or outside [0, 1], for the
            accuracy schedules.

    >>> inter_share("accuracy", rewards=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor(0.2500)
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("scope", scope, SCOPES)
    check_range("mu", mu, 0.0, 1.0)
    _check_cycles(total, warmup, cycles)
    cosine: dict[str, Any] = {"total": total, "warmup": warmup, "cycles": cycles}
    if schedule == "constant":
        return mu
    if schedule == "cosine":
        return 1 - cosine_restarts(step, high=0.6, low=0.0, **cosine)
    if schedule == "cosine_reversed":
        return cosine_restarts(step, high=1.0, low=0.4, **cosine)
    if rewards is None:
        raise ValueError(f"rewards: schedule {schedule!r} needs them, got None")
    rewards = widen(rewards.detach())
    if not is_traced() and not bool(((rewards >= 0) & (rewards <= 1)).all()):
        low, high = rewards.min().item(), rewards.max().item()
        raise ValueError(f"rewards: schedule {schedule!r} needs rewards in [0, 1], got {low:g} to {high:g}")
    sums = torch.stack((rewards.sum(), rewards.new_tensor(float(rewards.numel()))))
    total_reward, count = summed(sums, scope)
    return total_reward / count if schedule == "accuracy" else 1 - total_reward / count


def _metric(batch: TokenBatch, metric: str) -> Tensor:
    """One number per completion: the option ``metric`` of :func:`canon`."""
    if metric == "entropy":
        batch.require("canon", "sampling_entropy")
        return masked_mean(batch.sampling_entropy, batch.mask, dim=1)
    if metric == "length":
        return batch.mask.sum(1)
    if metric == "random":
        return torch.arange(batch.mask.shape[0], device=batch.mask.device)
    if not metric.startswith("extras."):
        raise ValueError(f"metric: expected entropy, length, random or extras.<name>, got {metric!r}")
    batch.require("canon", metric)
    return batch.extras[metric.removeprefix("extras.")]


@register("canon", "advantage", requires=("rewards", "group", "sampling_entropy"))
def canon_advantage(
    batch: TokenBatch,
    *,
    metric: str = "entropy",
    mu: float = 1.0,
    schedule: str = "constant",
    alpha: float = 1.0,
    beta: float = 0.0,
    weighted: str | None = None,
    odd: str = "high",
    ties: str = "order",
    singleton: str = "zero",
    max_length: float | None = None,
    scope: str = "local",
    step: int | Tensor = 0,
    total: int = 150,
    warmup: int = 30,
    cycles: int = 3,
) -> Tensor:
    r"""CANON: completions split by a metric and compared across the halves, on every token.

    .. math:: A = \mu\,(R - \bar R_{\text{other half}}) + (1 - \mu)\,(R - \bar R_{\text{own half}})

    Args:
        batch: Reads ``rewards``, ``group``, and for the entropy metric ``old_entropy`` (or ``entropy``).
        metric: ``"entropy"``, mean token entropy (nats) of the policy that sampled; ``"length"``, in tokens;
            ``"random"``, the place in the batch, as a control; ``"extras.x"``, any numbers ``(B,)`` of that name.
        mu: Share of the inter-group term.
        schedule: How it moves, see :func:`inter_share`.
        alpha: Weight of one half, see :func:`canon_advantages`, like the next five. Above 1 it favors low entropy,
            below 1 (with ``metric="length"``) short answers; anything but 1 presumes a direction.
        beta: Shift in favor of High.
        weighted: The half that ``alpha`` weighs; default: High for the length, Low for other metrics.
        odd: Where the median of an odd group goes.
        ties: What decides where all metrics are equal.
        singleton: Groups of one.
        max_length: Divide by this number of tokens, as the authors do for sums over tokens; None: by nothing.
        scope: Mean reward of the accuracy schedules: of this batch, or over all data-parallel ranks.
        step: Rollout batches so far, for the cosine schedules; :class:`CANON` counts them.
        total: Steps of the cosine schedules.
        warmup: Steps of their warm-up.
        cycles: Restarts.

    Returns:
        Shape ``(B, T)``.

    Raises:
        ValueError: A missing field, an unknown choice, a metric that is not finite, ``mu`` outside [0, 1].

    Warns:
        UserWarning: From :class:`CANON`, once, when a group is odd and ``odd="high"``: halves then differ in size and
            ``mu=0.5`` is not Dr. GRPO.

    Reference: 2025, arXiv:2509.23962.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 3), mask=torch.tensor([[True, True, True], [True, False, False]]),
    ...                    rewards=torch.tensor([1.0, 0.0]), group=torch.tensor([0, 0]))
    >>> canon_advantage(batch, metric="length")
    tensor([[ 1.,  1.,  1.],
            [-1., -0., -0.]])
    """
    batch.require("canon", "rewards", "group")
    assert batch.rewards is not None
    assert batch.group is not None
    share = inter_share(
        schedule,
        mu=mu,
        rewards=batch.rewards,
        step=step,
        total=total,
        warmup=warmup,
        cycles=cycles,
        scope=scope,
    )
    found = canon_advantages(
        batch.rewards,
        batch.group,
        _metric(batch, metric),
        mu=share,
        alpha=alpha,
        beta=beta,
        weighted=weighted or ("high" if metric == "length" else "low"),
        odd=odd,
        ties=ties,
        singleton=singleton,
    )
    if max_length is not None:
        found = found / check_range("max_length", max_length, 0.0, low_open=True)
    return found.unsqueeze(1) * batch.mask


class CANON(ScheduledPart, name="canon"):
    """Module of :func:`canon_advantage`; counts rollout batches and warns of odd groups."""

    _warned = False

    def observe(self, batch: TokenBatch) -> None:
        """Look at the sizes of the groups, until one is odd."""
        if self._warned or self.options.get("odd", "high") != "high" or batch.group is None:
            return
        size = Groups(batch.group).size
        if bool(((size % 2 == 1) & (size > 1)).any()):
            self._warned = True
            warnings.warn(
                "canon: a prompt has an odd number of completions, so its halves differ in size and mu=0.5 is not Dr. "
                'GRPO; use an even number, or odd="drop_median"',
                UserWarning,
                stacklevel=2,
            )

    def rollout_metrics(self) -> dict[str, Tensor]:
        """Share of the inter-group term, where a schedule moves it by the step."""
        options = self.settings
        if not options["schedule"].startswith("cosine"):
            return {}
        names = ("total", "warmup", "cycles")
        share = inter_share(options["schedule"], step=self.step, **{name: options[name] for name in names})
        return {"inter_share": torch.as_tensor(share, dtype=torch.float32)}


# The authors' loss is Dr. GRPO's: sums over tokens, divided by a constant length (set the aggregation's `length`).
register_recipe(
    "canon",
    advantage="canon",
    policy={"name": "ppo", "clip_high": 0.28, "aggregation": "seq-mean-token-sum-norm"},
)
