"""What several conformance modules share: a batch from a case, and a loss with its gradient."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotorch.core import Aggregation
from infotorch.losses import LossOutput, TokenBatch

# verl divides a row's sum by its count plus 1e-8.
VERL_MODES = {
    mode: Aggregation(mode, row_eps=1e-8)
    for mode in ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
}

# Its releases before did not, took the mean over empty rows too, and the "-norm" mode did not divide by their number.
OLD_VERL_MODES = {
    "token-mean": Aggregation("token-mean"),
    "seq-mean-token-sum": Aggregation("batch-mean-token-sum"),
    "seq-mean-token-mean": Aggregation("seq-mean-token-mean"),
    "seq-mean-token-sum-norm": Aggregation("seq-mean-token-sum-norm", legacy_norm=True),
}


def dispatch(case, checks: dict[str, Callable[[Any], None]]) -> None:
    """Run the check whose pattern matches the case's name; a case that none knows is a failure.

    A name that matches only with a further ``_suffix`` is one more case of its kind.
    """
    for suffix in ("", r"_[\w.+-]+"):
        for pattern, check in checks.items():
            if re.fullmatch(f"(?:{pattern}){suffix}", case.name):
                check(case)
                case.all_seen()
                return
    raise AssertionError(f"{case.name}: no check knows this case")


def ids(values: Any) -> Tensor:
    """Labels of a case, numbers or texts, as integers."""
    if isinstance(values, Tensor):
        return values.long()
    return torch.as_tensor(np.unique(values, return_inverse=True)[1])


@dataclass
class Result:
    """A loss and its gradient with respect to the log-probabilities."""

    out: LossOutput
    grad: Tensor


def differentiate(function, make_batch, **options: Any) -> Result:
    """Run a loss on a fresh batch and differentiate it with respect to the tensor that went in."""
    leaf: list[Tensor] = []
    out = function(make_batch(leaf), **options)
    (grad,) = torch.autograd.grad(out.loss, leaf[0], allow_unused=True)
    return Result(out, torch.zeros_like(leaf[0]) if grad is None else grad)


def close_loss(case, function, make_batch, loss: str = "loss", grad: str = "grad_log_prob", **tolerance: float) -> None:
    """Compare a loss and its gradient with the case's.

    Where theirs is NaN, a row or the whole mask is empty and 0/0 there: ours is the loss of the other rows, or 0.
    """
    result = differentiate(function, make_batch)
    if case.outputs[loss].isfinite():
        case.close(loss, result.out.loss, **tolerance)
        case.close(grad, result.grad, **tolerance)
        return
    batch = make_batch([])
    full = batch.mask.any(1)
    assert not full.all(), f"{case.name}/{loss}: the expected loss is not finite though every row has tokens"
    expected = function(batch.select(full)).loss if full.any() else torch.zeros_like(result.out.loss)
    torch.testing.assert_close(result.out.loss, expected)
    assert result.grad.isfinite().all()
    case.seen.update((loss, grad))


def from_case(case, mask: str = "response_mask", **more: Any):
    """A function that builds the case's batch and hands its leaf tensor out."""

    def make(leaf: list[Tensor]) -> TokenBatch:
        leaf.append(case.inputs["log_prob"].clone().requires_grad_())
        return TokenBatch(
            log_probs=leaf[0],
            old_log_probs=case.inputs["old_log_prob"],
            advantages=case.inputs["advantages"],
            mask=case.inputs[mask].bool(),
            **more,
        )

    return make
