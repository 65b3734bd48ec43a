"""Backward passes that are exact once and say so when asked twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("second derivatives are not available here: the gradient was computed in closed form")


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make the backward pass of an autograd function refuse to be differentiated.

    ``once_differentiable`` lets a second derivative pass as 0 where the incoming gradient is a constant; this
    raises RuntimeError there too, once the gradient itself is differentiated.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        found = found if isinstance(found, tuple) else (found,)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if g is None else _Refuse.apply(g.detach().requires_grad_()) for g in found)

    return run
