"""Agentic AEPO: the preserved gradient in closed form, gates, the sign of scaled advantages, prefixes counted once."""

from __future__ import annotations

import pytest
import torch
from batches import fields, make

from infotorch.losses import TokenBatch, agentic_aepo, entropy_aware_advantages, entropy_zscore, own_tokens, ppo


def tokens(ratios, advantages, entropies=None) -> TokenBatch:
    ratio = torch.tensor([ratios], dtype=torch.float64)
    return TokenBatch(
        log_probs=ratio.log().requires_grad_(),
        old_log_probs=torch.zeros_like(ratio),
        advantages=torch.tensor([advantages], dtype=torch.float64),
        mask=torch.ones_like(ratio, dtype=torch.bool),
        entropy=torch.tensor([entropies or [1.0] * len(ratios)], dtype=torch.float64),
    )


def gradient(batch: TokenBatch, **options) -> list[float]:
    out = agentic_aepo(batch, aggregation="token-sum", **options)
    return torch.autograd.grad(out.loss, batch.log_probs)[0].squeeze(0).tolist()


@pytest.mark.parametrize("value", [-1e-7, 0.0, 0.1, 1 / 3, 0.7, 2.3])
def test_equal_entropies_do_not_deviate(value: float) -> None:
    """Rounding leaves something of their mean, which is no deviation to be divided by."""
    for n in range(1, 40):
        assert not entropy_zscore(torch.full((1, n), value), torch.ones(1, n, dtype=torch.bool)).any()


RATIOS = (0.5, 1.1, 1.5, 0.5, 1.1, 1.5, 9.0)
ADVANTAGES = (2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0)


def test_gradient_in_closed_form() -> None:
    """For A > 0: -A min(r, 1.2). For A < 0 PPO's: silent below 0.8 and above the dual clip."""
    expected = [-1.0, -2.2, -2.4, 0.0, 2.2, 3.0, 0.0]
    assert gradient(tokens(RATIOS, ADVANTAGES)) == pytest.approx(expected)
    silent = [-1.0, -2.2, 0.0, 0.0, 2.2, 3.0, 0.0]
    assert gradient(tokens(RATIOS, ADVANTAGES), preserve="none") == pytest.approx(silent)
    both = [-1.0, -2.2, -2.4, 1.6, 2.2, 3.0, 0.0]
    assert gradient(tokens(RATIOS, ADVANTAGES), preserve="both") == pytest.approx(both)


@pytest.mark.parametrize("preserve", ["above", "both"])
def test_the_value_is_ppos(preserve) -> None:
    batch = make(fields())
    found = agentic_aepo(batch, alpha=0.0, preserve=preserve)
    torch.testing.assert_close(found.per_token, ppo(batch).per_token)
    assert found.metrics["preserved_fraction"] > 0


def test_the_gate_opens_for_uncertain_tokens_only() -> None:
    batch = tokens([1.5, 1.5], [1.0, 1.0], [2.0, 1.0])
    assert gradient(batch, alpha=0.0, gate="positive_z") == pytest.approx([-1.2, 0.0])
    assert gradient(tokens([1.5, 1.5], [1.0, 1.0], [2.0, 1.0]), alpha=0.0) == pytest.approx([-1.2, -1.2])
    # Equal entropies: no token is more uncertain than the mean.
    assert gradient(tokens([1.5, 1.5], [1.0, 1.0]), gate="positive_z") == [0.0, 0.0]


def test_a_preserved_gradient_survives_the_bound_on_the_ratio() -> None:
    batch = tokens([1.0], [1.0])
    far = batch.replace(log_probs=torch.full((1, 1), 30.0, dtype=torch.float64, requires_grad=True))
    assert gradient(far) == pytest.approx([-1.2])


def test_standardized_entropies() -> None:
    values = fields()
    z = entropy_zscore(values["entropy"], values["mask"])
    kept = z[values["mask"]]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert kept.std().item() == pytest.approx(1.0)
    one = torch.zeros_like(values["mask"])
    one[0, 0] = True
    for mask in (one, torch.zeros_like(one)):
        assert not entropy_zscore(values["entropy"], mask).any()
    assert not entropy_zscore(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)).any()


def test_an_extreme_certainty_does_not_flip_the_sign() -> None:
    entropy = torch.cat([torch.zeros(1, 1), torch.ones(1, 99)], 1)
    z = entropy_zscore(entropy, torch.ones(1, 100, dtype=torch.bool))
    assert z[0, 0] < -5
    assert entropy_aware_advantages(torch.ones(1, 100), z)[0, 0] == 0
    assert entropy_aware_advantages(torch.ones(1, 100), z, clamp=False)[0, 0] < 0


def test_prefixes_of_branches_count_once() -> None:
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    assert own_tokens(mask, torch.tensor([0, 2])).tolist() == [[True] * 4, [False, False, True, True]]
    with pytest.raises(ValueError, match=r"branch_start: expected shape \(2,\), got \(3,\)"):
        own_tokens(mask, torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="branch_start: expected integers"):
        own_tokens(mask, torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preserve": "low"}, "preserve: expected one of above, none, both"),
        ({"gate": "low"}, "gate: expected one of all, positive_z"),
        ({"alpha": -0.1}, r"alpha: expected a number in \[0, inf\]"),
        ({"scope": "node"}, "scope: expected one of local, global"),
        ({"dual_clip": 0.5}, "dual_clip"),
    ],
)
def test_options_out_of_range(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        agentic_aepo(make(fields()), **options)
