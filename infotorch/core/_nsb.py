"""The integral of the Nemenman-Shafee-Bialek entropy estimator."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW, _HIGH = -18.0, 14.0  # of log beta
_POINTS = 512
_REACH = 45.0  # weights below exp(-45) of the largest add nothing in float64
_CELLS = 2**22  # elements of a chunk of rows


def nsb_mean(counts: Tensor, sizes: Tensor) -> Tensor:
    """Posterior mean entropy of each row of ``counts [rows, cells]`` over an alphabet of ``sizes [rows]`` symbols."""
    step = max(1, _CELLS // (counts.shape[1] * _POINTS))
    chunks = [_chunk(n, size) for n, size in zip(counts.split(step), sizes.split(step), strict=True)]
    mean = torch.cat(chunks) if chunks else counts.new_empty(0)
    return torch.where(sizes > 1, mean, 0.0)


def _chunk(n: Tensor, size: Tensor) -> Tensor:
    unit = torch.linspace(0, 1, _POINTS, dtype=n.dtype, device=n.device)
    grid = (_LOW + (_HIGH - _LOW) * unit).expand(len(n), -1)
    log_weight, _ = _posterior(n, size, grid)
    # The posterior may be narrower than the first grid's steps: look again where it is.
    inside = log_weight > log_weight.amax(1, keepdim=True) - _REACH
    margin = (_HIGH - _LOW) / (_POINTS - 1)
    low = torch.where(inside, grid, torch.inf).amin(1, keepdim=True) - margin
    high = torch.where(inside, grid, -torch.inf).amax(1, keepdim=True) + margin
    grid = (low + (high - low) * unit).clamp(_LOW, _HIGH)
    log_weight, entropy = _posterior(n, size, grid)
    steps = grid.diff(dim=1)
    weight = (log_weight - log_weight.amax(1, keepdim=True)).exp()
    ends = torch.zeros_like(steps[:, :1])
    weight = weight * (torch.cat((ends, steps), 1) + torch.cat((steps, ends), 1))  # trapezoids
    return (weight * entropy).sum(1) / weight.sum(1)


def _posterior(n: Tensor, size: Tensor, log_beta: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weight (per unit of log beta) and mean entropy at each concentration, ``[rows, points]``."""
    total, size = n.sum(1, keepdim=True), size.unsqueeze(1)
    beta = log_beta.exp()
    mass = size * beta
    observed = (n > 0).unsqueeze(2)
    cells = n.unsqueeze(2) + beta.unsqueeze(1)
    ratios = torch.where(observed, torch.lgamma(cells) - torch.lgamma(beta).unsqueeze(1), 0.0).sum(1)
    slope = size * torch.polygamma(1, mass + 1) - torch.polygamma(1, beta + 1)
    tiny = torch.finfo(n.dtype).tiny
    log_weight = torch.lgamma(mass) - torch.lgamma(total + mass) + ratios + slope.clamp(min=tiny).log() + log_beta
    seen = torch.where(observed, cells * torch.digamma(cells + 1), 0.0).sum(1)
    unseen = (size - observed.sum(1)) * beta * torch.digamma(beta + 1)
    entropy = torch.digamma(total + mass + 1) - (seen + unseen) / (total + mass)
    return log_weight, entropy
