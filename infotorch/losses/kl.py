"""Estimators of the KL divergence to a reference policy from sampled tokens: a loss, or a price on rewards.

With ``q = log ref - log pi`` at the sampled token: ``k1 = -q`` (unbiased, noisy), ``k2 = q^2 / 2`` (biased; the
only one whose gradient is, on-policy, that of the reverse KL), ``k3 = exp(q) - q - 1`` (unbiased, never
negative). ``k1+`` and ``k3+`` take the value of k1 or k3 and the gradient of k2.

Reference: J. Schulman, "Approximating KL Divergence", 2020.
"""

from __future__ import annotations

from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean, masked_sum
from infotorch.losses.batch import LossOutput, TokenBatch, widen
from infotorch.losses.ppo import AggregationLike, aggregate_loss
from infotorch.losses.registry import Part, register

KL_KINDS = ("k1", "k2", "k3", "abs", "k1+", "k3+")
_VERL_ALIASES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, kind: str = "k3", *, clamp: bool = True) -> Tensor:
    r"""Per-token estimate of :math:`\mathrm{KL}(\pi \| \pi_{ref})` in nats, in the shape of its arguments.

    Args:
        log_probs: Log-probability of the sampled tokens.
        ref_log_probs: The same under the reference.
        kind: ``k1``, ``k2``, ``k3``, ``abs``, ``k1+`` or ``k3+`` (also verl's ``kl``, ``mse``, ``low_var_kl``).
        clamp: Bound ``q`` to ``+-20`` and k3 to ``+-10``, as verl; TRL does not.

    Raises:
        ValueError: Unknown kind.

    Reference: J. Schulman, "Approximating KL Divergence", 2020.

    >>> import torch
    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-2.0]), "k2")
    tensor([0.5000])
    """
    kind = _VERL_ALIASES.get(kind, kind)
    check_choice("kind", kind, KL_KINDS)
    q = widen(ref_log_probs) - widen(log_probs)
    if kind.endswith("+"):
        carrier = q.square() / 2
        value = kl_estimate(log_probs, ref_log_probs, kind[:-1], clamp=clamp)
        return carrier - carrier.detach() + value.detach()
    if kind == "k1":
        return -q
    if kind == "abs":
        return q.abs()
    if kind == "k2":
        return q.square() / 2
    if clamp:
        q = q.clamp(-20, 20)
        return (q.exp() - q - 1).clamp(-10, 10)
    return q.exp() - q - 1


@register("kl", "regularizer", requires=("ref_log_probs",), neutral={"coef": 0.0})
def kl_regularizer(
    batch: TokenBatch,
    *,
    coef: float = 0.001,
    kind: str = "k3",
    clamp: bool = True,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    """``coef`` times the aggregated KL estimate to the reference policy.

    Args:
        batch: Reads ``log_probs`` and ``ref_log_probs``.
        coef: Weight (verl 0.001; TRL calls it beta).
        kind: Estimator, see :func:`kl_estimate`.
        clamp: verl's bounds.
        aggregation: How tokens become a scalar.

    Raises:
        ValueError: ``ref_log_probs`` is missing, the kind is unknown, a negative ``coef``.

    Reference: J. Schulman, 2020.

    >>> import torch
    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), ref_log_probs=torch.ones(1, 2),
    ...                    mask=torch.ones(1, 2, dtype=torch.bool))
    >>> kl_regularizer(batch, coef=1.0, kind="k2").loss
    tensor(0.5000)
    """
    batch.require("kl", "ref_log_probs")
    check_range("coef", coef, 0.0)
    assert batch.ref_log_probs is not None
    kl = kl_estimate(batch.log_probs, batch.ref_log_probs, kind, clamp=clamp)
    return aggregate_loss(batch, coef * kl, aggregation, {"kl": masked_mean(kl, batch.mask)})


@register("kl_reward", "reward", requires=("rewards", "ref_log_probs"), neutral={"coef": 0.0})
def kl_reward(batch: TokenBatch, *, coef: float = 0.001, kind: str = "k1", clamp: bool = True) -> Tensor:
    """Rewards less ``coef`` times the completion's summed KL estimate under the sampling policy.

    Args:
        batch: Reads ``rewards``, ``old_log_probs`` and ``ref_log_probs``.
        coef: Price of a nat.
        kind: Estimator, see :func:`kl_estimate`.
        clamp: verl's bounds.

    Returns:
        Rewards, shape ``(B,)``.

    Raises:
        ValueError: ``rewards`` or ``ref_log_probs`` is missing, the kind is unknown, a negative ``coef``.

    Reference: J. Schulman, 2020.

    >>> import torch
    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), ref_log_probs=-torch.ones(1, 2),
    ...                    mask=torch.ones(1, 2, dtype=torch.bool), rewards=torch.ones(1))
    >>> kl_reward(batch, coef=0.1)
    tensor([0.8000])
    """
    batch.require("kl_reward", "rewards", "ref_log_probs")
    check_range("coef", coef, 0.0)
    assert batch.rewards is not None
    assert batch.ref_log_probs is not None
    assert batch.old_log_probs is not None
    kl = kl_estimate(batch.old_log_probs, batch.ref_log_probs, kind, clamp=clamp).detach()
    return batch.rewards - coef * masked_sum(kl, batch.mask, dim=1)


class KLRegularizer(Part, name="kl"):
    """Module of :func:`kl_regularizer`."""


class KLReward(Part, name="kl_reward"):
    """Module of :func:`kl_reward`."""
