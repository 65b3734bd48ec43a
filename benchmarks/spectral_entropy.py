"""Diffusion spectral entropy: all eigenvalues, and the estimate for many points."""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

WIDTH, CENTERS, SIGMA = 64, 10, 10.0  # 64 features on 10 clusters, the authors' default kernel width
EXACT, QUICK_EXACT = (500, 2000), (200,)
MANY, QUICK_MANY, CUDA_MANY = (4000, 10_000), (600,), (4000, 10_000, 30_000)
TILED_AT = 10_000  # from here on, a case with the operator recomputed in tiles as well
AUTHORS = "the authors' steps, numpy"
NUMPY, NUMPY_SINGLE = "the same in fewer steps, numpy", "the same in fewer steps, numpy float32"
DENSE, KERNEL = "torch.linalg.eigvalsh, float64", "kernel and one product with 128 columns"
BUDGET_MS = 20_000.0  # of the estimate at 10,000 points on one CPU thread


@register("spectral_entropy", "diffusion spectral entropy, exact and estimated")
def cases(options: Options) -> list[Case]:
    """All eigenvalues, then the estimate against them. Ten thousand points take the reference minutes."""
    exact, many = (QUICK_EXACT, QUICK_MANY) if options.quick else (EXACT, MANY)
    if options.device != "cpu" and not options.quick:
        many = CUDA_MANY
    found = [Case(f"exact/{n}x{WIDTH} float32", partial(_build_exact, n, options)) for n in exact]
    for n in many:
        found.append(Case(f"estimate/{n}x{WIDTH} float32", partial(_build_estimate, n, None, options)))
        if n >= TILED_AT or options.quick:
            tile = 1024 if options.device == "cpu" else 8192
            found.append(Case(f"estimate in tiles/{n}x{WIDTH} float32", partial(_build_estimate, n, tile, options)))
    return found


def _points(n: int, options: Options) -> Tensor:
    generator = torch.Generator(options.device).manual_seed(options.seed)
    centers = 3 * torch.randn(CENTERS, WIDTH, generator=generator, device=options.device)
    label = torch.randint(CENTERS, (n,), generator=generator, device=options.device)
    return centers[label] + torch.randn(n, WIDTH, generator=generator, device=options.device)


def _build_exact(n: int, options: Options) -> Built:
    x = _points(n, options)
    subjects = [Subject(DENSE, _torch(), partial(_dense, x))]
    gates = [Gate(DENSE, "ours_max_abs_error", at_most=1e-3)]
    if options.device == "cpu":
        numpy = version_of("numpy") or "-"
        subjects += [
            Subject(AUTHORS, numpy, partial(_authors_steps, x)),
            Subject(NUMPY, numpy, partial(_by_numpy, x.double())),
            Subject(NUMPY_SINGLE, numpy, partial(_by_numpy, x)),
        ]
        if n == 2000:
            # 95 % of our time is LAPACK's eigenvalues in float32, which no way with all eigenvalues can do without.
            gates += [Gate(AUTHORS, "time_ratio", at_least=4.0), Gate(NUMPY, "time_ratio", at_least=1.0)]
    return Built(
        ours=Subject("diffusion_spectral_entropy", _version(), partial(_ours, x)),
        peers=subjects,
        reference=partial(_dense, x),
        input_bytes=x.numel() * x.element_size(),
        gates=gates,
    )


def _build_estimate(n: int, tile: int | None, options: Options) -> Built:
    x = _points(n, options)
    subjects = [Subject(KERNEL, _torch(), partial(_kernel, x), floor=True)]
    if n < TILED_AT or options.device != "cpu":
        subjects.insert(0, Subject("diffusion_spectral_entropy", _version(), partial(_ours, x)))
    # One part in a thousand; quick sizes have too few points for probes to average over.
    gates = [Gate(KERNEL, "ours_max_abs_error", at_most=1e-3 * math.log(n) * (5 if options.quick else 1))]
    if not options.quick and options.device == "cpu" and n == 10_000 and tile is None:
        gates.append(Gate(KERNEL, "ours_ms", at_most=BUDGET_MS))
    return Built(
        ours=Subject("diffusion_entropy_estimate", _version(), partial(_estimate, x, tile)),
        peers=subjects,
        reference=partial(_dense, x),
        input_bytes=x.numel() * x.element_size(),
        gates=gates,
        rounds=2 if n >= TILED_AT and options.device == "cpu" else 5,
    )


def _ours(x: Tensor) -> Results:
    from infotorch.core.diffusion import diffusion_spectral_entropy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a quick size may be too small for the width
        return {"entropy": diffusion_spectral_entropy(x, sigma=SIGMA, max_n=None)}


def _estimate(x: Tensor, tile: int | None) -> Results:
    from infotorch.core.diffusion import diffusion_entropy_estimate

    return {"entropy": diffusion_entropy_estimate(x, sigma=SIGMA, tile=tile).value}


def _dense(x: Tensor) -> Results:
    """Every step in float64."""
    x = x.double()
    kernel = torch.cdist(x, x).square_().div_(-2 * SIGMA**2).exp_()
    root = kernel.sum(1).rsqrt()
    share = torch.linalg.eigvalsh(root.unsqueeze(1) * kernel * root).abs()
    share = share / share.sum()
    return {"entropy": -torch.xlogy(share, share).sum()}


def _authors_steps(x: Tensor) -> Results:
    """As the published code goes: float64, products with diagonal matrices, a test of symmetry before eigenvalues."""
    points = x.double().numpy()
    try:
        from sklearn.metrics import pairwise_distances
    except ImportError:
        from scipy.spatial.distance import cdist as pairwise_distances
    kernel = np.exp(-(pairwise_distances(points, points) ** 2) / (2 * SIGMA**2)) / (SIGMA * math.sqrt(2 * math.pi))
    root = np.diag(kernel.sum(1) ** -0.5)
    operator = root @ kernel @ root
    symmetric = np.allclose(operator, operator.T, rtol=1e-5, atol=1e-8)
    return _entropy_of(np.linalg.eigvalsh(operator) if symmetric else np.linalg.eigvals(operator))


def _entropy_of(eigenvalues: np.ndarray) -> Results:
    value = np.abs(eigenvalues)
    share = value / value.sum() + np.finfo(np.float64).eps
    return {"entropy": torch.as_tensor(-(share * np.log2(share)).sum() * math.log(2))}


def _by_numpy(x: Tensor) -> Results:
    """The published algorithm as one would write it in numpy, in the precision of its input."""
    points = x.numpy()
    square = (points**2).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * points @ points.T, 0))
    kernel = np.exp(-(distance**2) / (2 * SIGMA**2)) / (SIGMA * math.sqrt(2 * math.pi))
    root = kernel.sum(1) ** -0.5
    return _entropy_of(np.linalg.eigvalsh(root[:, None] * kernel * root))


def _kernel(x: Tensor) -> Results:
    kernel = torch.cdist(x, x).square_().div_(-2 * SIGMA**2).exp_()
    torch.mm(kernel, torch.ones(len(x), 128, device=x.device))
    return {}


def _version() -> str:
    return version_of("infotorch") or "source tree"


def _torch() -> str:
    return version_of("torch") or "-"
