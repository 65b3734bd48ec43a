"""The GRPO base against verl 0.9.1 and TRL 1.16.0."""

from __future__ import annotations

from typing import Any

import torch
from helpers import VERL_MODES, differentiate, dispatch, from_case, ids

from infotorch.core import Aggregation, categorical, token_stats
from infotorch.losses import (
    LossOutput,
    TokenBatch,
    cispo,
    entropy_bonus,
    forking_mask,
    group_advantages,
    grpo_advantage,
    gspo,
    kl_estimate,
    kl_regularizer,
    ppo,
    sapo,
    uniform_groups,
)
from infotorch.losses.ppo import aggregate_loss

SLUG = "grpo-base"
# verl's metrics add 1e-8 to the count they divide by, and some are single precision; ours divide by the count.
VERL_METRIC = {"rtol": 1e-7, "atol": 1e-8}
METRICS = {"pg_clipfrac": "clip_fraction", "ppo_kl": "approx_kl", "pg_clipfrac_lower": "clip_fraction_lower"}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def verl_options(params: dict[str, Any]) -> dict[str, Any]:
    low = params.get("clip_ratio_low")
    high = params.get("clip_ratio_high")
    return {
        "clip_low": params["clip_ratio"] if low is None else low,
        "clip_high": params["clip_ratio"] if high is None else high,
    }


def check_verl(case) -> None:
    case.allow_params("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")
    p = case.params
    functions = {
        "vanilla": (ppo, {**verl_options(p), "dual_clip": p["clip_ratio_c"]}),
        "gspo": (gspo, verl_options(p)),
        "cispo": (cispo, verl_options(p)),
        "sapo": (sapo, {"tau_positive": p["tau_pos"], "tau_negative": p["tau_neg"]}),
    }
    for key in list(case.outputs):
        kind, name, *mode = key.split(".")
        function, options = functions[name]
        if kind in METRICS:
            found = function(from_case(case)([]), **options).metrics
            # What cannot occur in a loss is a constant 0 there and no metric of ours.
            case.close(key, found.get(METRICS[kind], torch.tensor(0.0)), **VERL_METRIC)
            continue
        result = differentiate(function, from_case(case), aggregation=VERL_MODES[mode[0]], **options)
        case.close(key, {"loss": result.out.loss, "grad": result.grad}[kind])


def check_verl_weights(case) -> None:
    counts_given = [name for name in case.params if name.startswith("info")]
    case.allow_params("clip_ratio_low", "clip_ratio_high", "clip_ratio_c", *counts_given)
    options = {**verl_options(case.params), "dual_clip": case.params["clip_ratio_c"]}
    for key in list(case.outputs):
        kind, info_name, mode = key.split(".")
        info = dict(case.params[info_name])
        length = info.pop("loss_scale_factor", None)
        counts = {
            "num_tokens": info.pop("batch_num_tokens", None),
            "num_sequences": info.pop("global_batch_size", None),
            "world_size": info.pop("dp_size", 1),
        }
        assert not info, f"unknown counts {info}"
        make = from_case(case, rollout_weights=case.inputs["rollout_is_weights"], **counts)
        aggregation = Aggregation(mode, length=length, row_eps=1e-8)
        result = differentiate(ppo, make, aggregation=aggregation, **options)
        case.close(key, {"loss": result.out.loss, "grad": result.grad}[kind])


def check_verl_single(case) -> None:
    case.allow_params("clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "loss_agg_mode")
    p = case.params
    result = differentiate(
        ppo,
        from_case(case),
        aggregation=VERL_MODES[p["loss_agg_mode"]],
        dual_clip=p["clip_ratio_c"],
        **verl_options(p),
    )
    case.close("loss", result.out.loss)
    case.close("grad_log_prob", result.grad)
    for theirs, ours in METRICS.items():
        if theirs in case.outputs:
            case.close(theirs, result.out.metrics[ours], **VERL_METRIC)


def check_verl_kl(case) -> None:
    case.allow_params()
    for key in list(case.outputs):
        what, kind = key.split(".")
        log_prob = case.inputs["log_prob"].clone().requires_grad_()
        kl = kl_estimate(log_prob, case.inputs["ref_log_prob"], kind)
        found = kl if what == "kl" else torch.autograd.grad(kl.sum(), log_prob)[0]
        # Exact at the clamps too: what is bounded there must equal the bound.
        case.close(key, found)


def check_verl_advantages(case) -> None:
    case.allow_params("epsilon", "norm_adv_by_std_in_grpo")
    rewards = case.inputs["token_level_rewards"]
    scale = "group" if case.params["norm_adv_by_std_in_grpo"] else "none"
    batch = TokenBatch(
        log_probs=torch.zeros_like(rewards),
        mask=case.inputs["response_mask"].bool(),
        rewards=rewards.sum(-1),
        group=ids(case.inputs["index"]),
    )
    found = grpo_advantage(batch, scale=scale, eps=case.params["epsilon"])
    # verl adds eps to a float32 one where a group has a single member, and float64 elsewhere.
    index = batch.group
    alone = (index.unsqueeze(0) == index.unsqueeze(1)).sum(1) == 1
    expected = case.out("advantages")
    # Stated deviation: equal rewards give exactly 0, there what rounding leaves of their mean, divided by eps.
    equal = uniform_groups(batch.rewards, index) & ~alone
    assert not found[equal].any()
    differ = ~alone & ~equal
    case.near(found[differ], expected[differ])
    torch.testing.assert_close(found[alone], expected[alone], rtol=1e-6, atol=0)
    if scale == "group":
        exact = batch.rewards / (1 + case.params["epsilon"])
        case.near(found[alone], (exact.unsqueeze(1) * batch.mask)[alone], rtol=1e-12, atol=0)
    case.close("advantages_vectorized_f32", found.float(), rtol=1e-5, atol=1e-5, where=~equal.unsqueeze(1))


def check_trl_advantages(case) -> None:
    case.allow_params("num_generations", "eps")
    rewards = case.inputs["rewards"]
    group = torch.arange(rewards.numel()) // case.params["num_generations"]
    for key in list(case.outputs):
        scale = key.removeprefix("adv_")
        found = group_advantages(rewards, group, scale=scale, eps=case.params["eps"])
        # TRL forms Bessel's factor n / (n - 1) in float32; ours is exact and compared with the formula itself.
        case.close(key, found, **({"rtol": 1e-9} if scale == "none" else {"rtol": 1e-7, "atol": 1e-12}))
        rows = rewards.view(-1, case.params["num_generations"])
        spread = {"group": rows.std(1, keepdim=True), "batch": rewards.std()}.get(scale)
        exact = rows - rows.mean(1, keepdim=True)
        exact = exact if spread is None else exact / (spread + case.params["eps"])
        case.near(found, exact.flatten(), rtol=1e-12, atol=1e-12)


TRL_AGGREGATION = {
    "dapo": "token-mean",
    "cispo": "token-mean",
    "bnpo": "token-mean",
    "grpo": "batch-mean-token-mean",
    "sapo": "batch-mean-token-mean",
    "luspo": "batch-mean-token-sum",
    "dr_grpo": "batch-mean-token-sum-norm",
}
TRL_OPTIONS = {
    "loss_type",
    "beta",
    "epsilon_low",
    "epsilon_high",
    "importance_sampling_level",
    "delta",
    "top_entropy_quantile",
    "entropy_coef",
    "max_completion_length",
    "num_items_in_batch",
    "gradient_accumulation",
    "steps_per_generation",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
}


def check_trl(case) -> None:
    case.allow_params("defaults", "variants")
    for variant, changes in case.params["variants"].items():
        options = {**case.params["defaults"], **changes}
        unknown = set(options) - TRL_OPTIONS
        assert not unknown, f"{case.name}/{variant}: options {sorted(unknown)} are not known to this test"
        if options["epsilon_high"] is None:
            options["epsilon_high"] = options["epsilon_low"]
        result = differentiate(trl_loss, from_case_trl(case, options), options=options)
        case.close(f"loss.{variant}", result.out.loss)
        case.close(f"grad.{variant}", result.grad)
        if f"clip_region.{variant}" in case.outputs:
            case.close(f"clip_region.{variant}", result.out.metrics["clip_region"])


def from_case_trl(case, options: dict[str, Any]):
    counts = {}
    if options["loss_type"] in ("dapo", "cispo"):
        given = options["num_items_in_batch"]
        total = case.inputs["completion_mask"].sum() if given == "mask.sum()" else given
        # TRL counts the items of a whole generation batch; one optimizer step sees this share of them.
        counts["num_tokens"] = total * options["gradient_accumulation"] / options["steps_per_generation"]
    return from_case(
        case,
        mask="completion_mask",
        entropy=case.inputs["entropies"],
        ref_log_probs=case.inputs["ref_log_prob"],
        **counts,
    )


def trl_loss(batch: TokenBatch, *, options: dict[str, Any]) -> LossOutput:
    """The same composition as a recipe's, with the factors that TRL's trainer applies around the loss."""
    kind = options["loss_type"]
    aggregation = Aggregation(
        TRL_AGGREGATION[kind], length=options["max_completion_length"] if kind == "dr_grpo" else None
    )
    kept = batch.mask
    if options["top_entropy_quantile"] < 1:
        kept = forking_mask(batch.entropy, batch.mask, ratio=options["top_entropy_quantile"], method="quantile")
    clip = {"clip_low": options["epsilon_low"], "clip_high": options["epsilon_high"]}
    unbounded = {"log_ratio_bound": None, "aggregation": aggregation}
    if kind == "cispo":
        out = cispo(batch, clip_low=1.0, clip_high=options["epsilon_high"] - 1, **unbounded)
    elif kind == "sapo":
        # TRL rounds the two temperatures to float32.
        pos, neg = torch.tensor([options["sapo_temperature_pos"], options["sapo_temperature_neg"]]).tolist()
        out = sapo(batch, tau_positive=pos, tau_negative=neg, **unbounded)
    elif options["importance_sampling_level"] == "sequence":
        out = gspo(batch, form="sequence", ratio_cap=options["delta"], **clip, **unbounded)
    else:
        out = ppo(batch, dual_clip=None, ratio_cap=options["delta"], **clip, **unbounded)
    loss = aggregate_loss(batch, out.per_token * kept, aggregation).loss
    if options["beta"] != 0:
        loss = loss + kl_regularizer(batch, coef=options["beta"], clamp=False, aggregation=aggregation).loss
    if kind not in ("dapo", "cispo"):
        loss = loss / options["gradient_accumulation"]
    if options["entropy_coef"] != 0:
        on_kept = batch.replace(mask=kept, num_tokens=None)
        bonus = entropy_bonus(on_kept, coef=options["entropy_coef"]).loss
        loss = loss + bonus / options["gradient_accumulation"]
    return LossOutput(loss, out.per_token, out.metrics)


def check_entropy(case) -> None:
    case.allow_params()
    logits = case.inputs["logits"].clone().requires_grad_()
    labels = case.inputs["index"]
    stats = token_stats(logits, labels)
    shifted = {"rtol": 1e-9, "atol": 1e-8}  # one row carries an offset of 1e4, which costs the others digits
    case.close("entropy_verl", stats.entropy, **shifted)
    case.close("entropy_trl", stats.entropy, rtol=1e-9, atol=1e-9)
    case.close("logp_trl", stats.log_probs, rtol=1e-9, atol=1e-9)
    case.close("grad_logits_of_sum", torch.autograd.grad(stats.entropy.sum(), logits)[0], **shifted)
    case.near(categorical.entropy(case.inputs["logits"]), stats.entropy, rtol=0, atol=1e-10)


CHECKS = {
    r"verl_\d+(_emptyrow)?": check_verl,
    r"verl_vanilla_isw\w*": check_verl_weights,
    r"verl_vanilla_\w+": check_verl_single,
    r"verl_kl": check_verl_kl,
    r"verl_grpo_adv_std[01]": check_verl_advantages,
    r"trl_grpo_adv": check_trl_advantages,
    r"trl_\d+": check_trl,
    r"entropy_from_logits": check_entropy,
}
