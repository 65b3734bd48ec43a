"""CRReLU: forward and backward against GELU, eager and compiled, and against the formula as one writes it down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import Built, Case, Options, Results, Subject, register
from benchmarks.machine import version_of

SHAPES, QUICK_SHAPES = ((64, 197, 768), (4096, 4096)), ((64, 64),)
EPSILON = 0.01


@register("crrelu", "CRReLU, forward and backward")
def cases(options: Options) -> list[Case]:
    """Activations of a vision transformer and of a wide layer, float32 and bfloat16."""
    shapes = QUICK_SHAPES if options.quick else SHAPES
    return [
        Case(f"forward+backward/{'x'.join(map(str, shape))} {str(dtype)[6:]}", partial(_build, shape, dtype, options))
        for shape in shapes
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _build(shape: tuple[int, ...], dtype: torch.dtype, options: Options) -> Built:
    from infotorch.nn import crrelu

    generator = torch.Generator().manual_seed(options.seed)
    x, upstream = (torch.randn(shape, generator=generator).to(options.device, dtype) for _ in range(2))
    epsilon = torch.tensor(EPSILON, device=options.device)
    torch_version = version_of("torch") or "-"
    run = partial(_run, x, upstream, epsilon)

    def plain(x: Tensor, epsilon: Tensor) -> Tensor:
        return F.relu(x) + epsilon.to(x.dtype) * x * (-x.square() / 2).exp()

    def reference() -> Results:
        return _run(x.double(), upstream.double(), epsilon.double(), plain)

    other = "another function"
    peers = [
        Subject("the formula in torch", torch_version, partial(run, plain)),
        Subject("torch gelu", torch_version, partial(_other, x, upstream, F.gelu), other),
        Subject("torch silu", torch_version, partial(_other, x, upstream, F.silu), other),
    ]
    if not options.quick:
        peers += [
            Subject("the formula, compiled", torch_version, partial(run, torch.compile(plain))),
            Subject("torch gelu, compiled", torch_version, partial(_other, x, upstream, torch.compile(F.gelu)), other),
        ]
    return Built(
        ours=Subject("crrelu", version_of("infotorch") or "source tree", partial(run, crrelu)),
        peers=peers,
        reference=reference,
        input_bytes=x.numel() * x.itemsize,
        gates=[],
    )


def _run(x: Tensor, upstream: Tensor, epsilon: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Results:
    leaf, size = x.detach().requires_grad_(), epsilon.detach().requires_grad_()
    y = function(leaf, size)
    grad_x, grad_epsilon = torch.autograd.grad(y, (leaf, size), upstream)
    return {"y": y.detach(), "grad_x": grad_x, "grad_epsilon": grad_epsilon}


def _other(x: Tensor, upstream: Tensor, function: Callable[[Tensor], Tensor]) -> Results:
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(function(leaf), leaf, upstream)
    return {}
