r"""ARES: think less on easy prompts and more on hard ones, by counting runs of uncertain tokens.

A group's accuracy says how hard its prompt is. Each response's count N of high-entropy windows is compared with a
target for that difficulty: easy prompts should have fewer, hard ones more. A KL penalty with a weight for each
difficulty goes with it, :mod:`infotorch.losses.ares_kl`.

When to use: a reasoning model that overthinks easy prompts and gives up early on hard ones.

Paper and released code are two algorithms, ``variant="paper"`` (default) and ``variant="code"``.

Reference:
    "ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping", 2025, arXiv:2510.08457.

Deviations:
    - With target and mean from the same batch, as the paper writes, the strength of its term is always 0. Targets are a
      running mean over the batches before (``decay``); the first batch is not shaped.
    - For hard prompts the paper's strength is positive only when the mean lies above its target, which is when nothing
      is charged: ``hard_sign_fix`` takes the distance instead.
    - The code's variant has no engine's top ten here: the entropy is the full one, and trigger words are looked for
      among ``extras["top_tokens"]`` (most likely tokens) or else the sampled tokens.
    - In the code's variant nothing is shaped before there is a threshold (there: every trigger counts).
    - Targets, weights and thresholds are in the checkpoint (there: lost).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_quantile
from infotorch.losses._groups import Groups
from infotorch.losses._select import SCOPES
from infotorch.losses.ares_kl import DIFFICULTIES, difficulty, per_difficulty
from infotorch.losses.ares_windows import (
    TAU_OVER,
    covered_by,
    high_entropy_windows,
    trigger_counts,
    trigger_threshold,
    window_threshold,
)
from infotorch.losses.batch import TokenBatch
from infotorch.losses.registry import Part, register, register_recipe

VARIANTS = ("paper", "code")


def ares_strength(
    counts: Tensor,
    level: Tensor,
    targets: Tensor,
    *,
    eps: float = 1e-6,
    hard_sign_fix: bool = True,
) -> Tensor:
    r"""The paper's strength for easy, medium and hard, :math:`\lambda_d = \max(0, (E[N] - N^*_d) / (V[N] + \epsilon))`.

    Args:
        counts: High-entropy windows N of each response, ``(B,)``.
        level: Difficulty 0, 1 or 2, ``(B,)``.
        targets: :math:`N^*`, ``(3,)``; infinite where there is none yet.
        eps: Added to the (population) variance.
        hard_sign_fix: Take the distance for hard prompts.

    Returns:
        Shape ``(3,)``; 0 for a difficulty without responses or target.

    >>> counts, level = torch.tensor([2.0, 4.0]), torch.tensor([0, 0])
    >>> ares_strength(counts, level, torch.tensor([1.0, 1.0, 1.0]), eps=0.0)
    tensor([2., 0., 0.])
    """
    rows, mean, square = _moments(counts, level)
    gap = mean - targets
    if hard_sign_fix:
        gap = torch.cat((gap[:2], gap[2:].abs()))
    strength = gap.clamp(min=0) / ((square - mean.square()).clamp(min=0) + eps).clamp(min=torch.finfo(gap.dtype).tiny)
    return torch.where((rows > 0) & targets.isfinite(), strength, 0.0)


def _moments(counts: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of responses, mean and mean square of the counts, by difficulty."""
    none = counts.new_zeros(3)
    rows = none.index_add(0, level, torch.ones_like(counts))
    mean = none.index_add(0, level, counts) / rows.clamp(min=1)
    return rows, mean, none.index_add(0, level, counts.square()) / rows.clamp(min=1)


def ares_deviation(counts: Tensor, level: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r"""The paper's :math:`\Delta = N - N^*_d` and penalty: above the target (easy), off it (medium), below it (hard).

    >>> counts, level, targets = torch.tensor([3.0, 1.0, 1.0]), torch.tensor([0, 1, 2]), torch.tensor([2.0, 2.0, 2.0])
    >>> ares_deviation(counts, level, targets)[1]
    tensor([1., 1., 1.])
    """
    delta = counts - targets[level]
    off = torch.where(level == 0, delta.clamp(min=0), torch.where(level == 1, delta.abs(), (-delta).clamp(min=0)))
    return delta, off


def ares_score(counts: Tensor, level: Tensor, correct: Tensor, targets: Tensor, alpha: Tensor) -> Tensor:
    r"""The released code's term, added to the accuracy.

    It charges correct answers for leaving the target and gives **every wrong answer a bonus** of at least
    :math:`0.3\alpha` to :math:`0.6\alpha`.

    Args:
        counts: N, ``(B,)``.
        level: Difficulty 0, 1 or 2, ``(B,)``.
        correct: Boolean, ``(B,)``.
        targets: Target of each row, ``(B,)``.
        alpha: Scale of each row, ``(B,)``.

    >>> one = torch.ones(1)
    >>> ares_score(0 * one, torch.tensor([2]), torch.tensor([False]), 0 * one, 0.5 * one)  # wrong and hard
    tensor([0.3000])
    """

    def of(easy: float, medium: float, hard: float) -> Tensor:
        return counts.new_tensor([easy, medium, hard])[level]

    kappa, temperature, cap = of(2.0, 3.0, 4.0), of(2.0, 2.5, 3.0), alpha * of(1.0, 1.0, 1.2)
    margin = (of(0.15, 0.25, 0.35) * targets.clamp(min=1)).clamp(min=1)
    off = counts - targets

    def fine(x: Tensor, scale: float | Tensor) -> Tensor:
        huber = torch.where(x <= kappa, x.square() / (2 * kappa), x - kappa / 2)
        return -torch.minimum(cap, scale * cap * huber / (margin + kappa))

    above = (off - margin).clamp(min=0)
    wrong = of(0.6, 0.8, 1.0) * cap * torch.sigmoid(above / temperature)
    beyond = torch.where(level == 1, (off.abs() - margin).clamp(min=0), above)
    enough = cap * torch.sigmoid((off + margin) / temperature)
    hard = torch.where(off >= -margin, enough, fine((-off - margin).clamp(min=0), 0.5))
    return torch.where(correct, torch.where(level == 2, hard, fine(beyond, 1.0)), wrong)


@register(
    "ares",
    "reward",
    requires=("rewards", "group", "tokens", "sampling_entropy"),
    example={"targets": (0.5, 0.5, 0.5), "window": 2, "quantile": 0.5},
)
def ares_reward(
    batch: TokenBatch,
    *,
    variant: str = "paper",
    window: int = 4,
    quantile: float = 0.95,
    tau_over: str = "tokens",
    targets: Sequence[float] | Tensor | None = None,
    decay: float = 0.9,
    hard_sign_fix: bool = True,
    trigger_tokens: Sequence[int] | None = None,
    threshold: float | Tensor | None = None,
    threshold_decay: float = 0.99,
    alpha: float | Sequence[float] | Tensor = 0.5,
    alpha_lr: float = 0.05,
    correct_above: float = 0.5,
    scope: str = "local",
) -> Tensor:
    r"""Rewards shaped by how often a response hesitates, compared with a target for its prompt's difficulty.

    ``"paper"``: a wrong answer loses :math:`\lambda_d\, g_d(N - N^*_d)`, see :func:`ares_strength` and
    :func:`ares_deviation`. ``"code"``: every answer gets :func:`ares_score`; targets are the rounded mean over prompts
    of the present batch.

    Args:
        batch: Reads ``rewards``, ``group``, ``tokens``, ``old_entropy`` (or ``entropy``).
        variant: ``"paper"`` or ``"code"``.
        window: Length of a window.
        quantile: Of the thresholds.
        tau_over: See :func:`window_threshold` (paper).
        targets: :math:`N^*` for easy, medium, hard. None: :class:`Ares` keeps a running mean (paper). For ``"code"``
            those of difficulties that the batch lacks.
        decay: Of that running mean.
        hard_sign_fix: See :func:`ares_strength`.
        trigger_tokens: Ids of the trigger words (code); None: every token.
        threshold: Least entropy after a trigger (code). None: not known yet, nothing is shaped.
        threshold_decay: Of its running value, for the module.
        alpha: Scale for easy, medium, hard (code), in [0, 2]; where the module's starts.
        alpha_lr: Its step, for the module.
        correct_above: Rewards above this count as correct.
        scope: Statistics of this batch, or of all data-parallel ranks (``"global"``).

    Returns:
        Rewards, shape ``(B,)``.

    Raises:
        ValueError: A missing field, an option out of range, an unknown choice.

    Reference: "ARES", 2025, arXiv:2510.08457.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 4), mask=torch.ones(2, 4, dtype=torch.bool),
    ...                    rewards=torch.zeros(2), group=torch.tensor([0, 0]), tokens=torch.zeros(2, 4).long(),
    ...                    entropy=torch.tensor([[0.1, 2.0, 2.0, 0.1], [0.1, 0.1, 0.1, 0.1]]))
    >>> ares_reward(batch, window=2, quantile=0.8, targets=(1.0, 1.0, 1.0))  # hard, and the second never hesitates
    tensor([ 0.0000, -2.0000])
    """
    batch.require("ares", "rewards", "group", "tokens", "sampling_entropy")
    check_choice("variant", variant, VARIANTS)
    check_choice("tau_over", tau_over, TAU_OVER)
    check_choice("scope", scope, SCOPES)
    for name, value in {"decay": decay, "threshold_decay": threshold_decay, "quantile": quantile}.items():
        check_range(name, value, 0.0, 1.0)
    check_range("alpha_lr", alpha_lr, 0.0)
    assert batch.rewards is not None
    found = _Counts(batch, variant, window, quantile, tau_over, trigger_tokens, threshold, correct_above, scope)
    rewards = batch.rewards
    old = per_difficulty("targets", torch.inf if targets is None else targets).to(found.counts)
    if variant == "code":
        if threshold is None:
            return rewards.clone()
        aims, scales = found.rounded(old)[found.level], _scales(alpha).to(old)[found.level]
        term = ares_score(found.counts, found.level, found.correct, aims, scales)
        known = torch.as_tensor(threshold, device=rewards.device).isfinite()  # the module has none yet
        return torch.where(known, rewards + term, rewards).to(rewards.dtype)
    strength = ares_strength(found.all_counts, found.all_levels, old, hard_sign_fix=hard_sign_fix)
    _, off = ares_deviation(found.counts, found.level, torch.where(old.isfinite(), old, 0.0))
    return torch.where(found.correct, rewards, (rewards - strength[found.level] * off).to(rewards.dtype))


def _scales(alpha: float | Sequence[float] | Tensor) -> Tensor:
    """The option ``alpha`` for every difficulty; a tensor is the module's own and in range."""
    if not isinstance(alpha, Tensor):
        for value in [alpha] if isinstance(alpha, float | int) else alpha:
            check_range("alpha", value, 0.0, 2.0)
    return per_difficulty("alpha", alpha)


class _Counts:
    """Difficulty and N of every row; with ``scope="global"`` those of all ranks beside them."""

    def __init__(
        self,
        batch: TokenBatch,
        variant: str,
        window: int,
        quantile: float,
        tau_over: str,
        trigger_tokens: Sequence[int] | None,
        threshold: float | Tensor | None,
        correct_above: float,
        scope: str,
    ) -> None:
        assert batch.rewards is not None
        assert batch.group is not None
        assert batch.tokens is not None
        entropy, self.shared = batch.sampling_entropy, scope == "global"
        groups = Groups(batch.group)
        self.correct = batch.rewards > correct_above
        self.level = difficulty(self.correct, batch.group)
        if variant == "paper":
            tau = window_threshold(entropy, batch.mask, window=window, quantile=quantile, over=tau_over, scope=scope)
            starts = high_entropy_windows(entropy, batch.mask, tau, window)
            counts, self.high = starts.sum(1), covered_by(starts, window)
        else:
            trigger = torch.ones_like(batch.mask)
            if trigger_tokens is not None:
                words = torch.tensor(list(trigger_tokens), dtype=torch.long, device=batch.mask.device)
                trigger = torch.isin(batch.extras.get("top_tokens", batch.tokens), words)
            bound = torch.inf if threshold is None else threshold
            counts, _, _ = trigger_counts(entropy, batch.mask, trigger, bound, window)
            self.high = torch.zeros_like(batch.mask)  # the code relaxes nothing
            self.quantiles = self._all(trigger_threshold(entropy, batch.mask, window=window, quantile=quantile))
        self.counts = counts.to(torch.promote_types(batch.rewards.dtype, torch.float32))
        self.all_counts, self.all_levels = self._all(self.counts), self._all(self.level)
        self.prompt_weight = self._all(1 / groups.size.to(self.counts.dtype))

    def _all(self, x: Tensor) -> Tensor:
        return distributed.gather_cat(x) if self.shared else x

    def by_prompt(self) -> tuple[Tensor, Tensor]:
        """Mean over prompts of their mean N, by difficulty, and the number of prompts."""
        none = self.counts.new_zeros(3)
        prompts = none.index_add(0, self.all_levels, self.prompt_weight)
        total = none.index_add(0, self.all_levels, self.prompt_weight * self.all_counts)
        return total / torch.where(prompts > 0, prompts, 1.0), prompts

    def rounded(self, old: Tensor) -> Tensor:
        """The code's targets; the old one (or 0) for a difficulty without prompts."""
        mean, prompts = self.by_prompt()
        return torch.where(prompts > 0, mean.round(), torch.where(old.isfinite(), old, 0.0))

    def batch_threshold(self) -> Tensor:
        """Median over responses."""
        return masked_quantile(self.quantiles, ~self.quantiles.isnan(), 0.5)


class Ares(Part, name="ares"):
    """Module of :func:`ares_reward`; targets, scales and the threshold are in ``state_dict``.

    Difficulties, and tokens in windows of high entropy, are kept in ``extras["ares_difficulty"]`` and
    ``extras["ares_high_entropy"]`` for :func:`ares_kl`, which could not tell them from shaped rewards. What a rollout
    batch teaches is used from the next one on. Metrics: ``ares_count`` (mean N) and the target of each difficulty.
    """

    targets: Tensor
    threshold: Tensor
    alpha: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.chosen = self.settings
        fixed = self.chosen["targets"]
        self.register_buffer("targets", per_difficulty("targets", torch.inf if fixed is None else fixed).clone())
        start = self.chosen["threshold"]
        self.register_buffer("threshold", torch.tensor(torch.inf if start is None else start, dtype=torch.float64))
        self.register_buffer("alpha", _scales(self.chosen["alpha"]).clone())
        self._found: _Counts | None = None

    def forward(self, batch: TokenBatch) -> Tensor:
        """Shaped rewards; what was counted is held until the batch is observed."""
        present = {"targets": self.targets, "threshold": self.threshold, "alpha": self.alpha}
        rewards = self.info.function(batch, **{**self.options, **present})
        names = ("variant", "window", "quantile", "tau_over", "trigger_tokens", "correct_above", "scope")
        self._found = _Counts(batch, threshold=self.threshold, **{name: self.chosen[name] for name in names})
        return rewards

    def rearrange(self, batch: TokenBatch) -> TokenBatch:
        """Keep difficulty and windows of the rows sampled for this step."""
        found = self._found
        if found is None:
            return batch
        kept = batch.of_sampled(lambda _: {"ares_difficulty": found.level, "ares_high_entropy": found.high})
        return batch.replace(extras={**batch.extras, **kept})

    def observe(self, batch: TokenBatch) -> None:
        """Move targets (paper), or threshold and scales (code)."""
        found = self._found
        if found is None:
            return
        if self.chosen["variant"] == "paper":
            if self.chosen["targets"] is None:
                rows, mean, _ = _moments(found.all_counts.double(), found.all_levels)
                decay = self.chosen["decay"]
                moved = torch.where(self.targets.isfinite(), decay * self.targets + (1 - decay) * mean, mean)
                self.targets.copy_(torch.where(rows > 0, moved, self.targets))
            return
        mean, prompts = found.by_prompt()
        known = self.threshold.isfinite()
        aims = found.rounded(self.targets.to(mean))
        gap = (mean - aims) * mean.new_tensor([1.0, 1.0, -1.0])
        moved = (self.alpha + self.chosen["alpha_lr"] * gap).clamp(0, 2)
        self.alpha.copy_(torch.where((prompts > 0) & known, moved, self.alpha))
        self.targets.copy_(torch.where(known, aims, self.targets))
        fresh, decay = found.batch_threshold().double(), self.chosen["threshold_decay"]
        moved = torch.where(known, decay * self.threshold + (1 - decay) * fresh, fresh)
        self.threshold.copy_(torch.where(fresh.isnan(), self.threshold, moved))

    def rollout_metrics(self) -> Mapping[str, Tensor]:
        """What the last rollout batch showed."""
        if self._found is None:
            return {}
        targets = {
            f"ares_target_{name}": torch.where(self.targets[i].isfinite(), self.targets[i], 0.0)
            for i, name in enumerate(DIFFICULTIES)
        }
        return {"ares_count": self._found.counts.mean(), **targets}


register_recipe(
    "ares",
    rewards=["ares"],
    advantage="grpo",
    policy={"name": "ppo", "clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0},
    regularizers=["ares_kl"],
)
