"""SPEAR's schedules, recalibration, group filter and losses against the authors' functions."""

from __future__ import annotations

import functools

import torch
from helpers import OLD_VERL_MODES, close_loss, dispatch
from torch import Tensor

from infotorch.losses import (
    ReplayBuffer,
    TokenBatch,
    clip_cov,
    group_advantages,
    informative_groups,
    ppo,
    recalibrated_advantages,
    replay_count,
    replay_weight,
    self_imitation,
    token_covariance,
    tool_value,
    tool_weight,
)
from infotorch.losses._groups import Groups

SLUG = "spear"
EXACT = {"rtol": 1e-9, "atol": 1e-10}
# The released masked means carry 1e-8 in their denominators, the fraction of silenced tokens too.
OFFICIAL = {"rtol": 2e-8, "atol": 1e-8}


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_schedules(case) -> None:
    case.allow_params("T_replay", "T_tool", "replay_coef")
    p, step = case.params, case.inputs["step"].double()
    case.close("replay_weight", replay_weight(step, coef=p["replay_coef"], warmup=p["T_replay"]), **EXACT)
    case.close("tool_weight", tool_weight(step, decay=p["T_tool"]), **EXACT)


def check_tool_reward(case) -> None:
    case.allow_params("cap", "per_turn")
    case.close("reward", tool_value(case.inputs["n_tool_turns"].double(), **case.params), **EXACT)


def check_count(case) -> None:
    case.allow_params()
    counts = [replay_count(n, max(1, n)) for n in case.inputs["n"].tolist()]
    case.close("take", torch.tensor(counts), **EXACT)


def stored(case) -> ReplayBuffer:
    """Our buffer after the case's rollout batches, one step each, with every row's number as its payload."""
    p = case.params
    rewards, step, group, mask = (case.inputs[name] for name in ("rewards", "step", "group", "mask"))
    buffer = ReplayBuffer(size=1, tolerate=len(step), recalibrate="median-std" if p["norm_by_std"] else "median")
    for k in step.unique().tolist():
        rows = (step == k).nonzero().squeeze(1)
        assert len(group[rows].unique()) == p["groups_per_step"]
        assert len(rows) == p["groups_per_step"] * p["group_size"]
        scale = "group" if p["norm_by_std"] else "none"
        batch = TokenBatch(
            log_probs=torch.zeros(len(rows), mask.shape[1], dtype=torch.float64),
            mask=mask[rows].bool(),
            rewards=rewards[rows],
            group=group[rows],
            advantages=group_advantages(rewards[rows], group[rows], scale=scale, eps=p["eps"]),
        )
        buffer.store(batch, {"row": rows.unsqueeze(1)}, k)
    return buffer


def check_recalibration(case) -> None:
    case.allow_params("eps", "group_size", "groups_per_step", "norm_by_std")
    p, mask = case.params, case.inputs["mask"].bool()
    rewards, group = case.inputs["rewards"], case.inputs["group"]
    scale = "group" if p["norm_by_std"] else "none"
    on_policy = group_advantages(rewards, group, scale=scale, eps=p["eps"]).unsqueeze(1) * mask
    # Theirs adds eps to the deviation of a group of one in single precision.
    tolerance = OFFICIAL if p["group_size"] > 1 else {"rtol": 1e-7, "atol": 1e-8}
    case.close("adv_on_policy", on_policy, **tolerance)
    buffer, last = stored(case), int(case.inputs["step"].max())
    means, stds = buffer.baseline(last)
    assert len(means) == len(group.unique())
    case.close("p50_mean", means.quantile(0.5), **EXACT)
    case.close("p50_std", stds.quantile(0.5), **EXACT)
    judged = recalibrated_advantages(rewards, means, stds if p["norm_by_std"] else None, eps=p["eps"])
    case.close("adv_recalibrated", judged.unsqueeze(1) * mask, **EXACT)
    # The rows that our buffer would repeat: stored for a positive advantage, kept for a positive one when judged again.
    keep = case.out("keep").bool()
    now = recalibrated_advantages(buffer.rewards(last), means)
    repeated = {int(row.payload["row"]) for row, value in zip(buffer.rows, now, strict=True) if value > 0}
    # A row without a valid token teaches nothing, whatever its reward.
    assert repeated == {i for i in keep.nonzero().flatten().tolist() if mask[i].any()}


def check_group_filter(case) -> None:
    case.allow_params("ratio")
    rewards, size = case.inputs["rewards"], int(case.inputs["group_size"])
    group = torch.arange(len(rewards)) // size
    groups = Groups(group)
    std = groups.std(rewards)
    case.close("group_std", std[groups.first()], **EXACT)
    kept = informative_groups(rewards, group, ratio=case.params["ratio"])
    if case.outputs["n_keep"] == 0:  # Deviation: ours keeps one group at least.
        assert len(group[kept].unique()) == 1
        case.seen.update(("n_keep", "min_kept_std"))
        return
    case.close("n_keep", torch.tensor(len(group[kept].unique())), **EXACT)
    case.close("min_kept_std", std[kept].min(), **EXACT)


def make_batch(case):
    def make(leaf: list[Tensor]) -> TokenBatch:
        leaf.append(case.inputs["log_prob"].clone().requires_grad_())
        return TokenBatch(
            log_probs=leaf[0],
            old_log_probs=case.inputs["old_log_prob"],
            advantages=case.inputs["advantages"],
            mask=case.inputs["mask"].bool(),
        )

    return make


def check_clip_cov(case) -> None:
    case.allow_params("agg", "clip_high", "clip_low", "lb", "ratio", "ub")
    p, mask = case.params, case.inputs["mask"].bool()
    options = {name: p[name] for name in ("clip_low", "clip_high", "ratio")}
    options |= {"lower": p["lb"], "upper": p["ub"], "aggregation": OLD_VERL_MODES[p["agg"]]}
    # Clip-Cov is the loss of this step, and with the full weight that of the repeated rows.
    for function, further in ((clip_cov, {}), (self_imitation, {"warmup": 0})):
        loss = functools.partial(function, **options, **further)
        close_loss(case, loss, make_batch(case), **OFFICIAL)
        name = "selected_fraction" if function is clip_cov else "replay_silenced"
        case.close("clipfrac", loss(make_batch(case)([])).metrics[name], rtol=1e-7, atol=1e-7)
    batch = make_batch(case)([])
    expected = case.out("cov")
    torch.testing.assert_close(token_covariance(batch)[mask], expected[mask], **OFFICIAL)
    every = clip_cov(batch, **{**options, "ratio": 1.0})
    free = clip_cov(batch, **{**options, "lower": float("inf"), "upper": float("inf")})
    silenced = (every.per_token == 0) & (free.per_token != 0)
    candidates = case.out("candidates").bool()
    assert torch.equal(silenced, candidates & (free.per_token != 0))


def check_vanilla(case) -> None:
    case.allow_params("agg", "clip_c", "clip_high", "clip_low")
    p = case.params
    clip = {"clip_low": p["clip_low"], "clip_high": p["clip_high"], "aggregation": OLD_VERL_MODES[p["agg"]]}
    close_loss(case, functools.partial(ppo, dual_clip=p["clip_c"], **clip), make_batch(case), **OFFICIAL)
    if p["clip_c"] == 10.0:  # the dual clip that self_imitation has without Clip-Cov
        again = functools.partial(self_imitation, covariance_clip=False, warmup=0, **clip)
        close_loss(case, again, make_batch(case), **OFFICIAL)


CHECKS = {
    r"schedules": check_schedules,
    r"tool_reward": check_tool_reward,
    r"pow2": check_count,
    r"recalibrate_\d+_norm[01]": check_recalibration,
    r"group_filter_\d+": check_group_filter,
    r"clipcov_all_\d+_[a-z-]+": check_clip_cov,
    r"vanilla_\d+_[a-z-]+": check_vanilla,
}
