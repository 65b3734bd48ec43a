"""The curriculum's teacher against the authors' and an exact solution, the losses against a transcription."""

from __future__ import annotations

import numpy as np
import torch

from infotorch.rl import actor_loss, critic_target, gamma_kl, squash, teacher_step

SLUG = "qarl"
# The authors' solver stops short of the boundary.
OFFICIAL = {"rtol": 0.0, "atol": 0.05}


def test_case(case) -> None:
    (check_teacher if "returns" in case.inputs else check_losses)(case)


def check_teacher(case) -> None:
    case.allow_params(
        "initial_conc",
        "target_conc",
        "rate",
        "max_kl",
        "performance_lower_bound",
        "conc_lower_bound",
        "target_kl_threshold",
        "seed",  # of the episodes, which the file holds
    )
    assert set(case.inputs) == {"temperatures", "returns"}
    options = {
        "target": case.params["target_conc"],
        "rate": case.params["rate"],
        "max_kl": case.params["max_kl"],
        "performance_bound": case.params["performance_lower_bound"],
        "min_shape": case.params["conc_lower_bound"],
        "target_kl": case.params["target_kl_threshold"],
    }
    official = case.out("conc")
    assert float(official[0]) == case.params["initial_conc"]
    episodes = list(zip(case.inputs["temperatures"], case.inputs["returns"], strict=True))
    steps = [teacher_step(*pair, float(k), **options) for pair, k in zip(episodes, official, strict=False)]
    shapes = torch.tensor([step.shape for step in steps], dtype=torch.float64)
    case.close("conc_exact_1d", shapes, rtol=1e-6, atol=0.0)
    case.close("perf_estimate", torch.tensor([step.performance for step in steps]), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(shapes, official[1:], **OFFICIAL)
    new, old = official[1:].numpy(), official[:-1].numpy()
    divergences = torch.as_tensor(np.stack((gamma_kl(new, old), gamma_kl(new, options["target"])), 1))
    case.close("kl_to_old_and_target", divergences, rtol=1e-6, atol=1e-6)


def check_losses(case) -> None:
    case.allow_params("gamma", "eps_log_prob", "log_std_min", "log_std_max")
    given, tight = case.inputs, {"rtol": 1e-10, "atol": 1e-12}
    known = {"log_prob", "log_prob_next", "q1", "q2", "qn1", "qn2", "protagonist_reward", "absorbing", "temperature"}
    assert set(given) == known | {"mu", "log_std", "noise"}
    loss = actor_loss(given["log_prob"], given["q1"], given["q2"], given["temperature"])
    case.close("adv_actor_loss", loss, **tight)
    target = critic_target(
        -given["protagonist_reward"],
        given["absorbing"],
        given["qn1"],
        given["qn2"],
        given["log_prob_next"],
        given["temperature"],
        case.params["gamma"],
    )
    case.close("adv_critic_target", target, **tight)
    out = squash(
        given["mu"],
        given["log_std"],
        given["noise"],
        eps=case.params["eps_log_prob"],
        log_std_min=case.params["log_std_min"],
        log_std_max=case.params["log_std_max"],
    )
    case.close("squashed_action", out.action, **tight)
    case.close("squashed_log_prob", out.log_prob, **tight)
