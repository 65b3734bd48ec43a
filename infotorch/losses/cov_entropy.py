r"""Clip-Cov and KL-Cov: keep entropy alive by holding back the few tokens that spend it.

A policy's entropy falls where likely tokens are rewarded: per state, a step moves it by minus the covariance of
log-probability and (advantage-driven) logit change. A few tokens carry most of that covariance. Clip-Cov drops
the gradient of some of them at random, KL-Cov puts a brake on the largest. Also here: the identity itself, and
the empirical law :math:`R = -a e^H + b` between reward and entropy.

When to use: reward stalls while entropy has gone to zero. KL-Cov acts only once the policy has moved away from
the one that sampled (several updates per rollout); Clip-Cov acts from the first.

Reference:
    G. Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", 2025,
    arXiv:2505.22617.

Deviations from the authors' code:
    - An empty mask gives loss 0 (there: NaN).
    - Tokens whose covariance is not finite take no part in means and selection.
    - KL-Cov takes a fraction, not a percentage that shrinks on small batches; ties go to the lowest index.
    - A number of tokens that rounding leaves just short of an integer is that integer.
    - Log-ratios are clamped to 20 in the ratio, not in KL-Cov's penalty (``log_ratio_bound=None``: nowhere, as there).
    - ``scope="global"`` selects over all data-parallel ranks (there: each micro-batch of each GPU).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core._choice import indicator, smaller, zero_outside
from infotorch.core.categorical import log_softmax
from infotorch.losses._select import SCOPES, Pool, fraction, lowest, summed
from infotorch.losses.batch import LossOutput, TokenBatch, widen
from infotorch.losses.ppo import AggregationLike, bounded, check_clip, importance_ratio, reduce_loss, token_mean
from infotorch.losses.registry import Part, register


def token_covariance(batch: TokenBatch, *, scope: str = "local", detach: bool = True) -> Tensor:
    r"""Each token's part of the covariance, :math:`(A - \bar A)(\log \pi - \overline{\log \pi})`.

    Args:
        batch: Reads ``log_probs`` and ``advantages``.
        scope: Means over this batch (``"local"``) or over all data-parallel ranks (``"global"``).
        detach: Whether no gradient flows to ``log_probs``; none ever flows through the means.

    Returns:
        Shape ``(B, T)``; 0 outside the mask and where ``log_probs`` is not finite.

    Raises:
        ValueError: Missing advantages, unknown scope.

    Reference: G. Cui et al., 2025, arXiv:2505.22617 (deviations: see the module).

    >>> batch = TokenBatch(log_probs=torch.tensor([[-1.0, -3.0]]), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    advantages=torch.tensor([[1.0, -1.0]]))
    >>> token_covariance(batch)
    tensor([[1., 1.]])
    """
    batch.require("token_covariance", "advantages")
    check_choice("scope", scope, SCOPES)
    assert batch.advantages is not None
    current, advantages = batch.log_probs, batch.advantages.detach()
    log_probs = current.detach()
    valid = batch.inside * indicator(torch.eq, (log_probs + advantages) * 0, 0.0)  # what is not finite gives NaN
    parts = [zero_outside(log_probs, valid).sum(), zero_outside(advantages, valid).sum(), valid.sum()]
    sums = summed(torch.stack(parts), scope)
    mean_log_prob, mean_advantage = sums[:2] / sums[2].clamp(min=1)
    centered = (log_probs if detach else current) - mean_log_prob
    return zero_outside((advantages - mean_advantage) * centered, valid)


@register(
    "clip_cov",
    "policy",
    requires=("advantages",),
    neutral={"lower": float("inf"), "upper": float("inf"), "clip_low": 0.2, "clip_high": 0.2},
    base="ppo",
    example={"ratio": 1.0, "lower": 0.1},
)
def clip_cov(
    batch: TokenBatch,
    *,
    ratio: float = 2e-4,
    lower: float = 1.0,
    upper: float = 5.0,
    clip_low: float = 1.0,
    clip_high: float = 1.0,
    log_ratio_bound: float | None = 20.0,
    scope: str = "local",
    generator: torch.Generator | None = None,
    priorities: Tensor | None = None,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""Clip-Cov: silence a random few of the tokens whose covariance lies in a window.

    :math:`\ell = \max(-A r, -A\,\mathrm{clip}(r))`, times 0 on ``max(1, floor(ratio * N))`` tokens drawn
    without replacement from those with ``lower < cov < upper`` that the clip has not silenced already.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        ratio: Fraction of the N valid tokens to silence. 2e-4 suits 1e5 tokens a batch; a batch of a few
            hundred needs a hundred times more to be noticed.
        lower: Least covariance of a candidate (exclusive).
        upper: Greatest (exclusive).
        clip_low: Width of the ratio's clip below 1; loose on purpose.
        clip_high: Width above 1.
        log_ratio_bound: Log-ratios are clamped to this size and send no gradient beyond; None for no bound.
        scope: ``"local"`` as the authors, or ``"global"``: one choice over all data-parallel ranks, drawn
            by rank 0.
        generator: Source of the draw; default: torch's.
        priorities: Shape ``(B, T)``: candidates of lowest value are taken, instead of a draw.
        aggregation: How tokens become a scalar; the silenced tokens stay in the denominator.

    Returns:
        Loss and the metrics ``selected_fraction``, ``covariance``, ``approx_kl``.

    Raises:
        ValueError: Missing advantages, ``ratio`` outside ``[0, 1]``, a window that is none, a negative clip width,
            unknown scope.

    Reference: G. Cui et al., 2025, arXiv:2505.22617.

    >>> batch = TokenBatch(log_probs=torch.tensor([[-1.0, -3.0]]), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    advantages=torch.tensor([[1.0, -1.0]]))
    >>> clip_cov(batch, ratio=1.0, lower=0.5).per_token  # both tokens have covariance 1
    tensor([[0., 0.]])
    """
    batch.require("clip_cov", "advantages")
    check_range("ratio", ratio, 0.0, 1.0)
    check_range("lower", lower)
    check_range("upper", upper, lower)
    check_clip(clip_low, clip_high)
    assert batch.advantages is not None
    advantages, weight = batch.advantages, importance_ratio(batch, log_ratio_bound)
    gain = smaller(advantages * weight, advantages * weight.detach().clamp(1 - clip_low, 1 + clip_high))
    covariance = token_covariance(batch, scope=scope)
    silenced = gain < advantages * weight
    candidates = batch.mask & ~silenced & (covariance > lower) & (covariance < upper)
    pool = Pool(batch.mask, scope)
    selected = pool.own(
        lowest(
            pool.draw(generator) if priorities is None else pool.flat(priorities),
            pool.flat(candidates),
            fraction(pool.mask.sum(), ratio),
        )
    )
    metrics = {
        "selected_fraction": token_mean(selected, batch),
        "covariance": token_mean(covariance, batch),
        "approx_kl": -token_mean(bounded(batch.log_ratio, log_ratio_bound), batch),
    }
    per_token = zero_outside(-gain, ~selected)
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


@register(
    "kl_cov",
    "policy",
    requires=("advantages",),
    neutral={"coef": 0.0},
    example={"ratio": 0.2},
)
def kl_cov(
    batch: TokenBatch,
    *,
    ratio: float = 2e-4,
    coef: float = 1.0,
    log_ratio_bound: float | None = 20.0,
    scope: str = "local",
    only_positive: bool = False,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""KL-Cov: a penalty on moving the tokens of largest covariance.

    :math:`\ell = -A r + \beta\,|\log r|` on the ``max(1, floor(ratio * N))`` tokens of largest covariance,
    :math:`-A r` on all others. No clip.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        ratio: Fraction of the N valid tokens to brake (paper: 2e-3 at 7B, 2e-4 at 32B).
        coef: Weight of the penalty (authors 1, verl's configuration 0.1).
        log_ratio_bound: Log-ratios are clamped to this size in the ratio, not in the penalty; None for no bound.
        scope: ``"local"`` as the authors, or ``"global"``: one choice over all data-parallel ranks.
        only_positive: Brake no token whose covariance is not positive (equal advantages: none at all).
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics ``selected_fraction``, ``covariance``, ``abs_kl``.

    Raises:
        ValueError: Missing advantages, ``ratio`` outside ``[0, 1]``, a negative ``coef``, unknown scope.

    Reference: G. Cui et al., 2025, arXiv:2505.22617. The paper writes a KL divergence; the code, followed here,
    takes the absolute log-ratio of the sampled token. Its gradient is 0 where the policy has not moved yet.

    >>> batch = TokenBatch(log_probs=torch.tensor([[-1.0, -3.0]]), old_log_probs=torch.tensor([[-2.0, -3.0]]),
    ...                    mask=torch.ones(1, 2, dtype=torch.bool), advantages=torch.tensor([[0.0, 0.0]]))
    >>> kl_cov(batch, ratio=1.0).per_token
    tensor([[1., 0.]])
    """
    batch.require("kl_cov", "advantages")
    check_range("ratio", ratio, 0.0, 1.0)
    check_range("coef", coef, 0.0)
    assert batch.advantages is not None
    covariance = token_covariance(batch, scope=scope)
    current = batch.log_probs.detach()
    eligible = batch.mask & (current * 0 == 0)  # finite: anything else times 0 is NaN
    if only_positive:
        eligible = eligible & (covariance > 0)
    pool = Pool(batch.mask, scope)
    count = fraction(pool.mask.sum(), ratio)
    selected = pool.own(lowest(-pool.flat(covariance), pool.flat(eligible), count))
    metrics = {
        "selected_fraction": token_mean(selected, batch),
        "covariance": token_mean(covariance, batch),
        "abs_kl": token_mean(batch.log_ratio.detach().abs(), batch),
    }
    distance = zero_outside(batch.log_ratio.abs(), selected)
    per_token = coef * distance - batch.advantages * importance_ratio(batch, log_ratio_bound)
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


class ClipCov(Part, name="clip_cov"):
    """Module of :func:`clip_cov`."""


class KLCov(Part, name="kl_cov"):
    """Module of :func:`kl_cov`."""


# ---------------------------------------------------------------------------------------------------------
# The identity and the law
# ---------------------------------------------------------------------------------------------------------


def entropy_covariance(logits: Tensor, advantages: Tensor, kind: str = "natural") -> Tensor:
    r"""Covariance that drives the entropy of a softmax policy, per state, in nats per unit step.

    For a logit step :math:`\eta\,\delta` the entropy changes by :math:`-\eta\,\mathrm{Cov}_{a \sim p}(\log p_a,
    \delta_a)` to first order. ``"natural"`` (natural policy gradient): :math:`\delta = A`. ``"vanilla"`` (policy
    gradient): :math:`\delta = p\,(A - E_p A)`.

    Args:
        logits: Shape ``(..., V)``.
        advantages: Of every action, shape ``(..., V)``.
        kind: ``"natural"`` or ``"vanilla"``.

    Returns:
        Shape ``(...)``.

    Raises:
        ValueError: Unknown kind.

    Reference: G. Cui et al., 2025, arXiv:2505.22617.

    >>> entropy_covariance(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]))  # uniform: nothing to lose yet
    tensor(0.)
    """
    check_choice("kind", kind, ("natural", "vanilla"))
    log_p = log_softmax(logits)
    p = log_p.exp()
    log_p = torch.where(p > 0, log_p, 0.0)
    delta = widen(advantages)
    delta = delta - (p * delta).sum(-1, keepdim=True)
    if kind == "vanilla":
        delta = p * delta
        delta = delta - (p * delta).sum(-1, keepdim=True)
    centered = log_p - (p * log_p).sum(-1, keepdim=True)
    return (p * centered * delta).sum(-1)


def predicted_entropy_change(logits: Tensor, advantages: Tensor, step: float, kind: str = "natural") -> Tensor:
    """First-order change of entropy, in nats, for a step of size ``step``; see :func:`entropy_covariance`.

    Reference: G. Cui et al., 2025, arXiv:2505.22617.

    >>> predicted_entropy_change(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0]), step=0.1)
    tensor(-0.0393)
    """
    return -step * entropy_covariance(logits, advantages, kind)


@dataclass(frozen=True)
class EntropyLaw:
    """A fitted law ``R = -a exp(H) + b``.

    Attributes:
        a: Reward lost per unit of ``exp(H)``.
        b: Intercept.
        r2: Share of the reward's variance that the fit explains, on the points it was fitted to.
        rmse: Root mean squared error there.
        forecast_rmse: The same on the points left out; None if none were.
    """

    a: float
    b: float
    r2: float
    rmse: float
    forecast_rmse: float | None = None

    @property
    def ceiling(self) -> float:
        """Predicted reward once all entropy is spent, ``b - a``."""
        return self.b - self.a

    def predict(self, entropy: Tensor) -> Tensor:
        """Reward at the given entropies (nats)."""
        return -self.a * torch.as_tensor(entropy).exp() + self.b


def fit_entropy_law(entropy: Tensor, reward: Tensor, *, first: int | None = None) -> EntropyLaw:
    r"""Least-squares fit of :math:`R = -a e^H + b` to a training run.

    Args:
        entropy: Mean token entropy at each evaluation, nats, shape ``(n,)``.
        reward: Reward (validation accuracy) at the same times, shape ``(n,)``.
        first: Fit on the first points only, and report the forecast's error on the rest.

    Raises:
        ValueError: Shapes that differ, values that are not finite, fewer than two distinct entropies.

    Reference: G. Cui et al., 2025, arXiv:2505.22617.

    >>> entropy = torch.tensor([2.0, 1.0, 0.5])
    >>> law = fit_entropy_law(entropy, 0.8 - 0.1 * entropy.exp())
    >>> round(law.a, 4), round(law.b, 4), round(law.ceiling, 4), round(law.r2, 4)
    (0.1, 0.8, 0.7, 1.0)
    """
    h = torch.as_tensor(entropy).detach().double().flatten()
    r = torch.as_tensor(reward).detach().double().flatten()
    if h.shape != r.shape:
        raise ValueError(f"entropy, reward: expected equal lengths, got {h.numel()} and {r.numel()}")
    if not (h.isfinite().all() and r.isfinite().all()):
        raise ValueError("entropy, reward: expected finite values, got NaN or infinity")
    n = h.numel() if first is None else first
    check_range("first", n, 2, max(2, h.numel()))
    x = h.exp()
    if x[:n].unique().numel() < 2:
        raise ValueError(f"entropy: expected at least 2 distinct values to fit, got {x[:n].unique().numel()}")
    dx, dr = x[:n] - x[:n].mean(), r[:n] - r[:n].mean()
    slope = (dx * dr).sum() / dx.square().sum()
    intercept = r[:n].mean() - slope * x[:n].mean()
    residual = r - (slope * x + intercept)
    spread = dr.square().sum()
    r2 = 1 - residual[:n].square().sum() / spread if spread > 0 else torch.tensor(1.0)
    rest = residual[n:]
    return EntropyLaw(
        a=-float(slope),
        b=float(intercept),
        r2=float(r2),
        rmse=float(residual[:n].square().mean().sqrt()),
        forecast_rmse=float(rest.square().mean().sqrt()) if rest.numel() else None,
    )
