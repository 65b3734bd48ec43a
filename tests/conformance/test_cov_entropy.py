"""Clip-Cov and KL-Cov against the authors' functions; the identity and the law against transcriptions."""

from __future__ import annotations

import torch
from helpers import VERL_MODES, differentiate, dispatch, from_case

from infotorch.core import categorical
from infotorch.losses import (
    LossOutput,
    TokenBatch,
    clip_cov,
    entropy_covariance,
    fit_entropy_law,
    kl_cov,
    predicted_entropy_change,
    token_covariance,
)

SLUG = "cov-entropy"
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}
# The released code adds 1e-8 to the counts that it divides by (Clip-Cov's covariance, all metrics); ours divides by the
# count, so the two differ by up to one part in 1e8.
COUNT_PLUS_1E8 = {"rtol": 2e-8, "atol": 1e-8}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def covariance(case) -> torch.Tensor:
    return token_covariance(from_case(case)([]))


def truncated(case, ratio: float, count: int | None) -> float:
    """A ratio that selects ``count`` tokens where rounding leaves the given one just short of one token more.

    Stated deviation: ours counts such a product as the integer that it should be, the code the one below.
    """
    tokens = int(case.inputs["response_mask"].sum())
    short = count is not None and 0 < count + 1 - tokens * ratio < 1e-9
    return (count + 0.5) / tokens if short else ratio


def check_kl_cov(case) -> None:
    case.allow_params("k_fraction", "k_percent_official", "ppo_kl_coef", "loss_agg_mode", "num_selected")
    p = case.params
    options = {
        "ratio": truncated(case, p["k_fraction"], p.get("num_selected")),
        "coef": p["ppo_kl_coef"],
        "log_ratio_bound": None,
    }
    aggregation = VERL_MODES[p["loss_agg_mode"]]
    result = differentiate(kl_cov, from_case(case), aggregation=aggregation, **options)
    loss, grad = result.out.loss, result.grad
    if "selected" in case.outputs:
        correction = differentiate(swap_ties, from_case(case), case=case, aggregation=aggregation)
        loss, grad = loss + correction.out.loss, grad + correction.grad
    row_counts = TOLERANCE if p["loss_agg_mode"] == "token-mean" else COUNT_PLUS_1E8
    case.close("loss", loss, **row_counts)
    case.close("grad_log_prob", grad, **row_counts)
    if "ppo_kl_abs" in case.outputs:
        case.close("ppo_kl_abs", result.out.metrics["abs_kl"], **COUNT_PLUS_1E8)
    if "cov" in case.outputs:
        case.close("cov", covariance(case), **TOLERANCE)
    if "selected" in case.outputs:
        expected, ours, cov = case.out("selected").bool(), our_selection(case), covariance(case)
        assert int(ours.sum()) == p.get("num_selected", int(expected.sum())) == int(expected.sum())
        if expected.any():
            # Which of several tied tokens torch.topk takes is arbitrary, and rounding decides between near ties.
            boundary, slack = cov[expected].min(), 64 * torch.finfo(cov.dtype).eps * cov.abs().max().clamp(min=1)
            assert torch.equal(ours & (cov > boundary + slack), expected & (cov > boundary + slack))
            assert (cov[ours] >= boundary - slack).all()
            # Ours takes those of lowest index.
            tied = case.inputs["response_mask"].bool() & (cov == cov[ours].min())
            kept = (ours & tied).flatten().nonzero().squeeze(1)
            assert torch.equal(kept, tied.flatten().nonzero().squeeze(1)[: len(kept)])


def our_selection(case) -> torch.Tensor:
    """The tokens that KL-Cov brakes: those whose loss answers to the coefficient once every token has moved."""
    batch = from_case(case)([])
    moved = batch.replace(old_log_probs=batch.log_probs.detach() - 1.0)
    ratio = truncated(case, case.params["k_fraction"], case.params.get("num_selected"))
    losses = [kl_cov(moved, ratio=ratio, coef=c).per_token for c in (0.0, 1.0)]
    return losses[0] != losses[1]


def swap_ties(batch: TokenBatch, *, case, aggregation) -> LossOutput:
    """What the loss would gain if the tied tokens that the released code took were braked instead of ours."""
    swap = case.outputs["selected"].double() - our_selection(case).double()
    per_token = case.params["ppo_kl_coef"] * swap * batch.log_ratio.abs()
    return LossOutput(aggregation(per_token, batch.mask), per_token)


def check_clip_cov(case) -> None:
    case.allow_params(
        "clip_cov_ratio",
        "cliprange_low",
        "cliprange_high",
        "clip_cov_lb",
        "clip_cov_ub",
        "loss_agg_mode",
        "clip_num",
    )
    p = case.params
    options = {
        "ratio": truncated(case, p["clip_cov_ratio"], p.get("clip_num")),
        "clip_low": p["cliprange_low"],
        "clip_high": p["cliprange_high"],
        "lower": p["clip_cov_lb"],
        "upper": p["clip_cov_ub"],
        "log_ratio_bound": None,
    }
    priorities = torch.zeros(case.inputs["log_prob"].shape, dtype=torch.float64)
    if "candidates" in case.outputs:
        # The authors number the candidates row by row and take the first entries of a random permutation.
        candidates = case.out("candidates").bool()
        rank = torch.empty(int(candidates.sum()), dtype=torch.float64)
        perm = case.inputs["perm"]
        rank[perm] = torch.arange(len(perm), dtype=torch.float64)
        priorities[candidates] = rank
        every = clip_cov(from_case(case)([]), **{**options, "ratio": 1.0})
        live = clip_cov(from_case(case)([]), **{**options, "lower": float("inf"), "upper": float("inf")})
        dropped = (every.per_token == 0) & (live.per_token != 0)
        assert torch.equal(dropped, candidates & (live.per_token != 0))
    result = differentiate(
        clip_cov,
        from_case(case),
        priorities=priorities,
        aggregation=VERL_MODES[p["loss_agg_mode"]],
        **options,
    )
    case.close("loss", result.out.loss, **COUNT_PLUS_1E8)
    case.close("grad_log_prob", result.grad, **COUNT_PLUS_1E8)
    case.close("clipfrac", result.out.metrics["selected_fraction"], **COUNT_PLUS_1E8)
    if "ppo_kl" in case.outputs:
        case.close("ppo_kl", result.out.metrics["approx_kl"], **COUNT_PLUS_1E8)
    if "cov" in case.outputs:
        case.close("cov", covariance(case), **COUNT_PLUS_1E8)
    if "selected" in case.outputs:
        selected = case.out("selected").bool()
        assert not result.grad[selected].any()
        assert not result.out.per_token[selected].any()
        count = result.out.metrics["selected_fraction"] * case.inputs["response_mask"].sum()
        assert int(count.round()) == int(selected.sum())


def check_identity(case) -> None:
    case.allow_params("etas")
    logits, advantages = case.inputs["logits"], case.inputs["advantages"]
    p = logits.softmax(-1)
    kinds = {"npg": "natural", "pg": "vanilla"}
    steps = {"npg": advantages, "pg": p * (advantages - (p * advantages).sum(-1, keepdim=True))}
    before = categorical.entropy(logits)
    case.close("entropy", before, **TOLERANCE)
    for short, kind in kinds.items():
        covariance = entropy_covariance(logits, advantages, kind)
        case.close(f"cov_{short}", covariance, **TOLERANCE)
        case.close(f"dH_{short}_first_order_per_eta", -covariance, **TOLERANCE)
        for eta in case.params["etas"]:
            exact = categorical.entropy(logits + eta * steps[short]) - before
            case.close(f"dH_{short}_exact.{eta:g}", exact, rtol=1e-6, atol=1e-13)  # a difference of close numbers
            error = predicted_entropy_change(logits, advantages, eta, kind) - exact
            assert (error.abs() <= 20 * eta**2 * (1 + advantages.abs().amax(-1) ** 2)).all()


def check_law(case) -> None:
    case.allow_params("true_a", "true_b", "n_first")
    entropy, reward, n = case.inputs["entropy"], case.inputs["reward"], case.params["n_first"]
    law = fit_entropy_law(entropy, reward)
    early = fit_entropy_law(entropy, reward, first=n)
    found = {
        "a": law.a,
        "b": law.b,
        "ceiling": law.ceiling,
        f"a_first{n}": early.a,
        f"b_first{n}": early.b,
        "pred_rest": early.predict(entropy[n:]),
        "rmse_rest": early.forecast_rmse,
    }
    for key in list(case.outputs):
        case.close(key, torch.as_tensor(found[key], dtype=torch.float64), **TOLERANCE)


def test_equal_advantages_select_nothing() -> None:
    batch = TokenBatch(log_probs=torch.randn(2, 3), mask=torch.ones(2, 3, dtype=torch.bool), advantages=torch.ones(2))
    assert clip_cov(batch, ratio=1.0).metrics["selected_fraction"] == 0


CHECKS = {
    r"kl_cov_\w+": check_kl_cov,
    r"clip_cov_\w+": check_clip_cov,
    r"entropy_identity": check_identity,
    r"law_fit": check_law,
}
