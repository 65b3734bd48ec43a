"""What is special to the clipped family, the KL estimators, advantages and the entropy bonus."""

from __future__ import annotations

import pytest
import torch

from infotorch.core import categorical
from infotorch.losses import (
    AdaptiveEntropyBonus,
    TokenBatch,
    cispo,
    group_advantages,
    gspo,
    kl_estimate,
    overlong_reward,
    ppo,
    sapo,
    uniform_groups,
)


def one_token(log_ratio: float, advantage: float) -> TokenBatch:
    log_probs = torch.full((1, 1), log_ratio - 1, dtype=torch.float64, requires_grad=True)
    return TokenBatch(
        log_probs=log_probs,
        old_log_probs=torch.full((1, 1), -1.0, dtype=torch.float64),
        advantages=torch.full((1,), advantage, dtype=torch.float64),
        mask=torch.ones(1, 1, dtype=torch.bool),
    )


def test_approximate_divergence_survives_an_impossible_token() -> None:
    batch = one_token(-800.0, 1.0)
    for loss in (ppo, gspo, cispo, sapo):
        assert loss(batch).metrics["approx_kl"] == 20


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "flows"),
    [
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # clipped above
        (0.5, 2.0, -1.0, True),
        (0.5, -2.0, 1.6, False),  # clipped below
        (1.5, -2.0, 3.0, True),
        (9.0, -2.0, 6.0, False),  # dual clip
    ],
)
def test_ppo_by_hand(ratio, advantage, loss, flows) -> None:
    batch = one_token(torch.tensor(ratio).double().log().item(), advantage)
    out = ppo(batch)
    assert out.loss.item() == pytest.approx(loss, rel=1e-6)
    (grad,) = torch.autograd.grad(out.loss, batch.log_probs)
    assert grad.item() == pytest.approx(-advantage * ratio if flows else 0.0, rel=1e-6)


def test_log_ratio_bound_silences_saturated_tokens() -> None:
    batch = one_token(-40.0, 1.0)
    assert torch.autograd.grad(ppo(batch).loss, batch.log_probs)[0] == 0
    batch = one_token(-40.0, 1.0)
    assert torch.autograd.grad(ppo(batch, log_ratio_bound=None).loss, batch.log_probs)[0] < 0


@pytest.mark.parametrize("form", ["token", "sequence"])
def test_gspo_padding_beside_an_infinite_ratio(form) -> None:
    batch = TokenBatch(
        log_probs=torch.zeros(1, 3),
        old_log_probs=torch.tensor([[-999.0, -999.0, 0.0]]),
        mask=torch.tensor([[True, True, False]]),
        advantages=torch.ones(1),
    )
    out = gspo(batch, form=form, clip_high=0.5, log_ratio_bound=None)
    assert torch.equal(out.per_token, torch.tensor([[-1.5, -1.5, 0.0]]))


def test_infinite_dual_clip_is_none() -> None:
    for advantage in (-2.0, 0.0, 2.0):
        batch = one_token(2.0, advantage)
        found = [ppo(batch, dual_clip=bound) for bound in (float("inf"), None)]
        assert found[0].loss == found[1].loss
        assert found[0].metrics == found[1].metrics
        grads = [torch.autograd.grad(out.loss, batch.log_probs)[0] for out in found]
        assert grads[0] == grads[1]


def random_batch(seed: int = 0, b: int = 6, t: int = 8, row_advantages: bool = True) -> TokenBatch:
    g = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(b, t, generator=g, dtype=torch.float64)
    return TokenBatch(
        log_probs=log_probs.requires_grad_(),
        old_log_probs=log_probs.detach() + 0.1 * torch.randn(b, t, generator=g, dtype=torch.float64),
        advantages=torch.randn(*((b,) if row_advantages else (b, t)), generator=g, dtype=torch.float64),
        mask=torch.arange(t) < torch.randint(1, t + 1, (b, 1), generator=g),
    )


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_gspo_forms_agree_for_row_advantages(aggregation) -> None:
    found = []
    for form in ("token", "sequence"):
        batch = random_batch()
        loss = gspo(batch, form=form, clip_low=0.05, clip_high=0.05, aggregation=aggregation).loss
        found.append((loss, torch.autograd.grad(loss, batch.log_probs)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_gspo_sequence_form_is_a_true_gradient() -> None:
    batch = random_batch()

    def loss(log_probs):
        return gspo(batch.replace(log_probs=log_probs), form="sequence", clip_low=0.05, clip_high=0.05).loss

    assert torch.autograd.gradcheck(loss, batch.log_probs.detach().requires_grad_())


def test_cispo_gradient_is_weighted_reinforce() -> None:
    batch = random_batch(row_advantages=False)
    (grad,) = torch.autograd.grad(cispo(batch, aggregation="token-sum").loss, batch.log_probs)
    weight = batch.log_ratio.exp().clamp(0.8, 1.2)
    torch.testing.assert_close(grad, (-weight * batch.advantages * batch.mask).detach())


def test_sapo_has_the_policy_gradient_on_policy() -> None:
    batch = random_batch(row_advantages=False)
    batch = batch.replace(old_log_probs=batch.log_probs.detach())
    (grad,) = torch.autograd.grad(sapo(batch, aggregation="token-sum").loss, batch.log_probs)
    torch.testing.assert_close(grad, -batch.advantages)


def test_kl_estimators_are_what_they_estimate() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(6, generator=g, dtype=torch.float64).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    true = categorical.kl_divergence(logits, ref)
    p = log_p.exp().detach()
    for kind in ("k1", "k3"):  # expectations over all outcomes, no sampling
        torch.testing.assert_close((p * kl_estimate(log_p, ref, kind)).sum(), true)
    # On-policy, k2's gradient is that of the reverse KL; so is that of the straight-through forms.
    (exact,) = torch.autograd.grad(true, logits, retain_graph=True)
    for kind in ("k2", "k1+", "k3+"):
        (found,) = torch.autograd.grad((p * kl_estimate(log_p, ref, kind)).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, exact)
    value = kl_estimate(log_p, ref, "k3+")
    torch.testing.assert_close(value, kl_estimate(log_p, ref, "k3"))
    with pytest.raises(ValueError, match="kind: expected one of k1"):
        kl_estimate(log_p, ref, "k4")


def test_group_advantages_do_not_need_neighbors() -> None:
    rewards = torch.tensor([1.0, 5.0, 0.0, 7.0], dtype=torch.float64)
    found = group_advantages(rewards, torch.tensor([9, -2, 9, -2]), eps=0.0)
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([half, -half, -half, half], dtype=torch.float64))


def test_equal_rewards_are_exactly_zero() -> None:
    rewards = torch.full((7,), 0.1)
    assert not group_advantages(rewards, torch.zeros(7, dtype=torch.long)).any()
    assert uniform_groups(rewards, torch.zeros(7, dtype=torch.long)).all()


def test_singletons() -> None:
    rewards, group = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0, 1, 1])
    assert group_advantages(rewards, group)[0] == pytest.approx(2.0, rel=1e-5)
    assert group_advantages(rewards, group, singleton="zero")[0] == 0
    for bad in ({"scale": "std"}, {"singleton": "one"}, {"eps": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            group_advantages(rewards, group, **bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: ppo(b, clip_low=-0.1), r"clip_low: expected a number in \[0, inf\], got -0.1"),
        (lambda b: ppo(b, dual_clip=1.0), r"dual_clip: expected a number in \(1, inf\], got 1.0"),
        (lambda b: gspo(b, form="row"), r"form: expected one of token, sequence"),
        (lambda b: sapo(b, tau_positive=0.0), r"tau_positive: expected a number in \(0, inf\]"),
        (lambda b: overlong_reward(b, max_length=2, buffer=3), r"buffer: expected a number in \[1, 2\], got 3"),
    ],
)
def test_option_errors(call, message) -> None:
    batch = random_batch().replace(rewards=torch.zeros(6))
    with pytest.raises(ValueError, match=message):
        call(batch)


def test_adaptive_bonus_follows_its_target() -> None:
    part = AdaptiveEntropyBonus(initial=0.1, target=0.5, delta=0.05, high=0.2)

    def step(entropy: float) -> float:
        for _ in range(2):  # two micro-batches make one step
            out = part(
                TokenBatch(
                    log_probs=torch.zeros(1, 2),
                    mask=torch.ones(1, 2, dtype=torch.bool),
                    entropy=torch.full((1, 2), entropy),
                )
            )
        part.after_step()
        return float(out.metrics["entropy_coef"])

    assert step(0.4) == 0.0  # nothing is known before the first step, so nothing is applied
    assert float(part.coef) == pytest.approx(0.15)
    assert step(0.4) == pytest.approx(0.15)
    assert step(0.4) == pytest.approx(0.2)
    assert step(0.9) == pytest.approx(0.2)  # the cap; this step's entropy is above the target
    assert step(0.9) == 0.0  # so the bonus rests
    assert float(part.coef) == pytest.approx(0.1)
    part.eval()
    step(0.1)
    assert float(part.coef) == pytest.approx(0.1), "evaluation moves nothing"
