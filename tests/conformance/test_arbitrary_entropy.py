"""Arbitrary entropy: the authors' loss, and transcriptions of their trainer loop and of the paper's term (float64)."""

from __future__ import annotations

import re

import torch
from helpers import VERL_MODES, differentiate, dispatch, from_case

from infotorch.losses import (
    AUXILIARY,
    ON_POLICY,
    EntropyTargetController,
    TokenBatch,
    arbitrary_entropy,
    blend_tempered,
    first_positives,
    mix_batches,
    ppo,
    target_temperature,
    tempered_weight,
)

SLUG = "arbitrary-entropy"
# The released loss adds 1e-8 to every count it divides by; ours divides by the count.
COUNT_PLUS_1E8 = {"rtol": 2e-8, "atol": 1e-9}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_loss(case) -> None:
    """Clipping the ratio in log space gives the values and gradients of the plain clip."""
    case.allow_params("clip_ratio_low", "clip_ratio_high", "clip_ratio_dual", "loss_agg_mode")
    p = case.params
    result = differentiate(
        ppo,
        from_case(case),
        clip_low=p["clip_ratio_low"],
        clip_high=p["clip_ratio_high"],
        dual_clip=p["clip_ratio_dual"],
        aggregation=VERL_MODES[p["loss_agg_mode"]],
    )
    case.close("loss", result.out.loss, **COUNT_PLUS_1E8)
    case.close("grad_log_prob", result.grad, **COUNT_PLUS_1E8)
    metrics = {"clipfrac_higher": "clip_fraction", "clipfrac_lower": "clip_fraction_lower", "ppo_kl": "approx_kl"}
    for theirs, ours in metrics.items():
        case.close(theirs, result.out.metrics[ours], **COUNT_PLUS_1E8)


def check_mix(case) -> None:
    case.allow_params("entropy_base", "temperature_high", "temperature_low", "reinforce_sample_num", "adv_threshold")
    p, entropy = case.params, case.inputs["entropy"]
    controller = EntropyTargetController(
        p["entropy_base"], low=p["temperature_low"], high=p["temperature_high"], schedule="two_level"
    )
    case.close("temperature", torch.tensor(controller.temperature(float(entropy)), dtype=torch.float64))
    advantages = case.inputs["aux_advantage_first_token"]
    above = bool(entropy > p["entropy_base"])
    taken = first_positives(advantages, p["reinforce_sample_num"], margin=p["adv_threshold"], halve=above)
    indices = taken.nonzero().squeeze(1)
    assert torch.equal(indices, case.out("selected_aux_indices"))
    assert len(indices) == int(case.out("num_replaced"))

    # In the update batch: the selected auxiliary rows with advantage 1, and all ordinary rows but the first ones.
    n = len(advantages)
    source = torch.tensor([ON_POLICY] * n + [AUXILIARY] * n)
    batch = TokenBatch(
        log_probs=torch.zeros(2 * n, 1),
        mask=torch.ones(2 * n, 1, dtype=torch.bool),
        advantages=torch.full((2 * n,), 0.5),
        source=source,
    )
    mixed = mix_batches(batch, torch.cat((torch.zeros_like(taken), taken)))
    updated = (mixed.source == ON_POLICY).nonzero().squeeze(1).tolist()
    assert updated == [*range(len(indices), n), *(n + indices).tolist()]
    assert (mixed.advantages[n + indices] == 1).all()
    assert (mixed.advantages[:n] == 0.5).all()


def check_auxiliary(case) -> None:
    case.allow_params("alpha", "eps")
    mask, alpha, eps = case.inputs["response_mask"].bool(), case.params["alpha"], case.params["eps"]
    leaf = case.inputs["log_prob"].clone().requires_grad_()
    batch = TokenBatch(
        log_probs=leaf, old_log_probs=case.inputs["old_log_prob"], mask=mask, rewards=case.inputs["reward"]
    )
    # The mean is over all auxiliary samples; a recipe's view of mixed rows needs the default, over non-empty ones.
    aggregation = "batch-mean-token-mean"
    out = arbitrary_entropy(batch, alpha=alpha, clip_low=eps, clip_high=eps, aggregation=aggregation)
    case.close("loss", out.loss)
    case.close("grad_log_prob", torch.autograd.grad(out.loss, leaf)[0])


def check_schedule(case) -> None:
    case.allow_params("target", "T_high", "T_low")
    p = case.params
    for schedule in list(case.outputs):
        options = {"low": p["T_low"], "high": p["T_high"], "schedule": schedule}
        case.close(schedule, target_temperature(case.inputs["entropy"], p["target"], **options))


def check_reinforce(case) -> None:
    """Imitating the tempered policy: expected gradient of the term on all tokens, weighted by their probabilities."""
    case.allow_params()
    logits = case.inputs["logits"]
    states, vocab = logits.shape
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    case.close("entropy", entropy)
    for key in list(case.outputs):
        found = re.fullmatch(r"dlogits\.(.+)", key)
        if not found:
            continue
        tempered = (logits / float(found[1])).softmax(-1)
        for state in range(states):
            leaf = logits[state].clone().requires_grad_()
            batch = TokenBatch(
                log_probs=leaf.log_softmax(-1).unsqueeze(1),
                mask=torch.ones(vocab, 1, dtype=torch.bool),
                rewards=vocab * tempered[state],  # each token's row, weighted by its probability
            )
            loss = arbitrary_entropy(batch, alpha=1.0, weighting="reward").loss
            (grad,) = torch.autograd.grad(loss, leaf)
            case.near(-grad, case.outputs[key][state])
        direction = case.out(key)
        slope = -(log_p.exp() * (log_p + entropy.unsqueeze(1)) * direction).sum(-1)
        case.close(f"dH_per_eta.{found[1]}", slope)


def check_tempered(case) -> None:
    case.allow_params("entropy", "entropy_base", "max_delta")
    p, correct = case.params, case.inputs["correct"] > 0
    entropy = torch.tensor(p["entropy"], dtype=torch.float64)
    weight = tempered_weight(entropy, p["entropy_base"], correct.double().mean(), max_gap=p["max_delta"])
    # Without a correct answer the code divides by 0; ours leaves the advantages as they are.
    some = correct.any()
    case.close("alpha", weight, where=some)
    old, tempered = case.inputs["old_log_prob"], case.inputs["old_log_prob_temperature"]
    blended = blend_tempered(case.inputs["advantages"], old, tempered, correct, weight)
    case.close("advantages", blended, where=some)
    assert some or (weight == 0 and torch.equal(blended, case.inputs["advantages"]))


CHECKS = {
    r"pg_\w+": check_loss,
    r"mix_\d+_H\S+": check_mix,
    r"aux_\d+_a\S+": check_auxiliary,
    r"temperature_schedule": check_schedule,
    r"temperature_reinforce": check_reinforce,
    r"dcpo_H\S+": check_tempered,
}
