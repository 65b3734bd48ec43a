"""What is special to STEER: the estimate, the weights, and where its inputs come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import fields, make
from scipy.stats import spearmanr
from torch import Tensor

from infotorch.core import categorical, distributed, token_stats
from infotorch.losses import TokenBatch, build, entropy_change, ppo, recipe, steer, steer_weights
from infotorch.rlvr import run_modular_sum


def states(n: int, vocab: int, sharpness: float, seed: int) -> tuple[TokenBatch, Tensor]:
    """On-policy tokens of random softmax states, one a row, and the logits."""
    g = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, vocab, generator=g, dtype=torch.float64)
    token = torch.multinomial(logits.softmax(-1), 1, generator=g).squeeze(1)
    stats = token_stats(logits, token, extras=["entropy_covariance"])
    batch = TokenBatch(
        log_probs=stats.log_probs.unsqueeze(1),
        mask=torch.ones(n, 1, dtype=torch.bool),
        advantages=torch.randn(n, generator=g, dtype=torch.float64),
        entropy=stats.entropy.unsqueeze(1),
        tokens=token.unsqueeze(1),
        extras={"entropy_covariance": stats.entropy_covariance.unsqueeze(1)},
    )
    return batch, logits


def test_exact_estimate_is_the_derivative_of_entropy_along_the_policy_gradient() -> None:
    batch, logits = states(20, 9, 2.0, seed=0)
    one_hot = torch.nn.functional.one_hot(batch.tokens[:, 0], 9)
    step = batch.advantages * (one_hot - logits.softmax(-1))  # on-policy: the ratio is 1
    _, slope = torch.autograd.functional.jvp(categorical.entropy, logits, step)
    torch.testing.assert_close(-entropy_change(batch, metric="exact").squeeze(1), slope)


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
def test_the_proxies_rank_tokens_as_the_exact_change_does(sharpness: float) -> None:
    batch, _ = states(4000, 50, sharpness, seed=1)
    exact = entropy_change(batch, metric="exact").flatten()
    for metric in ("official", "sampled_logit"):
        assert spearmanr(entropy_change(batch, metric=metric).flatten(), exact).statistic > 0.7


def test_the_sampling_policys_entropy_is_used_by_the_proxies_and_the_current_one_by_the_exact_metric() -> None:
    values = fields()
    for metric, other in (("official", "entropy"), ("sampled_logit", "entropy"), ("exact", "old_entropy")):
        changed = {**values, other: 2 * values[other]}
        assert torch.equal(entropy_change(make(values), metric=metric), entropy_change(make(changed), metric=metric))
    only = {k: v for k, v in values.items() if k != "entropy"}
    assert torch.equal(steer(make(only)).loss, steer(make(values)).loss)


def test_probabilities_at_the_ends() -> None:
    log_probs = torch.tensor([[0.0, -200.0, -1e-9]])
    batch = TokenBatch(
        log_probs=log_probs, mask=torch.ones(1, 3, dtype=torch.bool), advantages=torch.ones(1), entropy=torch.ones(1, 3)
    )
    change = entropy_change(batch)
    assert change[0, 0] == 0
    # At the bound of 1e-8 for both probabilities: log 1e-8 + 1.
    assert change[0, 1] == pytest.approx(-17.42, abs=0.01)
    assert change[0, 2] == pytest.approx(1e-9, rel=1e-3)  # 1 - pi without cancellation
    huge = entropy_change(batch.replace(advantages=torch.full((1, 3), 3e38), old_log_probs=torch.full((1, 3), -50.0)))
    assert huge.isfinite().all()


WEIGHTS = [
    ({"mapping": "exponential", "weight_min": 0.5}, [1.0, 0.5**0.25, 0.5]),
    ({"mapping": "exponential", "weight_min": 0.5, "floor": 16.0}, [1.0, 0.5**0.125, 0.5**0.5]),
    ({"mapping": "linear", "weight_min": 0.5, "weight_max": 1.5}, [1.5, 1.25, 0.5]),
    ({"mapping": "exponential", "weight_min": 0.5, "quantile": 0.5}, [1.0, 0.5, 0.5]),
    ({"mapping": "linear", "weight_min": 0.5, "weight_max": 1.5, "quantile": 0.5}, [1.5, 0.5, 0.5]),
]


@pytest.mark.parametrize(("options", "expected"), WEIGHTS)
def test_weights_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    mask = torch.tensor([[True, True, True, False]])
    found = steer_weights(torch.tensor([[0.0, -2.0, 8.0, 99.0]]), mask, **options)
    torch.testing.assert_close(found, torch.tensor([[*expected, 0.0]]))


def test_equal_changes() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    zero, some = torch.zeros(2, 2), torch.full((2, 2), -3.0)
    assert (steer_weights(zero, mask) == 1).all()
    assert (steer_weights(zero, mask, floor=0.0) == 1).all()
    torch.testing.assert_close(steer_weights(some, mask), torch.full((2, 2), 0.7))
    for change in (zero, some):
        linear = steer_weights(change, mask, mapping="linear", weight_min=0.8, weight_max=1.2)
        torch.testing.assert_close(linear, torch.ones(2, 2))


def test_silenced_tokens_need_not_set_the_scale() -> None:
    ratio = torch.tensor([[4.0, 1.0, 0.2, 12.0]])  # clipped, kept, clipped, beyond the dual clip
    batch = TokenBatch(
        log_probs=ratio.log() - 3,
        old_log_probs=torch.full((1, 4), -3.0),
        mask=torch.ones(1, 4, dtype=torch.bool),
        advantages=torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
        entropy=torch.tensor([[1.0, 2.5, 1.0, 1.0]]),
    )
    plain = ppo(batch, clip_high=0.28, dual_clip=10.0).per_token
    counted = steer(batch).per_token / plain
    left_out = steer(batch, skip_clipped=True).per_token / plain
    assert counted[0, 1] > 0.75
    assert left_out[0, 1] == pytest.approx(0.7)
    assert (left_out[0, [0, 2, 3]] == 1).all()


def test_the_denominator_is_the_number_of_tokens() -> None:
    batch = make(fields())
    out = steer(batch)
    torch.testing.assert_close(out.loss, out.per_token.sum() / batch.mask.sum())


def test_gradient_is_the_weighted_gradient_of_the_surrogate() -> None:
    values = fields()
    leaf = values["log_probs"].clone().requires_grad_()
    batch = make(values, log_probs=leaf)
    options = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}
    (plain,) = torch.autograd.grad(ppo(batch, **options).loss, leaf, retain_graph=True)
    (grad,) = torch.autograd.grad(steer(batch, weight_min=0.3).loss, leaf)
    weights = steer_weights(entropy_change(batch), batch.mask, weight_min=0.3)
    torch.testing.assert_close(grad, weights * plain)


def quantile_weights() -> Tensor:
    values = fields(groups=4)
    rows = slice(0, 12) if distributed.rank() == 0 else slice(12, None)
    batch = make({k: v[rows] for k, v in values.items()})
    return steer_weights(entropy_change(batch), batch.mask, quantile=0.8, scope="global")


def test_a_global_quantile_equals_one_process(run_distributed) -> None:
    batch = make(fields(groups=4))
    whole = steer_weights(entropy_change(batch), batch.mask, quantile=0.8)
    torch.testing.assert_close(torch.cat(run_distributed(quantile_weights, 2)), whole)


def test_a_recipe_asks_trainers_for_what_the_exact_metric_reads() -> None:
    exact = recipe("steer", metric="exact")
    assert exact.token_options == {"extras": ("entropy_covariance",)}
    assert recipe("steer").token_options == {}
    history = run_modular_sum(exact, steps=2, final_samples=8)
    assert 0.7 < history.rows[1]["loss/weight"] < 1
    with pytest.raises(ValueError, match=r"steer needs TokenBatch.extras.entropy_covariance, which is missing"):
        build({"name": "steer", "metric": "exact"})(make(fields(), extras={}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "exakt"}, r"metric: expected one of official, sampled_logit, exact; .*did you mean 'exact'"),
        ({"mapping": "exp"}, "mapping: expected one of exponential, linear"),
        ({"weight_min": 0.0}, r"weight_min: expected a number in \(0, 1\], got 0.0"),
        ({"weight_min": 1.1}, r"weight_min: expected a number in \(0, 1\], got 1.1"),
        ({"weight_max": 0.5}, r"weight_max: expected a number in \[0.7, inf\], got 0.5"),
        ({"floor": -1.0}, r"floor: expected a number in \[0, inf\], got -1.0"),
        ({"quantile": 0.0}, r"quantile: expected a number in \(0, 1\], got 0.0"),
        ({"scope": "world"}, "scope: expected one of local, global"),
        ({"clip_low": -0.1}, "clip_low: expected a number in"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steer(make(fields()), **options)
