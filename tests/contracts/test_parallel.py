"""Two gloo processes, each with half of the groups, equal one process with all of them."""

from __future__ import annotations

import pytest
import torch
from batches import GROUP_SIZE, fields, make
from torch import Tensor

from infotorch.core import distributed
from infotorch.losses import build, registry

LOSSES = registry.names("policy") + registry.names("regularizer")
ADVANTAGES = registry.names("advantage") + registry.names("reward")
LEAVES = ("log_probs", "entropy", "top_p_entropy")
GROUPS = 4


def options_of(name: str) -> dict:
    """Test options, with every batch-wide statistic global."""
    info = registry.info(name)
    extra = {"scope": "global"} if "scope" in info.options else {}
    return {"name": name, **info.example, **extra}


def counts(values: dict[str, Tensor]) -> dict:
    mask = values["mask"]
    return {"num_tokens": mask.sum().double(), "num_sequences": mask.any(1).sum().double()}


def loss_and_gradients(name: str, values: dict[str, Tensor], **more) -> dict[str, Tensor]:
    leaves = {k: values[k].clone().requires_grad_() for k in LEAVES}
    part = build(options_of(name))
    part.auxiliary(make(values, **more))
    part.start_rollout()
    part.observe(make(values, **more))
    out = part(make({**values, **leaves}, **more))
    grads = torch.autograd.grad(out.loss, list(leaves.values()), allow_unused=True)
    part.after_step()
    found = {"loss": out.loss.detach()}
    for (key, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[key] = torch.zeros_like(leaf) if grad is None else grad
    return {**found, **{f"buffer.{k}": v for k, v in part.state_dict().items()}}


def on_rank() -> dict[str, dict[str, Tensor]]:
    """Everything that the tests below look at, from one start of the processes."""
    values = fields(groups=GROUPS)
    # Ranks of different size: three groups here, one there.
    rows = slice(0, 3 * GROUP_SIZE) if distributed.rank() == 0 else slice(3 * GROUP_SIZE, None)
    own = {k: v[rows] for k, v in values.items()}
    world = distributed.world_size()
    results = {name: loss_and_gradients(name, own, **counts(values), world_size=world) for name in LOSSES}
    for name in ADVANTAGES:
        results[name] = {"value": build(options_of(name))(make(own))}
    batch_scale = build({"name": "grpo", "scale": "batch", "across_ranks": True})
    results["grpo/batch"] = {"value": batch_scale(make(own))}
    return results


@pytest.fixture(scope="module")
def ranks(run_distributed):
    return run_distributed(on_rank, 2)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name: str, ranks) -> None:
    values = fields(groups=GROUPS)
    whole = loss_and_gradients(name, values, **counts(values))
    # Data parallelism takes the mean over ranks.
    torch.testing.assert_close((ranks[0][name]["loss"] + ranks[1][name]["loss"]) / 2, whole["loss"])
    for key in LEAVES:
        found = torch.cat([ranks[0][name][key], ranks[1][name][key]]) / 2
        torch.testing.assert_close(found, whole[key])
    for key in whole:
        if key.startswith("buffer."):
            torch.testing.assert_close(ranks[0][name][key], whole[key], equal_nan=True)
            torch.testing.assert_close(ranks[1][name][key], whole[key], equal_nan=True)


@pytest.mark.parametrize("name", [*ADVANTAGES, "grpo/batch"])
def test_advantages(name: str, ranks) -> None:
    values = fields(groups=GROUPS)
    spec = {"name": "grpo", "scale": "batch"} if name == "grpo/batch" else options_of(name)
    whole = build(spec)(make(values))
    torch.testing.assert_close(torch.cat([ranks[0][name]["value"], ranks[1][name]["value"]]), whole)


def draws() -> dict[str, Tensor]:
    """Ranks whose generators differ must still agree on one random choice."""
    values = fields(groups=GROUPS)
    half = slice(0, 2 * GROUP_SIZE) if distributed.rank() == 0 else slice(2 * GROUP_SIZE, None)
    own = make({k: v[half] for k, v in values.items()})
    torch.manual_seed(distributed.rank())
    clip = registry.info("clip_cov").function(own, ratio=0.2, lower=0.05, scope="global")
    fork = registry.info("forking_tokens").function(own, select="random", scope="global")
    return {"clip_cov": clip.per_token, "forking_tokens": fork.per_token}


def test_random_choices_equal_rank_zero_drawing_for_all(run_distributed) -> None:
    found = run_distributed(draws, 2)
    values = make(fields(groups=GROUPS))
    torch.manual_seed(0)
    clip = registry.info("clip_cov").function(values, ratio=0.2, lower=0.05)
    fork = registry.info("forking_tokens").function(values, select="random")
    for name, whole in (("clip_cov", clip), ("forking_tokens", fork)):
        torch.testing.assert_close(torch.cat([found[0][name], found[1][name]]), whole.per_token)
