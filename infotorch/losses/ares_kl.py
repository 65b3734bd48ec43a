r"""ARES's KL penalty: a weight for every difficulty, under a controller, and less of it where the model hesitates.

Reference:
    "ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping", 2025, arXiv:2510.08457.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean
from infotorch.losses._groups import Groups
from infotorch.losses._select import SCOPES
from infotorch.losses._window import StepMean
from infotorch.losses.ares_windows import TAU_OVER, covered_by, high_entropy_windows, window_threshold
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.kl import kl_estimate
from infotorch.losses.ppo import AggregationLike, aggregate_loss
from infotorch.losses.registry import Part, register

DIFFICULTIES = ("easy", "medium", "hard")
_KEPT = ("ares_difficulty", "ares_high_entropy")


def difficulty(correct: Tensor, group: Tensor) -> Tensor:
    """0 (easy: at least 2/3 of the group correct), 1 (medium: at least 1/3) or 2 (hard), for every row.

    Args:
        correct: Boolean, ``(B,)``.
        group: Integer id of each row's prompt, ``(B,)``.

    >>> difficulty(torch.tensor([True, True, False, False]), torch.tensor([0, 0, 0, 1]))
    tensor([0, 0, 0, 2])
    """
    groups = Groups(group)
    right = groups.sum(correct.long())  # integers: 2 of 3 is exactly two thirds
    return 2 - (3 * right >= groups.size).long() - (3 * right >= 2 * groups.size).long()


def per_difficulty(name: str, value: float | Sequence[float] | Tensor) -> Tensor:
    """A number for easy, medium and hard, or one for all three, as float64 ``(3,)``.

    Raises:
        ValueError: Another number of numbers.

    >>> per_difficulty("target", 0.5)
    tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    found = torch.as_tensor(value, dtype=torch.float64)
    if found.shape not in ((), (1,), (3,)):
        raise ValueError(f"{name}: expected one number, or three (easy, medium, hard), got shape {tuple(found.shape)}")
    return found.expand(3)


class KLController(nn.Module):
    """Moves the logarithm of a KL weight for every difficulty towards a target KL.

    Per difficulty that is present: the KL is smoothed (``decay``), its relative error to the target is smoothed again
    and clipped, and added to the log-weight, every ``interval``-th call. Errors below ``deadzone`` are
    ignored. All of it is in ``state_dict``. At the authors' settings a weight moves by at most 1 % in 100 calls.

    >>> controller = KLController(target=0.01, interval=1)
    >>> controller.update(torch.tensor([0.02, 0.02, 0.02]), torch.tensor([True, False, False]))
    >>> controller.betas[0] > 1, controller.betas[1]
    (tensor(True), tensor(1., dtype=torch.float64))
    """

    targets: Tensor
    betas: Tensor
    kl: Tensor
    error: Tensor
    calls: Tensor

    def __init__(
        self,
        *,
        initial: float | Sequence[float] | Tensor = 1.0,
        target: float | Sequence[float] | Tensor = 0.01,
        lr: float = 0.05,
        interval: int = 100,
        decay: float = 0.97,
        clip: float = 0.2,
        deadzone: float = 0.02,
        low: float = 1e-4,
        high: float = 100.0,
    ) -> None:
        super().__init__()
        check_range("interval", interval, 1)
        check_range("decay", decay, 0.0, 1.0)
        check_range("lr", lr, 0.0)
        self.lr, self.interval, self.decay, self.clip, self.deadzone = lr, interval, decay, clip, deadzone
        self.low, self.high = low, high
        targets, betas = per_difficulty("target", target), per_difficulty("initial", initial)
        check_range("target", targets.min().item(), 0.0, low_open=True)
        self.register_buffer("targets", targets.clone(), persistent=False)
        self.register_buffer("betas", betas.clone())
        self.register_buffer("kl", torch.full((3,), torch.inf, dtype=torch.float64))
        self.register_buffer("error", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))

    def update(self, kl: Tensor, present: Tensor) -> None:
        """Note the mean KL of each difficulty, ``(3,)``, of those that are ``present``."""
        fresh = torch.where(~self.kl.isfinite(), kl.double(), (1 - self.decay) * kl.double() + self.decay * self.kl)
        self.kl.copy_(torch.where(present, fresh, self.kl))
        self.calls += present.any()
        error = self.kl / self.targets - 1
        moves = present & (error.abs() >= self.deadzone) & (self.calls % self.interval == 0)
        self.error.copy_(torch.where(moves, (1 - self.decay) * error + self.decay * self.error, self.error))
        step = self.lr * self.error.clamp(-self.clip, self.clip)
        self.betas.copy_(torch.where(moves, (self.betas * step.exp()).clamp(self.low, self.high), self.betas))


@register(
    "ares_kl",
    "regularizer",
    requires=("ref_log_probs", "rewards", "group", "sampling_entropy"),
    neutral={"coef": 0.0},
    example={"coef": 0.3, "window": 2, "quantile": 0.5, "interval": 1},
)
def ares_kl(
    batch: TokenBatch,
    *,
    coef: float = 0.01,
    betas: float | Sequence[float] | Tensor = 1.0,
    rho: float = 0.67,
    window: int = 4,
    quantile: float = 0.95,
    tau_over: str = "tokens",
    correct_above: float = 0.5,
    target: float = 0.01,
    lr: float = 0.05,
    interval: int = 100,
    scope: str = "local",
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""KL penalty weighted by the prompt's difficulty, and relaxed in windows of high entropy.

    .. math:: L = c\, \mathcal A[\beta_{d(i)}\, \rho_{it}\, k_3(\pi_{it}, \pi^{ref}_{it})]

    with :math:`\rho_{it} = \rho` inside windows of high entropy and 1 elsewhere. Difficulties and windows are those
    that :class:`AresKL` kept in ``extras["ares_difficulty"]`` and ``extras["ares_high_entropy"]`` when the rollout
    batch was prepared; without them they are formed from this batch, which must then hold complete groups.

    Args:
        batch: Reads ``log_probs``, ``ref_log_probs``, ``rewards``, ``group``, ``old_entropy`` (or ``entropy``).
        coef: Weight c of the whole term.
        betas: Weight for easy, medium and hard prompts; where :class:`AresKL`'s controller starts.
        rho: Relaxation, in ``[0, 1]``. Not stated in the paper; 0.67 is the only such factor in the code. 1: none.
        window: Length of a window.
        quantile: Of the threshold, see :func:`window_threshold`.
        tau_over: ``"tokens"`` or ``"windows"``, likewise.
        correct_above: Rewards above this count as correct.
        target: KL that the controller aims at; like the next two for the module.
        lr: Its step.
        interval: Optimizer steps between its moves.
        scope: Threshold over this batch or over all data-parallel ranks.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics ``kl``, ``ares_relaxed`` (share of tokens).

    Raises:
        ValueError: A missing field, an option out of range.

    Reference: "ARES", 2025, arXiv:2510.08457.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 1), ref_log_probs=torch.ones(1, 1), rewards=torch.ones(1),
    ...                    mask=torch.ones(1, 1, dtype=torch.bool), group=torch.zeros(1, dtype=torch.long),
    ...                    entropy=torch.zeros(1, 1))
    >>> ares_kl(batch, coef=1.0, betas=(2.0, 1.0, 1.0)).loss  # 2 (e - 2)
    tensor(1.4366)
    """
    batch.require("ares_kl", "ref_log_probs", "rewards", "group", "sampling_entropy")
    check_range("rho", rho, 0.0, 1.0)
    check_range("coef", coef, 0.0)
    check_choice("tau_over", tau_over, TAU_OVER)
    check_choice("scope", scope, SCOPES)
    assert batch.ref_log_probs is not None
    level, high = _kept(batch, window, quantile, tau_over, correct_above, scope)
    kl = kl_estimate(batch.log_probs, batch.ref_log_probs, "k3")
    weight = per_difficulty("betas", betas).to(kl)[level].unsqueeze(1)
    relaxed = high & batch.mask
    per_token = coef * weight * torch.where(relaxed, rho, 1.0) * kl
    metrics = {
        "kl": masked_mean(kl, batch.mask),
        "ares_relaxed": masked_mean(relaxed.to(kl.dtype), batch.mask),
    }
    return aggregate_loss(batch, per_token, aggregation, metrics)


def _kept(
    batch: TokenBatch, window: int, quantile: float, tau_over: str, correct_above: float, scope: str
) -> tuple[Tensor, Tensor]:
    """Difficulty of every row and tokens in windows of high entropy: as kept, or formed from this batch."""
    level, high = (batch.extras.get(name) for name in _KEPT)
    if level is None:
        assert batch.rewards is not None
        assert batch.group is not None
        level = difficulty(batch.rewards > correct_above, batch.group)
    if high is None:
        entropy = batch.sampling_entropy
        tau = window_threshold(entropy, batch.mask, window=window, quantile=quantile, over=tau_over, scope=scope)
        high = covered_by(high_entropy_windows(entropy, batch.mask, tau, window), window)
    return level, high


class AresKL(Part, name="ares_kl"):
    """Module of :func:`ares_kl` with its controller, which moves once per optimizer step.

    There, the controller moved once per micro-batch of every device; here accumulation and ranks change nothing.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        chosen = self.settings
        self.controller = KLController(
            initial=per_difficulty("betas", chosen["betas"]),
            target=chosen["target"],
            lr=chosen["lr"],
            interval=chosen["interval"],
        )
        self.window = StepMean(3)

    def _formed(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        names = ("window", "quantile", "tau_over", "correct_above", "scope")
        chosen = self.settings
        return _kept(batch, *(chosen[name] for name in names))

    def rearrange(self, batch: TokenBatch) -> TokenBatch:
        """Keep difficulties and windows, since mini-batches hold incomplete groups."""
        batch.require("ares_kl", "rewards", "group", "sampling_entropy")
        kept = batch.of_sampled(lambda own: dict(zip(_KEPT, self._formed(own), strict=True)))
        return batch.replace(extras={**batch.extras, **kept})

    def forward(self, batch: TokenBatch) -> LossOutput:
        """The penalty at the present weights; in training their controller sees the batch."""
        out: LossOutput = self.info.function(batch, **{**self.options, "betas": self.controller.betas})
        if self.training:
            assert batch.ref_log_probs is not None
            level, _ = self._formed(batch)
            kl = kl_estimate(batch.log_probs.detach(), batch.ref_log_probs, "k3")
            means, rows = masked_mean(kl, batch.mask, dim=1).double(), batch.mask.any(1).double()
            none = means.new_zeros(3)
            self.window.add(none.index_add(0, level, means * rows), none.index_add(0, level, rows))
        for i, name in enumerate(DIFFICULTIES):
            out.metrics[f"ares_beta_{name}"] = self.controller.betas[i].clone()
        return out

    def after_step(self) -> None:
        """Move the weights."""
        self.controller.update(*self.window.close())
