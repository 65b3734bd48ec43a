r"""Where to spend a budget of rollouts: how many start afresh, and which trajectories branch after a tool call.

Pure functions of entropies and uniform numbers, without an engine. Agentic AEPO first compares the uncertainty at the
prompt with that after tool calls to divide the budget, then branches where the entropy has risen since a trajectory's
first segment, less willingly the more often a prompt has branched in a row. ARPO, its predecessor, has no penalty.

References:
    "Agentic Entropy-Balanced Policy Optimization" (AEPO), 2025, arXiv:2510.14545.
    "Agentic Reinforced Policy Optimization" (ARPO), 2025, arXiv:2507.19849.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range

__all__ = ["arpo_score", "branching_score", "entropy_proxy", "initial_rollouts"]


def entropy_proxy(top_logprobs: Tensor, vocab_size: int, *, first_tokens: int = 20, reduce: str = "sum") -> Tensor:
    r"""A segment's uncertainty from the K best log-probabilities of its first tokens.

    .. math:: H = -\frac{1}{\log |V|} \sum_{t \le 20} \sum_{k} p_{tk} \log p_{tk}

    Not an entropy: the tail is missing, nothing is renormalized, and it is a sum over tokens, which favors long
    segments (``reduce="mean"`` does not).

    Args:
        top_logprobs: Nats, shape ``(tokens, K)``; ``-inf`` counts 0.
        vocab_size: :math:`|V|`, at least 2.
        first_tokens: How many tokens to look at.
        reduce: ``"sum"`` (authors' code) or ``"mean"`` over those tokens.

    Returns:
        Scalar; 0 without tokens. With 150,000 tokens and K = 10 the sum lies between 0 and about 3.9.

    Raises:
        ValueError: Another shape, an option out of range.

    Reference: arXiv:2510.14545, 2025.

    >>> entropy_proxy(torch.full((3, 2), 0.25).log(), vocab_size=4)  # half of log 4 in each of three tokens
    tensor(1.5000)
    """
    check_choice("reduce", reduce, ("sum", "mean"))
    check_range("vocab_size", vocab_size, 2)
    check_range("first_tokens", first_tokens, 1)
    if top_logprobs.ndim != 2:
        raise ValueError(f"top_logprobs: expected shape (tokens, K), got {tuple(top_logprobs.shape)}")
    seen = top_logprobs[:first_tokens]
    seen = seen if seen.dtype in (torch.float32, torch.float64) else seen.float()
    p = seen.exp()
    total = -(p * torch.where(p > 0, seen, 0.0)).sum() / math.log(vocab_size)
    return total / max(len(seen), 1) if reduce == "mean" else total


def initial_rollouts(root_entropy: Tensor, tool_entropy: Tensor, budget: int, *, beta: float = 0.5) -> Tensor:
    r"""How many of a prompt's rollouts start from the prompt; the others are left for branches.

    .. math:: m = \mathrm{clamp}(\lfloor n\, \sigma(\beta (H_{root} - H_{tool})) \rfloor + 1,\; 1,\; n)

    Equal entropies give :math:`\lfloor n/2 \rfloor + 1`, and 1 is reached at extreme differences only.

    Args:
        root_entropy: :func:`entropy_proxy` of a short generation from the prompt, any shape.
        tool_entropy: Its mean after the tool calls of one rollout (``root_entropy`` where there was none).
        budget: n, at least 1.
        beta: Steepness.

    Returns:
        int64, of the entropies' common shape.

    Raises:
        ValueError: A budget below 1, a negative ``beta``.

    Reference: arXiv:2510.14545, 2025 (off in the released scripts, where m is fixed).

    >>> initial_rollouts(torch.tensor([1.0, 9.0, 1.0]), torch.tensor([1.0, 1.0, 20.0]), budget=16)
    tensor([ 9, 16,  1])
    """
    check_range("budget", budget, 1)
    check_range("beta", beta, 0.0)
    share = torch.sigmoid(beta * (root_entropy - tool_entropy).double())
    return ((budget * share).floor().long() + 1).clamp(1, budget)


def branching_score(
    u: Tensor,
    entropy: Tensor,
    first_entropy: Tensor,
    consecutive: Tensor,
    *,
    weight: float = 0.2,
    penalty: float = 0.05,
) -> Tensor:
    r"""AEPO's score after a tool call: the trajectory branches where it is at least 0.5.

    .. math:: \mathrm{clamp}\big((u + w\,(H - H_{first})) \max(0, 1 - 0.05\, l),\; 0,\; 1\big)

    A prompt that branched 10 times in a row branches again only where the entropy has risen, after 20 not at all.

    Args:
        u: Uniform numbers in [0, 1), any shape.
        entropy: :func:`entropy_proxy` of the present segment.
        first_entropy: That of the trajectory's first segment; a branch inherits its parent's.
        consecutive: How many branches in a row the prompt has made (0 again after a tool step without one: the authors'
            file is not public, its forks only count up).
        weight: w.
        penalty: Slope per branch.

    Returns:
        Scores in [0, 1], of the common shape.

    Raises:
        ValueError: A negative weight or penalty.

    Reference: arXiv:2510.14545, 2025.

    >>> branching_score(torch.tensor([0.6, 0.6]), torch.tensor([2.0, 2.0]), torch.ones(2), torch.tensor([0, 12]))
    tensor([0.8000, 0.3200])
    """
    check_range("weight", weight, 0.0)
    check_range("penalty", penalty, 0.0)
    willing = (1 - penalty * consecutive.to(u.dtype)).clamp(min=0)
    return ((u + weight * (entropy - first_entropy)) * willing).clamp(0, 1)


def arpo_score(u: Tensor, entropy: Tensor, first_entropy: Tensor, *, weight: float = 0.2) -> Tensor:
    r"""ARPO's score after a tool call: the trajectory branches where it is at most 0.5.

    .. math:: \mathrm{clamp}(u - w\,(H - H_{first}),\; 0,\; 1)

    Args:
        u: Uniform numbers in [0, 1), any shape.
        entropy: :func:`entropy_proxy` of the present segment.
        first_entropy: That of the trajectory's first segment.
        weight: w.

    Raises:
        ValueError: A negative weight.

    Reference: arXiv:2507.19849, 2025.

    >>> arpo_score(torch.tensor([0.6]), torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([0.4000])
    """
    check_range("weight", weight, 0.0)
    return (u - weight * (entropy - first_entropy)).clamp(0, 1)
