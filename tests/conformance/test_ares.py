"""ARES: the authors' functions (counts, reward table, controller, KL loss) and the paper's formulas."""

from __future__ import annotations

import re

import torch
from helpers import dispatch

from infotorch.core.categorical import entropy as categorical_entropy
from infotorch.losses import (
    KLController,
    TokenBatch,
    ares_deviation,
    ares_kl,
    ares_score,
    ares_strength,
    high_entropy_windows,
    kl_estimate,
    top_k_entropy,
    trigger_counts,
    trigger_threshold,
    window_entropy,
    window_threshold,
)

SLUG = "ares"
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
FLOAT64 = {"rtol": 1e-9, "atol": 1e-10}


def test_case(case) -> None:
    dispatch(
        case,
        {
            r"hwe_\w+": check_windows,
            r"reward_code\w*": check_reward_code,
            r"reward_paper\w*": check_reward_paper,
            r"kl_controller\w*": check_controller,
            r"kl_loss\w*": check_kl_loss,
        },
    )


def check_windows(case) -> None:
    case.allow_params("window", "threshold", "percentile", "trigger_rule", "topk")
    p, window = case.params, case.params["window"]
    rule = re.fullmatch(r"top-1 token id % (\d+) == 0 counts as a crucial token", p["trigger_rule"])
    assert rule, p["trigger_rule"]
    top, ids = case.inputs["topk_logprobs"].double(), case.inputs["topk_ids"]
    assert top.shape[-1] == p["topk"]
    best = ids.gather(-1, top.argmax(-1, keepdim=True)).squeeze(-1)
    entropy = top_k_entropy(top)
    mask = torch.ones_like(best, dtype=torch.bool)
    case.close("entropy_tail", entropy, **FLOAT32)
    case.close("mean_entropy_tail", entropy.mean(1), **FLOAT32)
    valid, invalid, cost = trigger_counts(entropy, mask, best % int(rule[1]) == 0, p["threshold"], window)
    assert torch.equal(valid, case.out("n_valid"))
    assert torch.equal(invalid, case.out("n_invalid"))
    case.close("soft_cost", cost, **FLOAT32)
    quantile = p["percentile"] / 100
    found = trigger_threshold(top_k_entropy(top, tail=False), mask, window=window, quantile=quantile)
    case.close("window_p95_code", found, **FLOAT32)

    full = categorical_entropy(logits=case.inputs["full_logprobs"].double())
    case.close("paper_token_entropy", full, **FLOAT32)
    means, complete = window_entropy(full, mask, window)
    expected = case.outputs["paper_window_entropy"].shape
    case.close("paper_window_entropy", means[complete].view(expected), **FLOAT32)
    tau = window_threshold(full, mask, window=window, quantile=quantile)
    case.close("paper_tau_high", tau, **FLOAT32)
    high = high_entropy_windows(full, mask, tau, window)[complete].view(expected)
    assert torch.equal(high.long(), case.out("paper_hwe_mask"))


def check_reward_code(case) -> None:
    case.allow_params("difficulty_codes")
    assert case.params["difficulty_codes"] == {"0": "easy", "1": "medium", "2": "hard"}
    x = case.inputs
    term = ares_score(x["n_hwe"], x["difficulty"], x["accuracy"] > 0.5, x["target"], x["alpha"])
    case.close("entropy_score", term, **FLOAT64)
    case.close("overall", x["accuracy"] + term, **FLOAT64)


def check_reward_paper(case) -> None:
    case.allow_params("eps", "target_per_difficulty", "var")
    assert case.params["var"] == "population"
    counts, level, accuracy = (case.inputs[name] for name in ("n_hwe", "difficulty", "accuracy"))
    targets = torch.tensor(case.params["target_per_difficulty"], dtype=torch.float64)
    strength = ares_strength(counts, level, targets, eps=case.params["eps"], hard_sign_fix=False)
    delta, off = ares_deviation(counts, level, targets)
    case.close("lambda", strength, **FLOAT64)
    case.close("delta", delta, **FLOAT64)
    case.close("g", off, **FLOAT64)
    case.close("reward", torch.where(accuracy == 0, accuracy - strength[level] * off, accuracy), **FLOAT64)


def check_controller(case) -> None:
    case.allow_params("beta_init", "beta_max", "beta_min", "clip", "deadzone", "ema_decay", "interval", "lr", "targets")
    p = case.params
    controller = KLController(
        initial=p["beta_init"],
        target=p["targets"],
        lr=p["lr"],
        interval=p["interval"],
        decay=p["ema_decay"],
        clip=p["clip"],
        deadzone=p["deadzone"],
        low=p["beta_min"],
        high=p["beta_max"],
    )
    trace = []
    for level, kl in zip(case.inputs["difficulty"], case.inputs["seq_mean_kl"].double(), strict=True):
        rows = torch.zeros(3, dtype=torch.float64).index_add(0, level, torch.ones_like(kl))
        total = torch.zeros(3, dtype=torch.float64).index_add(0, level, kl)
        controller.update(total / rows.clamp(min=1), rows > 0)
        trace.append(controller.betas.clone())
    case.close("beta_trace", torch.stack(trace), **FLOAT32)
    # A difficulty that never came up has no mean.
    seen = (case.inputs["difficulty"].unsqueeze(-1) == torch.arange(3)).flatten(0, 1).any(0)
    assert torch.equal(controller.kl.isfinite(), seen)
    case.close("final_kl_ema", torch.where(seen, controller.kl, 0.0), where=seen, **FLOAT32)


def check_kl_loss(case) -> None:
    case.allow_params("agg", "betas", "penalty", "rho")
    p, x = case.params, case.inputs
    assert p["agg"] == "token"
    assert p["penalty"].startswith("low_var_kl (k3)")
    mask = x["mask"].bool()
    kl = kl_estimate(x["logp"], x["ref_logp"], "k3")
    case.close("kl_token", kl, **FLOAT32)
    for name, rho in (("code", 1.0), ("paper", p["rho"])):
        leaf = x["logp"].clone().requires_grad_()
        batch = TokenBatch(
            log_probs=leaf,
            ref_log_probs=x["ref_logp"],
            mask=mask,
            rewards=torch.zeros(len(mask)),
            group=torch.arange(len(mask)),
            entropy=torch.zeros_like(leaf),
            extras={"ares_difficulty": x["difficulty"], "ares_high_entropy": x["hwe_valid"].bool()},
        )
        out = ares_kl(batch, coef=1.0, betas=p["betas"], rho=rho)
        case.close(f"loss_{name}", out.loss, **FLOAT32)
        case.close(f"grad_{name}", torch.autograd.grad(out.loss, leaf)[0], **FLOAT32)
