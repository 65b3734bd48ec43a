"""CANON against the authors' functions, and Dr. GRPO where they say so."""

from __future__ import annotations

from typing import Any

import torch
from helpers import OLD_VERL_MODES, close_loss, dispatch, ids
from torch import Tensor

from infotorch.core.reduce import masked_mean
from infotorch.losses import LossOutput, TokenBatch, canon_advantage, dr_grpo_advantage, inter_share, ppo
from infotorch.losses._groups import Groups

SLUG = "canon"
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
# Theirs keeps the raw reward of a group of one.
PARITY: dict[str, Any] = {"singleton": "raw"}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def make(case, **changes) -> TokenBatch:
    x = case.inputs
    return TokenBatch(
        **{
            "log_probs": torch.zeros_like(x["entropy"]),
            "mask": x["mask"].bool(),
            "entropy": x["entropy"],
            "rewards": x["token_level_rewards"].sum(1),
            "group": ids(x["index"]),
            **changes,
        }
    )


def by_entropy(case, **options: Any) -> Tensor:
    """Advantages by the entropy metric.

    Theirs adds 1e-8 to the length, which orders completions of equal entropy by their lengths; where that decides,
    their metric is handed in.
    """
    batch = make(case)
    assert batch.entropy is not None
    assert batch.group is not None
    groups = Groups(batch.group)
    theirs = batch.entropy.sum(1) / (batch.mask.sum(1).to(batch.entropy.dtype) + 1e-8)
    ours = masked_mean(batch.entropy, batch.mask, dim=1)
    if torch.equal(groups.rank(theirs), groups.rank(ours)):
        return canon_advantage(batch, metric="entropy", **options, **PARITY)
    return canon_advantage(batch.replace(extras={"theirs": theirs}), metric="extras.theirs", **options, **PARITY)


def check_advantages(case) -> None:
    case.allow_params("mu", "alpha", "beta", "max_length")
    for key in list(case.outputs):
        found = {
            "adv_entropy": by_entropy,
            "adv_length": lambda case, **options: canon_advantage(make(case), metric="length", **options, **PARITY),
        }[key](case, **case.params)
        case.close(key, found, **TOLERANCE)


def check_variants(case) -> None:
    case.allow_params("max_length")
    batch, options = make(case), {**case.params, **PARITY}
    for key in list(case.outputs):
        if key == "adv_accuracy_schedule":
            case.close(key, by_entropy(case, schedule="accuracy", **case.params), **TOLERANCE)
        elif key == "adv_random":
            case.close(key, canon_advantage(batch, metric="random", **options), **TOLERANCE)
        elif key == "adv_drgrpo":
            case.close(key, dr_grpo_advantage(batch) / case.params["max_length"], **TOLERANCE)
            # It is the equal mixture of the two, for even groups.
            even = (Groups(ids(case.inputs["index"])).size % 2 == 0).unsqueeze(1)
            for metric in ("entropy", "length", "random"):
                half = canon_advantage(batch, metric=metric, mu=0.5, **options)
                case.close(key, half, where=even, **TOLERANCE)


def check_cosine(case) -> None:
    case.allow_params("max_length", "step")
    names = {"adv_cosine": "cosine", "adv_cosine_r": "cosine_reversed"}
    for key in list(case.outputs):
        found = by_entropy(case, schedule=names[key], **case.params)
        case.close(key, found, **TOLERANCE)


def check_schedule(case) -> None:
    case.allow_params("total", "warmup", "cycles")
    names = {"intra_weight_cosine": "cosine", "intra_weight_cosine_r": "cosine_reversed"}
    for key in list(case.outputs):
        share = inter_share(names[key], step=case.inputs["step"], **case.params)
        case.close(key, 1 - torch.as_tensor(share), **TOLERANCE)


def check_loss(case) -> None:
    case.allow_params("agg", "alpha", "clip_c", "clip_high", "clip_low", "max_length", "mu", "beta")
    p = case.params
    options = {key: p[key] for key in ("alpha", "beta", "mu", "max_length") if key in p}
    advantages = by_entropy(case, **options)
    case.close("advantages", advantages, **TOLERANCE)

    def batch(leaf: list[Tensor]) -> TokenBatch:
        leaf.append(case.inputs["log_prob"].clone().requires_grad_())
        return make(case, log_probs=leaf[0], old_log_probs=case.inputs["old_log_prob"], advantages=advantages)

    clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "dual_clip": p["clip_c"]}

    def loss(batch: TokenBatch) -> LossOutput:
        return ppo(batch, aggregation=OLD_VERL_MODES[p["agg"]], **clip)

    close_loss(case, loss, batch, **TOLERANCE)


CHECKS = {
    r"canon_\d+_mu[\d.e-]+_a[\d.e-]+": check_advantages,
    r"variants_\d+": check_variants,
    r"cosine_\d+_step\d+": check_cosine,
    r"schedule": check_schedule,
    r"loss": check_loss,
}
