r"""COPO: learn from prompts whose completions all got the same reward.

Where every completion of a prompt is wrong, or every one is right, GRPO's advantage is 0 and the rollouts are lost.
COPO adds an advantage of the whole prompt among the prompts of the batch, and blends the two losses by how much the
sampled answers disagree: agreement leaves nothing to compare within the prompt, so the prompt's advantage takes over.

When to use: a large share of prompts is all wrong (or all right) and answers can be told apart. Compare with the
prompt's advantage alone (``mode="global"``), which the authors' ablation finds about as good.

Reference:
    "COPO: Consistency-Aware Policy Optimization", 2025, arXiv:2508.04138.

Deviations from the authors' code:
    - The published mode tests each response: a wrong one gets the prompt's loss alone, and where its prompt stands
      above the average that loss *reinforces the wrong answer*. The default, ``"soft_zero"``, asks whether the whole
      group failed, as the text describes it; ``"soft_zero_per_response"`` is the code's rule (see
      :func:`copo_weight`).
    - A single prompt, or prompts that are all equally good, give a prompt advantage of 0 (there: NaN for one).
    - Groups of one completion have advantage 0 and entropy 0 (there: the raw reward, and 0/0).
    - The rewards of the zero rule are kept without ``normalize`` too (there: they are never filled, and the rule fires
      for every response).
    - Modes that ask whether a row has a local advantage look at the whole row (there: at its first position).
    - An answer entropy of 0 is 0 (there: about -1e-8).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.discrete import answer_entropy
from infotorch.core.reduce import masked_mean
from infotorch.losses._groups import Groups
from infotorch.losses._select import SCOPES, summed
from infotorch.losses.advantages import group_advantages
from infotorch.losses.batch import LossOutput, TokenBatch, widen
from infotorch.losses.ppo import AggregationLike, check_clip, clipped_surrogate, importance_ratio, reduce_loss
from infotorch.losses.registry import Part, register, register_recipe

MODES = ("soft_zero", "soft_zero_per_response", "soft", "soft_forced", "zero", "forced", "local", "global")
# What the authors call them; their launch script writes hyphens, their function accepts spaces only.
_THEIR_NAMES = {
    "soft with zero": "soft_zero_per_response",
    "soft with forced": "soft_forced",
    "only soft": "soft",
    "only zero": "zero",
    "only forced": "forced",
    "no global": "local",
    "only global": "global",
}
_KEPT = ("copo_advantages", "copo_weight", "answer_entropy")


class COPOAdvantages(NamedTuple):
    """What COPO derives from a rollout batch, each of shape ``(B,)``.

    Attributes:
        local: GRPO's advantage within the prompt.
        prompt: The prompt's advantage among prompts.
        entropy: Entropy of the prompt's answers, nats.
    """

    local: Tensor
    prompt: Tensor
    entropy: Tensor


def prompt_advantages(
    rewards: Tensor, group: Tensor, *, normalize: bool = True, eps: float = 1e-6, scope: str = "local"
) -> Tensor:
    r"""Advantage of a whole prompt, :math:`G_q = (R_q - \bar R) / (\sigma_R + \epsilon)`, :math:`R_q` its mean reward.

    Mean and deviation (Bessel's correction) count every prompt once, however many completions it has.

    Args:
        rewards: Shape ``(B,)``.
        group: Prompt ids, shape ``(B,)``.
        normalize: Divide by the deviation.
        eps: Added to it.
        scope: Over the prompts of this batch, or of all data-parallel ranks (``"global"``).

    Returns:
        Shape ``(B,)``, without gradient; 0 where all prompts are equally good or there is only one.

    Raises:
        ValueError: Unknown scope, a negative ``eps``.

    >>> prompt_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1]), eps=0.0)
    tensor([ 0.7071,  0.7071, -0.7071, -0.7071])
    """
    check_choice("scope", scope, SCOPES)
    check_range("eps", eps, 0.0)
    groups = Groups(group)
    value, once = groups.mean(widen(rewards.detach())), groups.first()
    largest = distributed.all_reduce_max if scope == "global" else (lambda x: x)
    count, mean = summed(torch.stack((once.sum().to(value.dtype), (value * once).sum())), scope)
    mean = mean / count.clamp(min=1)
    std = (summed(((value - mean).square() * once).sum(), scope) / (count - 1).clamp(min=1)).sqrt()
    high, low = largest(torch.stack((value.max(), -value.min())))
    centered = (value - mean) / (std + eps) if normalize else value - mean
    return torch.where(high == -low, 0.0, centered)


def copo_advantages(
    rewards: Tensor,
    group: Tensor,
    answers: Tensor,
    *,
    normalize: bool = True,
    discount: bool = False,
    missing: str = "equal",
    eps: float = 1e-6,
    scope: str = "local",
) -> COPOAdvantages:
    r"""Local advantages, prompt advantages and answer entropies.

    With ``discount`` a prompt's reward is worth less where its answers disagree, :math:`R_q (1 - \lambda H)` with
    :math:`\lambda = (1 - 1/n) / \log n` (full disagreement of n answers leaves :math:`R_q / n`).

    Args:
        rewards: Shape ``(B,)``.
        group: Prompt ids, ``(B,)``.
        answers: Answer ids, ``(B,)``; -1 for a failed extraction.
        normalize: Divide both advantages by their standard deviation.
        discount: See above.
        missing: Failed extractions count as one answer (``"equal"``, as the authors: n failures are perfectly
            consistent) or each as its own (``"distinct"``).
        eps: Added to the deviations.
        scope: Prompts of this batch or of all data-parallel ranks.

    Raises:
        ValueError: Unknown ``missing`` or ``scope``, a negative ``eps``.

    >>> found = copo_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1]),
    ...                         torch.tensor([5, 3, 8, 8]))
    >>> found.local, found.prompt
    (tensor([ 0.7071, -0.7071,  0.0000,  0.0000]), tensor([ 0.7071,  0.7071, -0.7071, -0.7071]))
    >>> found.entropy
    tensor([0.6931, 0.6931, 0.0000, 0.0000])
    """
    rewards = widen(rewards.detach())
    scale = "group" if normalize else "none"
    local = group_advantages(rewards, group, scale=scale, eps=eps, singleton="zero")
    entropy = answer_entropy(answers, group, missing=missing).to(rewards.dtype)
    if discount:
        size = Groups(group).size.to(rewards.dtype)
        price = (1 - 1 / size) / size.log().clamp(min=math.log(2))  # 0 for one completion
        rewards = rewards * (1 - price * entropy)  # the same factor for the whole group
    return COPOAdvantages(local, prompt_advantages(rewards, group, normalize=normalize, eps=eps, scope=scope), entropy)


def copo_mode(mode: str) -> str:
    """The mode's name here, for the authors' names too (with spaces or hyphens).

    Raises:
        ValueError: Unknown mode.

    >>> copo_mode("soft-with-zero")
    'soft_zero_per_response'
    """
    mode = _THEIR_NAMES.get(mode.replace("-", " "), mode)
    return check_choice("mode", mode, MODES)


def copo_weight(
    entropy: Tensor,
    *,
    mode: str = "soft_zero",
    slope: float = 5.0,
    midpoint: float = 1.0,
    rewards: Tensor | None = None,
    group: Tensor | None = None,
    advantages: Tensor | None = None,
) -> Tensor:
    r"""Share of the local loss, :math:`w = \mathrm{sigmoid}(k (H_{bits} - b))` under the condition of a mode.

    ========================== ======================================================================
    mode                       weight
    ========================== ======================================================================
    ``soft_zero``              w, 0 where all of the prompt's rewards are 0
    ``soft_zero_per_response`` w, 0 where the response's own reward is 0 (authors: ``soft with zero``)
    ``soft``                   w (authors: ``only soft``)
    ``soft_forced``            w, 0 where the row's local advantage is 0 (``soft with forced``)
    ``zero``                   1 where the response's reward is not 0 (``only zero``)
    ``forced``                 1 where the row's local advantage is not 0 (``only forced``)
    ``local``, ``global``      1 and 0 (``no global``, ``only global``)
    ========================== ======================================================================

    With rewards that are not 0 or 1 the condition reads "any credit at all".

    Args:
        entropy: Answer entropies in nats, shape ``(B,)``.
        mode: See above; the authors' names are accepted with spaces or hyphens.
        slope: k, per bit.
        midpoint: b, in bits, as published.
        rewards: ``(B,)``, for the zero modes.
        group: Prompt ids, for ``soft_zero``.
        advantages: Local advantages, ``(B,)`` or ``(B, T)``, for the forced modes.

    Returns:
        Shape ``(B,)``, in [0, 1].

    Raises:
        ValueError: Unknown mode, or a tensor that the mode needs is missing.

    >>> copo_weight(torch.tensor([0.0, math.log(2)]), mode="soft")  # 0 and 1 bit
    tensor([0.0067, 0.5000])
    """
    mode = copo_mode(mode)
    soft = torch.sigmoid(slope * (entropy / math.log(2) - midpoint))
    if mode in ("local", "global", "soft"):
        return {"local": torch.ones_like(soft), "global": torch.zeros_like(soft), "soft": soft}[mode]
    if mode in ("soft_forced", "forced"):
        if advantages is None:
            raise ValueError(f"advantages: mode {mode!r} needs the local advantages, got None")
        kept = (advantages if advantages.ndim == 1 else advantages.abs().amax(1)) != 0
    else:
        if rewards is None:
            raise ValueError(f"rewards: mode {mode!r} needs them, got None")
        kept = rewards != 0
        if mode == "soft_zero":
            if group is None:
                raise ValueError("group: mode 'soft_zero' needs the prompt ids, got None")
            kept = Groups(group).any(kept)
    return torch.where(kept, 1.0 if mode in ("zero", "forced") else soft, 0.0).to(soft.dtype)


def blended_policy_loss(
    batch: TokenBatch,
    other: Tensor,
    weight: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "seq-mean-token-mean",
) -> LossOutput:
    r"""Two clipped losses of the same ratio, :math:`w\,\ell(A) + (1 - w)\,\ell(G)`.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages`` (A).
        other: The other advantage G, ``(B,)`` or ``(B, T)``.
        weight: w, share of the loss with ``batch.advantages``, ``(B,)``.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        dual_clip: See :func:`infotorch.losses.ppo`.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics of :func:`infotorch.losses.ppo` (those of A), ``prompt_clip_fraction`` and
        ``local_weight``.

    Raises:
        ValueError: Missing advantages, a negative clip width, ``dual_clip <= 1``.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool),
    ...                    advantages=torch.ones(1))
    >>> blended_policy_loss(batch, torch.tensor([-1.0]), torch.tensor([0.75])).loss
    tensor(-0.5000)
    """
    batch.require("blended_policy_loss", "advantages")
    check_clip(clip_low, clip_high, dual_clip)
    ratio = importance_ratio(batch, log_ratio_bound)
    clip: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    local, metrics = clipped_surrogate(ratio, batch, **clip)
    second, further = clipped_surrogate(ratio, batch.replace(advantages=other.detach()), **clip)
    w = weight.detach().to(local.dtype).unsqueeze(1)
    metrics["prompt_clip_fraction"] = further["clip_fraction"]
    metrics["local_weight"] = masked_mean(w.expand_as(local), batch.mask)
    return reduce_loss(batch, w * local + (1 - w) * second, aggregation, metrics)


def _statistics(batch: TokenBatch, mode: str, slope: float, midpoint: float, **options: Any) -> dict[str, Tensor]:
    """What depends on whole groups and on all prompts, one number per row; needs a complete rollout batch."""
    batch.require("copo", "advantages", "rewards", "group", "answer")
    rewards, group, answer = batch.rewards, batch.group, batch.answer
    assert rewards is not None
    assert group is not None
    assert answer is not None
    _, prompt, entropy = copo_advantages(rewards, group, answer, **options)
    weight = copo_weight(
        entropy, mode=mode, slope=slope, midpoint=midpoint, rewards=rewards, group=group, advantages=batch.advantages
    )
    return dict(zip(_KEPT, (prompt, weight, entropy), strict=True))


@register(
    "copo",
    "policy",
    requires=("advantages", "rewards", "group", "answer"),
    neutral={"mode": "local", "aggregation": "token-mean"},
    base="ppo",
)
def copo(
    batch: TokenBatch,
    *,
    mode: str = "soft_zero",
    slope: float = 5.0,
    midpoint: float = 1.0,
    discount: bool = False,
    missing: str = "equal",
    normalize: bool = True,
    eps: float = 1e-6,
    scope: str = "local",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "seq-mean-token-mean",
) -> LossOutput:
    r"""COPO: the prompt's own GRPO loss and a loss of the prompt among prompts, blended by answer consistency.

    .. math:: L = \mathrm{agg}\big(w\,\ell(A) + (1 - w)\,\ell(G)\big), \qquad w = \mathrm{sigmoid}(k (H - b))

    A is the advantage within the prompt (part ``grpo``), G that of the prompt among prompts
    (:func:`prompt_advantages`), H the entropy of its answers. Low disagreement gives the loss to G.

    G and w need every prompt of the rollout batch: :meth:`Recipe.prepare` computes them once and keeps them in
    ``extras`` for all mini-batches. Without these extras they are computed from the batch at hand, which must then
    be complete.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``, ``rewards``, ``group``, ``answer``.
        mode: When the local loss counts, see :func:`copo_weight`.
        slope: k, per bit.
        midpoint: b, in bits.
        discount: Price disagreement in the prompt's reward, see :func:`copo_advantages`, like the next three.
        missing: Failed extractions are one answer or distinct ones.
        normalize: Divide G by its standard deviation.
        eps: Added to the deviation.
        scope: Prompts of this batch (``"local"``) or of all data-parallel ranks (``"global"``).
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        dual_clip: See :func:`infotorch.losses.ppo`.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        aggregation: How tokens become a scalar; the authors' is the default.

    Returns:
        Loss and the metrics of :func:`blended_policy_loss` plus ``answer_entropy`` (nats).

    Raises:
        ValueError: A missing field, an unknown mode, an option out of range.

    Reference: 2025, arXiv:2508.04138.

    >>> batch = TokenBatch(log_probs=torch.zeros(4, 1), mask=torch.ones(4, 1, dtype=torch.bool),
    ...                    advantages=torch.tensor([1.0, -1.0, 0.0, 0.0]), group=torch.tensor([0, 0, 1, 1]),
    ...                    rewards=torch.tensor([1.0, 0.0, 0.0, 0.0]), answer=torch.tensor([5, 3, 8, 8]))
    >>> copo(batch).per_token.squeeze(1)  # the failed prompt is pushed down although its local advantage is 0
    tensor([-0.8536,  0.1464,  0.7071,  0.7071])
    """
    copo_mode(mode)
    check_choice("scope", scope, SCOPES)
    check_range("slope", slope, 0.0)
    check_range("midpoint", midpoint, 0.0)
    found: Any = batch.extras
    if not all(name in found for name in _KEPT):
        options = {"discount": discount, "missing": missing, "normalize": normalize, "eps": eps, "scope": scope}
        # Raises for what is missing; with the extras at hand neither rewards nor answers are needed.
        found = _statistics(batch, mode, slope, midpoint, **options)
    out = blended_policy_loss(
        batch,
        found["copo_advantages"],
        found["copo_weight"],
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        log_ratio_bound=log_ratio_bound,
        aggregation=aggregation,
    )
    entropy = found["answer_entropy"].unsqueeze(1).expand_as(batch.mask)
    out.metrics["answer_entropy"] = masked_mean(entropy.to(out.loss.dtype), batch.mask).detach()
    return out


class COPO(Part, name="copo"):
    """Module of :func:`copo`; it forms the batch's statistics once per rollout batch."""

    def rearrange(self, batch: TokenBatch) -> TokenBatch:
        """Keep prompt advantages, weights and answer entropies of the rows sampled for this step in ``extras``."""
        names = ("mode", "slope", "midpoint", "discount", "missing", "normalize", "eps", "scope")
        settings = self.settings
        options = {name: settings[name] for name in names}
        found = batch.of_sampled(lambda own: _statistics(own, **options))
        return batch.replace(extras={**batch.extras, **found})


# Groups of one completion teach nothing within the prompt.
register_recipe("copo", advantage={"name": "grpo", "singleton": "zero"}, policy="copo")
