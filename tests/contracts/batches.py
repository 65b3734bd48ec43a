"""One maker of random batches with every field filled, for tests that run over all parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.losses import LossOutput, TokenBatch

GROUP_SIZE = 4


def fields(seed: int = 0, groups: int = 3, length: int = 9, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Tensors of a batch in which every optional field is present and no two values tie."""
    g = torch.Generator().manual_seed(seed)
    b = groups * GROUP_SIZE

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(2, length + 1, (b,), generator=g)
    log_probs = -normal(b, length).abs() - 0.05
    found = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + 0.3 * normal(b, length),
        "ref_log_probs": log_probs + 0.3 * normal(b, length),
        "entropy": normal(b, length).abs() + 0.01,
        "old_entropy": normal(b, length).abs() + 0.01,
        "top_p_entropy": normal(b, length).abs() + 0.01,
        "advantages": normal(b, length),
        "rollout_weights": (0.1 * normal(b, length)).exp(),
        "rewards": normal(b),
    }
    found = {name: x.to(dtype) for name, x in found.items()}
    found["mask"] = torch.arange(length) < lengths.unsqueeze(1)
    found["group"] = torch.arange(b) // GROUP_SIZE
    found["turn"] = (torch.arange(length) // 3).expand(b, length)
    found["tokens"] = torch.randint(20, (b, length), generator=g)
    found["answer"] = torch.randint(-1, 3, (b,), generator=g)
    found["trajectory"] = torch.arange(b) // 2
    # Drawn last, so that the numbers of the others stay. "extras.x" is an entry of TokenBatch.extras.
    found["extras.entropy_covariance"] = (0.2 * normal(b, length)).to(dtype)
    found["extras.tempered_log_probs"] = (log_probs + 0.1 * normal(b, length)).to(dtype)
    found["extras.tool_turns"] = torch.randint(0, 14, (b,), generator=g)
    return found


def make(values: dict[str, Any], **changes: Any) -> TokenBatch:
    """The batch of these fields."""
    found: dict[str, Any] = {**values, **changes}
    extras = {name.removeprefix("extras."): found.pop(name) for name in list(found) if name.startswith("extras.")}
    return TokenBatch(**{"extras": extras, **found})


def outcome(result: LossOutput | Tensor) -> Tensor:
    """What a part of any kind is judged by: a loss's scalar, or the rewards or advantages themselves."""
    return result.loss if isinstance(result, LossOutput) else result
