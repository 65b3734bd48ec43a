"""What verl calls as a policy loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from infotorch.core import Aggregation
from infotorch.integrations._fields import turns_of
from infotorch.integrations.verl._checks import advantage_parts, by_length, check_loss, loss_parts
from infotorch.integrations.verl._registry import PREFIX, current_recipe
from infotorch.integrations.verl._side import side, split
from infotorch.losses import Recipe, TokenBatch

_ROW_EPS = 1e-8  # verl divides a row's sum by its count plus this


def policy_loss(
    full: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Verl's contract of a policy loss: scalar loss, and metrics as Python numbers with the prefix ``actor/``."""
    method = current_recipe(full)
    check_loss(full, method)
    here = side()
    fields, extras = split({} if here is None else here.fields)
    _check_entropy(method, log_prob, fields)
    counts = dict(getattr(config, "global_batch_info", None) or {})
    scale = counts.get("loss_scale_factor")
    mask = response_mask.bool()
    batch = TokenBatch(
        log_probs=log_prob,
        old_log_probs=old_log_prob,
        mask=mask,
        advantages=advantages,
        rollout_weights=rollout_is_weights,
        turn=turns_of(mask),
        num_tokens=counts.get("batch_num_tokens"),
        num_sequences=counts.get("global_batch_size"),
        world_size=int(counts.get("dp_size") or 1),
        extras=extras,
        **fields,
    )
    method.to(log_prob.device)
    with _aggregated(method, loss_agg_mode, None if scale is None else float(scale)):
        out = method(batch)
    # What rewards and advantages report is the driver's to say, where they are formed.
    elsewhere = {name for part in advantage_parts(method) for name in part.rollout_metrics()}
    metrics = {name: value for name, value in out.metrics.items() if name not in elsewhere}
    # One transfer from the device for all of them.
    values = torch.stack([value.detach().to(log_prob.device, torch.float32) for value in metrics.values()]).tolist()
    return out.loss, {f"actor/{PREFIX}{name}": value for name, value in zip(metrics, values, strict=True)}


def _check_entropy(method: Recipe, log_prob: Tensor, fields: Mapping[str, Tensor]) -> None:
    """An entropy that is absent, or through which no gradient flows to a regularizer, would be a loss without it."""
    for part in loss_parts(method):
        for name in ("entropy", "top_p_entropy"):
            if name not in part.info.requires:
                continue
            if name not in fields:
                where = "" if name == "entropy" else ", with verl's FSDP engine and without fused kernels"
                raise ValueError(
                    f"{part.info.name} needs TokenBatch.{name}, which is missing: set "
                    f"actor_rollout_ref.actor.calculate_entropy=True{where}"
                )
            trains = part.info.kind == "regularizer" and torch.is_grad_enabled() and log_prob.requires_grad
            if trains and not fields[name].requires_grad:
                raise ValueError(
                    f"{part.info.name} acts through the gradient of {name}, and verl's engine gave one without"
                )


@contextmanager
def _aggregated(method: Recipe, mode: str, scale: float | None) -> Iterator[None]:
    """Verl's aggregation for every part that does not set its own, for one call, and verl's length for every part."""
    verls = Aggregation(mode, row_eps=_ROW_EPS, length=scale)
    changed = []
    for part in method.parts():
        if "aggregation" not in part.info.options:
            continue
        own = part.options.get("aggregation")
        if own is not None and (scale is None or not by_length(own)):
            continue
        changed.append((part, own))
        part.options["aggregation"] = verls if own is None else replace(Aggregation.of(own), length=scale)
    try:
        yield
    finally:
        for part, own in changed:
            if own is None:
                del part.options["aggregation"]
            else:
                part.options["aggregation"] = own
