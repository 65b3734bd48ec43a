r"""EPO: an entropy bonus, and a corridor around the mean entropy of past steps, for agents over many turns.

With one reward at the end of 10 to 50 turns, entropy swings from step to step. EPO adds to any policy loss a bonus on
entropy and a penalty on tokens whose entropy leaves a corridor around the running mean.

When to use: agents over many turns whose entropy oscillates. It works on single turns too. With a corridor that is
never left it is an entropy bonus, which is the control to beat; a cap on each turn's entropy
(:func:`entropy_cap`) is another.

Two penalties bear the name:
    - ``"hinge"`` (paper, second version): the distance to the corridor. It has a gradient; the default.
    - ``"indicator"`` (first version and released code): a constant outside the corridor. Its gradient is 0
      everywhere: it changes the logged loss and trains like the bonus alone.

Reference:
    "EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning", 2025, arXiv:2509.22576.

Deviations from the authors' code, all of them options:
    - The reference is one mean over past steps, as in the paper (code: a mean per turn with the present step, by
      ``per_turn=True, include_current=True``). Turns are counted where they occurred; there, short episodes are padded
      with zeros in front, which shifts every turn and drags the means down.
    - The weight of the phase is the paper's (code: ``schedule="code"``, which jumps at mid-training).
    - No gate on late turns (code: ``min_turn``, looked up in the micro-batch).
    - ``mask_mode="seq"`` averages over valid tokens (there: padding too). An empty mask gives 0.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean, segment_mean, segment_spread
from infotorch.losses._schedule import as_steps
from infotorch.losses._select import SCOPES, summed
from infotorch.losses._turns import Turns, turns_of
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.entropy_history import EntropyHistory
from infotorch.losses.ppo import AggregationLike, aggregate_loss
from infotorch.losses.registry import Part, ScheduledPart, register

MASK_MODES = ("token", "seq")


def phase_weight(
    step: float | Tensor, *, total_steps: int = 125, gamma: float = 3.0, schedule: str = "paper"
) -> Tensor:
    r"""Weight of the smoothing term over training.

    ``"paper"``: :math:`\beta_k = 1 + e^{-\gamma k / \lfloor K/2 \rfloor}`, from 2 down to 1. ``"code"``:
    :math:`1 - 0.2 (1 - e^{-2k/h})` up to :math:`k = h = \lfloor K/2 \rfloor`, then :math:`0.8\, e^{-3(k-h)/h}`, which
    jumps from 0.83 to 0.77 there. ``"none"``: 1.

    Args:
        step: Step :math:`k`, counted from 0.
        total_steps: Steps of the whole training, :math:`K`.
        gamma: Decay of the paper's weight.
        schedule: One of the three.

    Returns:
        Of the shape of ``step``.

    Raises:
        ValueError: Unknown schedule, ``total_steps < 1``, negative ``gamma``.

    Reference: 2025, arXiv:2509.22576; ``"code"`` as released.

    >>> phase_weight(torch.tensor([0.0, 60.0]), total_steps=120)
    tensor([2.0000, 1.0498])
    """
    check_choice("schedule", schedule, ("paper", "code", "none"))
    check_range("total_steps", total_steps, 1)
    check_range("gamma", gamma, 0.0)
    k = as_steps(step)
    half = total_steps // 2
    if schedule == "none":
        return torch.ones_like(k)
    if half == 0:  # a single step: full weight there, none of it left after
        start, end = (2.0, 1.0) if schedule == "paper" else (1.0, 0.0)
        return torch.where(k <= 0, start, end).to(k.dtype)
    if schedule == "paper":
        return 1 + (-gamma * k / half).exp()
    return torch.where(k <= half, 1 - 0.2 * (1 - (-2 * k / half).exp()), 0.8 * (-3 * (k - half) / half).exp())


def corridor_penalty(
    entropy: Tensor, reference: float | Tensor, *, low: float = 0.0, high: float = 2.0, penalty: str = "hinge"
) -> Tensor:
    r"""How far entropies lie outside ``[low * reference, high * reference]``.

    ``"hinge"``: :math:`\max(0, \kappa_l \bar H - H) + \max(0, H - \kappa_r \bar H)`, in nats, with the gradient of the
    entropy. ``"indicator"``: 1 outside, 0 strictly inside; no gradient.

    Args:
        entropy: Nats, any shape. Values below 0 (rounding) count as 0.
        reference: :math:`\bar H`, a number or a tensor that broadcasts; where it is NaN there is no penalty.
        low: :math:`\kappa_l`.
        high: :math:`\kappa_r`.
        penalty: One of the two.

    Raises:
        ValueError: Unknown penalty, ``low < 0``, ``high < low``.

    Reference: 2025, arXiv:2509.22576, second version; ``"indicator"``: first version and released code.

    >>> entropy = torch.tensor([0.2, 1.0, 2.5])
    >>> corridor_penalty(entropy, 1.0, low=0.5, high=1.5)
    tensor([0.3000, 0.0000, 1.0000])
    >>> corridor_penalty(entropy, 1.0, low=0.5, high=1.5, penalty="indicator")
    tensor([1., 0., 1.])
    """
    check_choice("penalty", penalty, ("hinge", "indicator"))
    check_range("low", low, 0.0)
    check_range("high", high, low)
    h = entropy - entropy.detach().clamp(max=0)  # the value is clamped, the gradient is not
    ref = torch.as_tensor(reference, dtype=h.dtype, device=h.device).detach()
    known = ref.isfinite()
    ref = torch.where(known, ref, 0.0)
    if penalty == "hinge":
        outside = (low * ref - h).relu() + (h - high * ref).relu()
    else:
        outside = 1 - ((h > low * ref) & (h < high * ref)).to(h.dtype)
    return torch.where(known, outside, 0.0)


@register(
    "epo",
    "regularizer",
    requires=("entropy",),
    neutral={"coef": 0.0},
    example={"coef": 0.5, "alpha": 0.4, "reference": 0.7, "low": 0.8, "high": 1.2},
)
def epo(
    batch: TokenBatch,
    *,
    coef: float = 0.001,
    alpha: float = 0.1,
    low: float = 0.0,
    high: float = 2.0,
    penalty: str = "hinge",
    mask_mode: str = "token",
    reference: float | Tensor | None = None,
    per_turn: bool = False,
    include_current: bool = False,
    min_ref: float = 0.0,
    min_turn: int | None = None,
    schedule: str = "paper",
    gamma: float = 3.0,
    total_steps: int = 125,
    step: float | Tensor = 0,
    scope: str = "local",
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""EPO: an entropy bonus minus a penalty on entropies outside a corridor around their past mean.

    .. math:: L = -\lambda\, \big(\mathcal A[H] - \beta_k\, \alpha\, \mathcal A[P]\big)

    with :func:`corridor_penalty` :math:`P`, :func:`phase_weight` :math:`\beta_k` and an aggregation :math:`\mathcal A`.
    :class:`EPO` keeps the reference :math:`\bar H`; the function has no past and without ``reference`` no penalty.

    Args:
        batch: Reads ``entropy``, which must carry a gradient, and ``turn`` and ``trajectory`` where turns matter.
        coef: :math:`\lambda`, in loss units per nat.
        alpha: Weight of the penalty. The paper's bound needs :math:`\alpha \beta_k < 1`.
        low: Lower end of the corridor, as a fraction of the reference.
        high: Upper end.
        penalty: ``"hinge"`` or ``"indicator"`` (no gradient).
        mask_mode: Compare the entropy of each ``"token"``, or the mean of its turn (``"seq"``).
        reference: Entropy to hold, in nats: a number, or one per turn ``(turns,)``; NaN for none. None: the running
            mean of :class:`EPO`.
        per_turn: The running mean is kept for each turn.
        include_current: The running mean takes in the present step.
        min_ref: Least reference. With ``low=0`` a collapsed policy has the reference 0 and is held there.
        min_turn: No penalty unless some token of the batch has at least this ``turn`` (authors' code).
        schedule: See :func:`phase_weight`, like the next three.
        gamma: Decay.
        total_steps: Steps of the whole training.
        step: The present one; :class:`EPO` counts.
        scope: Whether ``min_turn`` and the number of trajectories are of this batch or of all ranks (``"global"``).
        aggregation: How tokens become a scalar; ``"trajectory"`` is the paper's: mean over the tokens of each turn,
            over the turns of each trajectory, over trajectories. It needs whole trajectories in every batch; several
            micro-batches count by their rows.

    Returns:
        Loss and the metrics ``entropy``, ``epo_penalty`` (mean of P), ``epo_outside`` (share of tokens with P > 0),
        ``epo_reference`` and ``epo_weight``.

    Raises:
        ValueError: Missing entropy, or a missing ``turn`` where it is needed; an option out of range.

    Reference: 2025, arXiv:2509.22576 (deviations: see the module).

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    entropy=torch.tensor([[1.0, 4.0]]))
    >>> epo(batch, coef=1.0, alpha=0.5, reference=1.0, schedule="none").per_token  # 4 exceeds 2 * 1 by 2
    tensor([[-1., -3.]])
    """
    batch.require("epo", "entropy")
    check_choice("mask_mode", mask_mode, MASK_MODES)
    check_choice("scope", scope, SCOPES)
    for name, value in (("coef", coef), ("alpha", alpha), ("min_ref", min_ref), ("min_turn", min_turn)):
        if value is not None:
            check_range(name, value, 0.0)
    assert batch.entropy is not None
    whole = aggregation == "trajectory"
    turns = turns_of(batch) if whole or mask_mode == "seq" else None
    ref = _reference(batch, reference, min_ref)
    judged = batch.entropy if mask_mode == "token" else _turn_mean(batch.entropy, turns)
    outside = torch.where(batch.mask, corridor_penalty(judged, ref, low=low, high=high, penalty=penalty), 0.0)
    if min_turn is not None:
        outside = outside * _reached(batch, min_turn, scope)
    now = torch.as_tensor(step).to(batch.entropy)
    weight = phase_weight(now, total_steps=total_steps, gamma=gamma, schedule=schedule)
    per_token = -coef * (batch.entropy - alpha * weight * outside)
    known = batch.mask & ref.isfinite()
    metrics = {
        "entropy": masked_mean(batch.entropy, batch.mask),
        "epo_penalty": masked_mean(outside, batch.mask),
        "epo_outside": masked_mean((outside > 0).to(outside.dtype), batch.mask),
        "epo_reference": masked_mean(torch.where(known, ref, 0.0), known),
        "epo_weight": weight.reshape(()),
    }
    if not whole:
        return aggregate_loss(batch, per_token, aggregation, metrics)
    assert turns is not None
    loss = _trajectory_mean(batch, per_token, turns, scope)
    return LossOutput(loss, torch.where(batch.mask, per_token, 0.0), {k: v.detach() for k, v in metrics.items()})


def _reference(batch: TokenBatch, reference: float | Tensor | None, min_ref: float) -> Tensor:
    """The reference at every token, ``(B, T)``; NaN where there is none."""
    assert batch.entropy is not None
    given = torch.as_tensor(torch.nan if reference is None else reference).to(batch.entropy).detach()
    if given.ndim > 1:
        raise ValueError(f"reference: expected a number or shape (turns,), got {tuple(given.shape)}")
    if given.ndim == 1:
        batch.require("epo", "turn")
        assert batch.turn is not None
        turns = given.numel()  # none before the first rollout batch
        seen = torch.where((batch.turn >= 0) & (batch.turn < turns), batch.turn, turns)
        given = torch.nn.functional.pad(given, (0, 1), value=torch.nan)[seen]
    return given.expand_as(batch.mask).clamp(min=min_ref)  # NaN stays


def _turn_mean(entropy: Tensor, turns: Turns | None) -> Tensor:
    assert turns is not None
    return segment_spread(segment_mean(entropy, turns.segment), turns.segment)


def _reached(batch: TokenBatch, min_turn: int, scope: str) -> Tensor:
    """1 if some token's turn is at least ``min_turn``, else 0."""
    batch.require("epo", "turn")
    assert batch.turn is not None
    found = ((batch.turn >= min_turn) & batch.mask).any().long()
    return distributed.all_reduce_max(found) if scope == "global" else found


def _trajectory_mean(batch: TokenBatch, per_token: Tensor, turns: Turns, scope: str) -> Tensor:
    """Mean over tokens of a turn, turns of a trajectory, trajectories."""
    total = segment_mean(segment_mean(per_token, turns.segment), turns.owner).sum()
    counts = summed(torch.stack((turns.trajectories, batch.mask.any(1).sum())), scope)
    mean = total / counts[0].clamp(min=1)
    if batch.num_sequences is not None:
        # This batch's share of the optimizer step, whose trajectories it cannot count.
        rows = torch.as_tensor(batch.num_sequences).to(mean).clamp(min=1)
        mean = mean * counts[1] / rows
    return mean * batch.world_size


class EPO(ScheduledPart, name="epo"):
    """Module of :func:`epo`: keeps the reference and counts the steps. ``history.latest`` are the entropies per turn.

    Warns (:class:`UserWarning`) when the reference has fallen to 0 without ``min_ref``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        defaults = self.settings
        self.include_current, self.min_ref = defaults["include_current"], defaults["min_ref"]
        self.history = EntropyHistory(per_turn=defaults["per_turn"])

    def observe(self, batch: TokenBatch) -> None:
        """Fix this step's reference and add the batch's entropies to the history."""
        if self.history.per_turn:
            batch.require("epo", "turn")
        if not self.include_current:
            self.history.hold()
        self.history.update(batch.sampling_entropy, batch.mask, batch.turn)
        if self.include_current:
            self.history.hold()
        if self.options.get("reference") is None and self.min_ref == 0 and bool((self.history.anchor < 1e-4).any()):
            warnings.warn(
                "epo: the reference entropy is 0, the policy has collapsed; the corridor holds it there unless min_ref "
                "is set",
                stacklevel=2,
            )

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Apply the function at the present step with this step's reference."""
        reference = self.options.get("reference")
        options = {
            **self.options,
            "step": self.step,
            "reference": self.history.held() if reference is None else reference,
        }
        return epo(batch, **options)


@register("entropy_cap", "regularizer", requires=("entropy",), neutral={"coef": 0.0}, example={"coef": 0.5, "cap": 0.7})
def entropy_cap(
    batch: TokenBatch,
    *,
    coef: float = 0.01,
    cap: float = 1.0,
    mask_mode: str = "seq",
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""A cap on the entropy of each turn, :math:`\lambda \max(0, \bar H_{turn} - c)`: what EPO has to beat.

    Args:
        batch: Reads ``entropy``, which must carry a gradient; ``turn`` and ``trajectory`` where rows are no turns.
        coef: Weight, in loss units per nat.
        cap: Nats.
        mask_mode: Cap the mean of each turn (``"seq"``) or each ``"token"``.
        aggregation: How tokens become a scalar.

    Raises:
        ValueError: Missing entropy, unknown mode, a negative ``coef`` or ``cap``.

    Reference: the baseline that reviews of EPO (arXiv:2509.22576) ask for.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    entropy=torch.tensor([[1.0, 3.0]]))
    >>> entropy_cap(batch, coef=1.0, cap=1.5).loss
    tensor(0.5000)
    """
    batch.require("entropy_cap", "entropy")
    check_choice("mask_mode", mask_mode, MASK_MODES)
    check_range("coef", coef, 0.0)
    check_range("cap", cap, 0.0)
    assert batch.entropy is not None
    judged = batch.entropy if mask_mode == "token" else _turn_mean(batch.entropy, turns_of(batch))
    excess = torch.where(batch.mask, corridor_penalty(judged, cap, low=0.0, high=1.0), 0.0)
    metrics = {
        "entropy": masked_mean(batch.entropy, batch.mask),
        "cap_outside": masked_mean((excess > 0).to(excess.dtype), batch.mask),
    }
    return aggregate_loss(batch, coef * excess, aggregation, metrics)


class EntropyCap(Part, name="entropy_cap"):
    """Module of :func:`entropy_cap`."""
