"""Manifold entropy of a batch of codes against a bank: our search and the full matrix of pairwise differences."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

# Batch, bank, entries of a code: the authors' CIFAR-10 setting, their script's, and larger ones.
SHAPES, QUICK_SHAPES = ((64, 1024, 16), (256, 1024, 8), (1024, 4096, 16), (1024, 8192, 64)), ((64, 256, 8),)
FULL, CDIST, CORE = "full matrix of differences", "matrix of torch.cdist", "core.koleo.neighbor_distances"


@register("mee", "entropy of codes by the nearest in a bank, with gradients")
def cases(options: Options) -> list[Case]:
    """Every shape, in float32, forward and backward."""
    shapes = QUICK_SHAPES if options.quick else SHAPES
    return [Case(f"{n} codes, bank {s}x{m} float32", partial(_build, n, s, m, options)) for n, s, m in shapes]


def _build(n: int, size: int, m: int, options: Options) -> Built:
    generator = torch.Generator().manual_seed(options.seed)
    codes, bank = (torch.randn(rows, m, generator=generator).to(options.device) for rows in (n, size))
    gates = [] if options.quick else [Gate(FULL, "time_ratio", at_least=1.0), Gate(FULL, "memory_ratio", at_least=1.0)]
    return Built(
        ours=Subject("manifold_entropy", version_of("infotorch") or "source tree", partial(_ours, codes, bank)),
        peers=[
            Subject(FULL, torch.__version__, partial(_full, codes, bank)),
            Subject(CDIST, torch.__version__, partial(_cdist, codes, bank), "by products of float32"),
            Subject(CORE, version_of("infotorch") or "source tree", partial(_core, codes, bank), "in float64"),
        ],
        reference=partial(_full, codes.double(), bank.double()),
        input_bytes=(codes.numel() + bank.numel()) * 4,
        gates=gates,
    )


def _ours(codes: Tensor, bank: Tensor) -> Results:
    from infotorch.generative import manifold_entropy

    leaf = codes.detach().requires_grad_()
    return _results(manifold_entropy(leaf, bank), leaf)


def _full(codes: Tensor, bank: Tensor) -> Results:
    leaf = codes.detach().requires_grad_()
    pairs = (leaf.unsqueeze(1) - bank).square().mean(-1)
    return _results(pairs.min(1).values.mean().log(), leaf)


def _cdist(codes: Tensor, bank: Tensor) -> Results:
    leaf = codes.detach().requires_grad_()
    nearest = torch.cdist(leaf, bank).min(1).values
    return _results((nearest.square() / codes.shape[1]).mean().log(), leaf)


def _core(codes: Tensor, bank: Tensor) -> Results:
    from infotorch.core.koleo import neighbor_distances

    leaf = codes.detach().requires_grad_()
    squares = neighbor_distances(bank, 1, queries=leaf)[0].square() / codes.shape[1]
    return _results(squares.mean().log(), leaf)


def _results(value: Tensor, leaf: Tensor) -> Results:
    (grad,) = torch.autograd.grad(value, leaf)
    return {"entropy": value.detach(), "grad_codes": grad}
