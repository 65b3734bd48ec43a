"""Squared distance covariance: by sorting on a line, by tiles in more dimensions, with and without gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

LINE, QUICK_LINE = (1_000, 10_000, 100_000, 1_000_000), (2_000,)
POINTS, QUICK_POINTS = (1_000, 5_000, 10_000), (400,)
CUDA_POINTS = (5_000, 100_000)
DIMENSIONS = (10, 3)
FROZEN_LINE, FROZEN_POINTS = (10_000, 100_000), 5_000
PAIRS_LIMIT = 20_000  # above this not all pairs are visited to check a result, and gradients are only timed
# Beyond these n x n matrices take minutes, or do not fit small machines; with a gradient they are the only peer.
DENSE_LIMIT, DENSE_GRADIENT_LIMIT = 5_000, 10_000
MERGE, AVL, NAIVE = "dcor mergesort", "dcor avl", "dcor naive"
DENSE = "torch, dense matrices"


@register("distance_covariance", "squared distance covariance on a line and in several dimensions")
def cases(options: Options) -> list[Case]:
    """Values on a line, values among points, and values with gradients."""
    line = QUICK_LINE if options.quick else LINE
    points = QUICK_POINTS if options.quick else POINTS if options.device == "cpu" else CUDA_POINTS
    found = [Case(f"line/forward/{n} float64", partial(_build, n, (0, 0), False, options)) for n in line]
    found += [Case(f"line/forward+backward/{n} float64", partial(_build, n, (0, 0), True, options)) for n in line]
    for mode in ("forward", "forward+backward"):
        for n in points:
            name = f"points/{mode}/{n}x{DIMENSIONS[0]}, {n}x{DIMENSIONS[1]} float64"
            found.append(Case(name, partial(_build, n, DIMENSIONS, mode != "forward", options)))
    return found


def _build(n: int, dimensions: tuple[int, int], backward: bool, options: Options) -> Built:
    generator = torch.Generator(options.device).manual_seed(options.seed)
    shapes = [(n, d) if d else (n,) for d in dimensions]
    x, y = (torch.randn(shape, generator=generator, device=options.device, dtype=torch.float64) for shape in shapes)
    y += x.reshape(n, -1)[:, :1].square().reshape(n, *(1,) * (y.ndim - 1))
    line = not dimensions[0]
    subjects = []
    if not backward and options.device == "cpu":
        for name, method in ((MERGE, "mergesort"), (AVL, "avl")) if line else ((NAIVE, "naive"),):
            subjects.append(_dcor(name, method, x, y))
        if not line:
            subjects.append(_hyppo(x, y))
    dense = None
    if n <= (DENSE_GRADIENT_LIMIT if backward and not line else DENSE_LIMIT):
        dense = partial(_run, _dense, x, y, backward)
    subjects.append(Subject(DENSE, version_of("torch") or "-", dense, "" if dense else "left out: n x n matrices"))
    gates = [Gate(s.name, "ours_max_abs_error", at_most=1e-9) for s in subjects[:1]]
    if not options.quick and not backward and options.device == "cpu":
        if line and n in FROZEN_LINE:
            gates.append(Gate(MERGE, "time_ratio", at_least=1 / 1.5))
        if not line and n == FROZEN_POINTS:
            gates.append(Gate(NAIVE, "time_ratio", at_least=20.0))
    return Built(
        ours=Subject(
            "distance_covariance_sqr", version_of("infotorch") or "source tree", partial(_run, _ours, x, y, backward)
        ),
        peers=subjects,
        reference=lambda: _reference(x, y, backward) if n <= PAIRS_LIMIT else _by_other_means(x, y),
        input_bytes=(x.numel() + y.numel()) * 8,
        gates=gates,
    )


def _ours(x: Tensor, y: Tensor) -> Tensor:
    from infotorch.core.dependence import distance_covariance_sqr

    return distance_covariance_sqr(x, y)


def _dcor(name: str, method: str, x: Tensor, y: Tensor) -> Subject:
    if version_of("dcor") is None:
        return Subject(name, "-", None, "not installed")
    a, b = x.numpy(), y.numpy()

    def run() -> Results:
        import dcor

        chosen = dcor.DistanceCovarianceMethod[method.upper()]
        return {"value": torch.as_tensor(dcor.distance_covariance_sqr(a, b, method=chosen))}

    return Subject(name, version_of("dcor") or "-", run, "no gradient")


def _hyppo(x: Tensor, y: Tensor) -> Subject:
    """Its statistic is the squared correlation, so that values are not compared."""
    name, version = "hyppo Dcorr(bias=True).statistic", version_of("hyppo")
    if version is None:
        return Subject(name, "-", None, "not installed")
    a, b = x.numpy(), y.numpy()

    def run() -> Results:
        from hyppo.independence import Dcorr

        Dcorr(bias=True).statistic(a, b)
        return {}

    return Subject(name, version, run, "squared correlation; no gradient")


def _dense(x: Tensor, y: Tensor) -> Tensor:
    a, b = (torch.cdist(z, z) for z in (x.reshape(len(x), -1), y.reshape(len(y), -1)))
    a = a - a.mean(0) - a.mean(1, keepdim=True) + a.mean()
    b = b - b.mean(0) - b.mean(1, keepdim=True) + b.mean()
    return (a * b).mean()


def _run(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, backward: bool) -> Results:
    if not backward:
        with torch.no_grad():
            return {"value": call(x, y)}
    leaves = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = call(*leaves)
    grads = torch.autograd.grad(value, leaves)
    if len(x) > PAIRS_LIMIT:
        return {"value": value.detach()}
    return {"value": value.detach(), "grad_x": grads[0], "grad_y": grads[1]}


def _reference(x: Tensor, y: Tensor, backward: bool) -> Results:
    """All pairs, a few rows at a time: means first, then the products of centered distances."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    n = len(x)
    block = max(1, (1 << 22) // n)
    rows = [slice(start, start + block) for start in range(0, n, block)]
    exact = "donot_use_mm_for_euclid_dist"
    means = [torch.cat([torch.cdist(z[r], z, compute_mode=exact).mean(1) for r in rows]) for z in (x, y)]
    leaves = [z.detach().requires_grad_(backward) for z in (x, y)]
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for r in rows:
        a, b = (torch.cdist(z[r], z, compute_mode=exact) for z in leaves)
        other = [_centered(d.detach(), m, r) for d, m in zip((a, b), means, strict=True)]
        if backward:
            # Centering is its own adjoint, so either side may stay uncentered where the other is.
            part = ((a * other[1]).sum() + (b * other[0]).sum()) / n**2
            part.backward()
        total += (a.detach() * other[1]).sum() / n**2
    found = {"value": total}
    if backward:
        found |= {f"grad_{k}": z.grad.squeeze(-1) for k, z in zip("xy", leaves, strict=True) if z.grad is not None}
    return found


def _by_other_means(x: Tensor, y: Tensor) -> Results:
    """On a line dcor's value; among points, where nobody else can, ours with the roles swapped and points shuffled."""
    if x.ndim == 1 and (run := _dcor(AVL, "avl", x.cpu(), y.cpu()).run) is not None:
        return run()
    order = torch.randperm(len(x), device=x.device)
    return {"value": _ours(y[order], x[order])}


def _centered(tile: Tensor, means: Tensor, rows: slice) -> Tensor:
    return tile - means[rows].unsqueeze(1) - means + means.mean()
