"""STEER against the authors' functions (float32), and the entropy change it estimates against a transcription."""

from __future__ import annotations

import torch
from helpers import OLD_VERL_MODES, differentiate, dispatch, from_case

from infotorch.core import token_stats
from infotorch.losses import TokenBatch, entropy_change, steer, steer_weights

SLUG = "steer"
FLOAT32 = {"rtol": 2e-5, "atol": 1e-6}
MAPPINGS = {True: "linear", False: "exponential"}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_steer(case) -> None:
    case.allow_params(
        "token_weight_min",
        "token_weight_max",
        "linear",
        "loss_agg_mode",
        "cliprange_low",
        "cliprange_high",
        "clip_ratio_c",
    )
    p = case.params
    mapping = {
        "mapping": MAPPINGS[p["linear"]],
        "weight_min": p["token_weight_min"],
        "weight_max": max(p["token_weight_max"], p["token_weight_min"]),
    }
    make = from_case(case, old_entropy=case.inputs["entropies"])
    batch = make([])
    change = entropy_change(batch)
    case.close("omega", torch.where(batch.mask, change, case.outputs["omega"]), **FLOAT32)
    case.close("weights", steer_weights(change, batch.mask, **mapping), rtol=0, atol=2e-6)
    result = differentiate(
        steer,
        make,
        **mapping,
        clip_low=p["cliprange_low"],
        clip_high=p["cliprange_high"],
        dual_clip=p["clip_ratio_c"],
        aggregation=OLD_VERL_MODES[p["loss_agg_mode"]],
    )
    case.close("loss", result.out.loss, **FLOAT32)
    case.close("grad_log_prob", result.grad, **FLOAT32)
    metrics = {"clipfrac": "clip_fraction", "ppo_kl": "approx_kl", "clipfrac_lower": "clip_fraction_lower"}
    for theirs, ours in metrics.items():
        case.close(theirs, result.out.metrics[ours], **FLOAT32)


def check_empty(case) -> None:
    """The released loss fails here; ours is 0."""
    case.allow_params()
    mask = case.inputs["response_mask"].bool()
    case.close("weights", steer_weights(torch.ones(mask.shape), mask), rtol=0, atol=0)
    ones = torch.ones(mask.shape)
    assert steer(TokenBatch(log_probs=-ones, mask=mask, advantages=ones, entropy=ones)).loss == 0


def check_exact(case) -> None:
    case.allow_params("eta")
    logits, token = case.inputs["logits"], case.inputs["token"]
    stats = token_stats(logits, token, extras=["entropy_covariance"])
    batch = TokenBatch(
        log_probs=stats.log_probs.unsqueeze(1),
        old_log_probs=case.inputs["old_prob"].log().unsqueeze(1),
        advantages=case.inputs["advantage"],
        entropy=stats.entropy.unsqueeze(1),
        mask=torch.ones(len(token), 1, dtype=torch.bool),
        extras={"entropy_covariance": stats.entropy_covariance.unsqueeze(1)},
    )
    found = {metric: entropy_change(batch, metric=metric).squeeze(1) for metric in ("official", "exact")}
    found["sampled_logit"] = entropy_change(batch, metric="sampled_logit").squeeze(1)
    case.close("entropy", stats.entropy)
    case.close("first_order_per_eta", -found["exact"])
    case.close("official_omega", found["official"])
    case.close("sampled_logit_only", -found["sampled_logit"])
    # The exact change after the step itself, for which the first-order term stands.
    p, eta = logits.softmax(-1), case.params["eta"]
    taken = p.gather(1, token.unsqueeze(1)).squeeze(1)
    push = (case.inputs["advantage"] * taken / case.inputs["old_prob"]).unsqueeze(1)
    one_hot = torch.nn.functional.one_hot(token, logits.shape[1])
    after = token_stats(logits + eta * push * (one_hot - p)).entropy
    case.close("exact_dH", after - stats.entropy, rtol=1e-5, atol=1e-13)  # a difference of close numbers


CHECKS = {
    r"steer_\w+": check_steer,
    r"empty_mask": check_empty,
    r"exact_entropy_change": check_exact,
}
