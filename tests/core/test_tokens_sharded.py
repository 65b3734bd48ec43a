"""A vocabulary split over two processes gives what one process gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from infotorch.core import VocabShard, token_stats, token_stats_from_hidden

EXTRAS = ("varentropy", "collision", "entropy_covariance")
NAMES = ("log_probs", "entropy", "log_normalizer", *EXTRAS)
SPLIT = (4, 7)  # unequal parts of a vocabulary of 11


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    logits = 2 * normal(2, 3, 11)
    logits[0, 0, :4] = -torch.inf  # nothing possible in the first part
    logits[0, 1, 5] = -torch.inf
    logits[1, 2] += 1e4
    return {
        "logits": logits,
        "hidden": normal(2, 3, 5),
        "weight": normal(11, 5),
        "bias": normal(11),
        "labels": torch.tensor([[10, 0, 3], [4, -100, 7]]),
        "mask": torch.tensor([[True, True, True], [True, False, True]]),
        "temperature": normal(2, 3).exp(),
        "upstream": normal(len(NAMES), 2, 3),
    }


def compute(part: slice, shard: VocabShard | None) -> dict[str, Any]:
    data = inputs()
    common: dict[str, Any] = {
        "temperature": data["temperature"],
        "mask": data["mask"],
        "extras": EXTRAS,
        "shard": shard,
    }
    logits = data["logits"][..., part].clone().requires_grad_()
    hidden = data["hidden"].clone().requires_grad_()
    weight = data["weight"][part].clone().requires_grad_()
    bias = data["bias"][part].clone().requires_grad_()
    result: dict[str, Any] = {}
    for path, leaves in (("logits", (logits,)), ("hidden", (hidden, weight, bias))):
        if path == "logits":
            stats = token_stats(logits, data["labels"], **common)
        else:
            stats = token_stats_from_hidden(hidden, weight, data["labels"], bias=bias, **common)
        values = torch.stack([getattr(stats, name) for name in NAMES])
        result[path] = values.detach()
        result[f"{path} grads"] = torch.autograd.grad(values, leaves, data["upstream"])
    return result


def in_one_process_of_two() -> dict[str, Any]:
    rank = torch.distributed.get_rank()
    start = sum(SPLIT[:rank])
    result = compute(slice(start, start + SPLIT[rank]), VocabShard(start))
    # Without labels, in half precision, and a frozen weight
    x = inputs()["logits"][..., start : start + SPLIT[rank]].to(torch.bfloat16)
    result["bfloat16"] = token_stats(x, shard=VocabShard(start)).entropy
    return result


@pytest.fixture(scope="module")
def ranks(run_distributed: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return run_distributed(in_one_process_of_two, 2)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return compute(slice(None), None)


@pytest.mark.parametrize("path", ["logits", "hidden"])
def test_values(ranks, whole, path):
    for r in ranks:
        torch.testing.assert_close(r[path], whole[path], rtol=1e-10, atol=1e-11)
    assert whole[path][:, 0, 0].abs().min() > 0


def test_logits_gradient_is_each_part_of_the_whole(ranks, whole):
    parts = torch.cat([r["logits grads"][0] for r in ranks], -1)
    torch.testing.assert_close(parts, whole["logits grads"][0], rtol=1e-9, atol=1e-11)


def test_hidden_gradients(ranks, whole):
    hidden, weight, bias = whole["hidden grads"]
    for r in ranks:  # the hidden states' gradient is complete on every process
        torch.testing.assert_close(r["hidden grads"][0], hidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([r["hidden grads"][1] for r in ranks]), weight)
    torch.testing.assert_close(torch.cat([r["hidden grads"][2] for r in ranks]), bias)


def test_half_precision_without_labels(ranks):
    want = token_stats(inputs()["logits"].to(torch.bfloat16).double()).entropy
    for r in ranks:
        assert r["bfloat16"].dtype == torch.float32
        torch.testing.assert_close(r["bfloat16"].double(), want, rtol=1e-6, atol=1e-6)


def test_a_shard_of_everything_needs_no_group():
    alone = compute(slice(None), VocabShard(0))
    reference = compute(slice(None), None)
    for path in ("logits", "hidden"):
        torch.testing.assert_close(alone[path], reference[path])
        torch.testing.assert_close(alone[f"{path} grads"], reference[f"{path} grads"])


def test_nucleus_needs_the_whole_vocabulary():
    with pytest.raises(ValueError, match="extras: 'top_p_entropy' needs the whole vocabulary in one process"):
        token_stats(torch.zeros(2, 3), extras=["top_p_entropy"], shard=VocabShard(0))
