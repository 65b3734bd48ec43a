"""DAPO's soft punishment of answers that run into the length limit.

Reference: Q. Yu et al., "DAPO", 2025, arXiv:2503.14476.
"""

from __future__ import annotations

from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.losses.batch import TokenBatch
from infotorch.losses.registry import Part, register


@register(
    "overlong",
    "reward",
    requires=("rewards",),
    neutral={"max_length": 1 << 20, "buffer": 1},
    example={"max_length": 4, "buffer": 2},
)
def overlong_reward(batch: TokenBatch, *, max_length: int = 20480, buffer: int = 4096, factor: float = 1.0) -> Tensor:
    r"""Rewards less a penalty that rises linearly over the last ``buffer`` tokens before ``max_length``.

    .. math:: R_i - f \cdot \mathrm{clip}\Big(\frac{n_i - (L_{max} - L_{buf})}{L_{buf}}, 0, 1\Big)

    Args:
        batch: Reads ``rewards`` and the mask (lengths).
        max_length: Longest completion allowed, in tokens.
        buffer: Length of the ramp.
        factor: Penalty at the end of the ramp.

    Returns:
        Rewards, shape ``(B,)``.

    Raises:
        ValueError: ``rewards`` is missing, ``max_length`` below 1, ``buffer`` outside ``[1, max_length]``, a negative
            ``factor``.

    Reference: Q. Yu et al., 2025, arXiv:2503.14476.

    >>> import torch
    >>> batch = TokenBatch(log_probs=torch.zeros(1, 9), mask=torch.ones(1, 9, dtype=torch.bool),
    ...                    rewards=torch.ones(1))
    >>> overlong_reward(batch, max_length=10, buffer=4)
    tensor([0.2500])
    """
    batch.require("overlong", "rewards")
    check_range("max_length", max_length, 1)
    check_range("buffer", buffer, 1, max_length)
    check_range("factor", factor, 0.0)
    assert batch.rewards is not None
    length = batch.mask.sum(1).to(batch.rewards.dtype)
    return batch.rewards - factor * ((length - (max_length - buffer)) / buffer).clamp(0, 1)


class Overlong(Part, name="overlong"):
    """Module of :func:`overlong_reward`."""
