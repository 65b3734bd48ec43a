"""Shared by the tests of core: hypothesis strategies, and token statistics written down plainly."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from infotorch.core import TokenStats

STATISTICS = (
    "log_probs",
    "entropy",
    "log_normalizer",
    "varentropy",
    "collision",
    "entropy_covariance",
    "top_p_entropy",
)
EXTRAS = STATISTICS[3:]

logits = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.one_of(st.floats(-30, 30), st.just(-math.inf)),
).map(lambda x: torch.from_numpy(np.where(np.isneginf(x).all(-1, keepdims=True), 0.0, x)))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same in every type up to rounding."""
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(dtype)


def get(stats: TokenStats, name: str) -> Tensor:
    """One statistic, which must be there."""
    value = getattr(stats, name)
    assert value is not None
    return value


def asked(name: str) -> tuple[str, ...]:
    """The extras that ask for a statistic, and no other: some of them change how all are computed."""
    return (name,) if name in EXTRAS else ()


def nucleus_entropy(log_p: Tensor, top_p: float, include_crossing: bool, top_k: int | None = None) -> Tensor:
    """Entropy of one row's renormalized nucleus, by a loop over the sorted row."""
    kept, mass = [], 0.0
    for value in log_p.sort(descending=True).values[:top_k]:
        p = value.detach().exp().item()
        if (mass >= top_p) if include_crossing else (mass + p >= top_p):
            break
        mass += p
        if p > 0:
            kept.append(value)
    if not kept:
        return log_p.sum() * 0 if bool(log_p.isfinite().all()) else log_p.new_zeros(())
    nucleus = torch.stack(kept).log_softmax(-1)
    return -(nucleus.exp() * nucleus).sum()


def plain_stats(
    x: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 1.0,
    top_p: float = 0.8,
    include_crossing: bool = True,
    top_k: int | None = None,
) -> dict[str, Tensor]:
    """All statistics of ``x [N, V]`` by dense formulas that autograd can follow."""
    z = x / (temperature.unsqueeze(1) if isinstance(temperature, Tensor) else temperature)
    lse = torch.logsumexp(z, -1)
    log_p = z - lse.unsqueeze(1)
    p = log_p.exp()
    safe = log_p.masked_fill(p == 0, 0.0)
    h = -(p * safe).sum(-1)
    s = safe + h.unsqueeze(1)
    return {
        "log_probs": log_p.gather(1, labels.unsqueeze(1)).squeeze(1),
        "entropy": h,
        "log_normalizer": lse,
        "varentropy": (p * s.square()).sum(-1),
        "collision": p.square().sum(-1),
        "entropy_covariance": (p.square() * s).sum(-1),
        "top_p_entropy": torch.stack([nucleus_entropy(row, top_p, include_crossing, top_k) for row in log_p]),
    }
