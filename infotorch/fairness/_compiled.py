"""A penalty as one operator that ``torch.compile`` does not look into.

Sorting, cells and tiles branch on data, so that they cannot be traced. The operator computes value and gradient
together; only the prediction has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infotorch.fairness._measure import Options, measure


@torch.library.custom_op("infotorch::dependence_penalty", mutates_args=())
def value_and_gradient(
    prediction: Tensor,
    attributes: Sequence[Tensor],
    weights: Tensor | None,
    name: str,
    unbiased: bool,
    scale: str,
    c: float,
    exponent: float,
) -> tuple[Tensor, Tensor]:
    """The penalty and its gradient in the prediction."""
    # An operator runs below autograd, which it needs inside.
    keys = torch._C._dispatch_tls_local_include_set(), torch._C.DispatchKeySet.from_raw_repr(0)
    with torch._C._ForceDispatchKeyGuard(*keys), torch.enable_grad():
        leaf = prediction.detach().requires_grad_()
        value = measure(leaf, attributes, weights, Options(name, unbiased, scale, c, exponent))
        (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad


@value_and_gradient.register_fake
def _(prediction: Tensor, attributes: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    double = any(x.dtype is torch.float64 for x in (prediction, *attributes))
    value = prediction.new_empty((), dtype=torch.float64 if double else torch.float32)
    return value, torch.empty_like(prediction)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.attributes, ctx.others = len(inputs[1]), len(inputs) - 2
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, of_value: Tensor, of_gradient: Tensor) -> tuple[Any, ...]:
    del of_gradient
    (grad,) = ctx.saved_tensors
    return of_value.to(grad.dtype) * grad, [None] * ctx.attributes, *[None] * ctx.others


value_and_gradient.register_autograd(_backward, setup_context=_keep)
