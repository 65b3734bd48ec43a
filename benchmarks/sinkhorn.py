"""Entropic optimal transport: value and gradient in the log domain, and exact transport beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

SIZES, QUICK_SIZES = (500, 1_000, 2_000), (100,)
EPS, TOLERANCE, ITERATIONS = 0.1, 1e-6, 5_000
LOG, KERNEL, EXACT = "ot.sinkhorn, log domain", "ot.sinkhorn, kernel", "ot.emd2"
DUAL = "ot.sinkhorn log on torch, unrolled gradient"


@register("sinkhorn", "entropic optimal transport to a given marginal error")
def cases(options: Options) -> list[Case]:
    """Both modes at every size; the cost is scaled to a median of 1."""
    return [
        Case(f"{mode}/{n}x{n} float64", partial(_build, n, mode != "forward", options))
        for n in (QUICK_SIZES if options.quick else SIZES)
        for mode in ("forward", "forward+backward")
    ]


def _build(n: int, backward: bool, options: Options) -> Built:
    generator = torch.Generator().manual_seed(options.seed)
    x, y = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    cost = torch.cdist(x, y + 0.5).square()
    cost = (cost / cost.median()).to(options.device)
    pot = version_of("pot")
    peers = [_pot(LOG, "sinkhorn_log", cost, pot), _pot(KERNEL, "sinkhorn", cost, pot)] if not backward else []
    if backward and n <= 1_000:
        peers.append(
            Subject(DUAL, pot or "-", partial(_unrolled, cost) if pot else None, "" if pot else "not installed")
        )
    if not backward:
        peers.append(Subject(EXACT, pot or "-", partial(_exact, cost) if pot else None, "the unregularized problem"))
    gates = []
    if not options.quick and not backward:
        gates = [Gate(LOG, "time_ratio", at_least=1.0)]
    return Built(
        ours=Subject("sinkhorn", version_of("infotorch") or "source tree", partial(_ours, cost, backward)),
        peers=peers,
        reference=partial(_ours, cost, backward, 1e-10),
        input_bytes=cost.numel() * 8,
        gates=gates,
    )


def _ours(cost: Tensor, backward: bool, tolerance: float = TOLERANCE) -> Results:
    from infotorch.core.transport import sinkhorn

    leaf = cost.detach().requires_grad_(backward)
    result = sinkhorn(leaf, eps=EPS, tol=tolerance, max_iter=ITERATIONS)
    value = result.transport_cost
    if not backward:
        return {"cost": value.detach()}
    (grad,) = torch.autograd.grad(value, leaf)
    return {"cost": value.detach(), "grad_cost": grad}


def _pot(name: str, method: str, cost: Tensor, version: str | None) -> Subject:
    if version is None:
        return Subject(name, "-", None, "not installed")
    matrix = cost.cpu().numpy()

    def run() -> Results:
        import ot

        value = ot.sinkhorn2([], [], matrix, EPS, method=method, numItermax=ITERATIONS, stopThr=TOLERANCE, warn=False)
        return {"cost": torch.as_tensor(value, dtype=torch.float64)}

    return Subject(name, version, run)


def _unrolled(cost: Tensor) -> Results:
    import ot

    leaf = cost.detach().requires_grad_()
    weights = torch.full((len(cost),), 1 / len(cost), dtype=cost.dtype, device=cost.device)
    value: Any = ot.sinkhorn2(
        weights, weights, leaf, EPS, method="sinkhorn_log", numItermax=ITERATIONS, stopThr=TOLERANCE, warn=False
    )
    (grad,) = torch.autograd.grad(value, leaf)
    return {"cost": value.detach(), "grad_cost": grad}


def _exact(cost: Tensor) -> Results:
    import ot

    ot.emd2([], [], cost.cpu().numpy())
    return {}
