"""What is special to arbitrary entropy: the controller, the term, replaced rows, and the tempered advantage."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from batches import fields, make

from infotorch.losses import (
    AUXILIARY,
    ON_POLICY,
    ArbitraryEntropy,
    AuxiliarySampling,
    EntropyTargetController,
    TokenBatch,
    arbitrary_entropy,
    build,
    grpo_advantage,
    mix_batches,
    ppo,
    recipe,
    target_temperature,
    tempered_advantage,
)
from infotorch.rlvr import run_modular_sum
from infotorch.rlvr.tasks.modular_sum import ModularSum


def constant(entropy: float, log_prob: float = -1.0) -> TokenBatch:
    ones = torch.ones(2, 3)
    return TokenBatch(log_probs=log_prob * ones, entropy=entropy * ones, mask=torch.ones(2, 3, dtype=torch.bool))


def mixed(**changes: Any) -> TokenBatch:
    """Eight ordinary rows of two prompts and four auxiliary ones of the first."""
    values = fields(groups=3)
    values["group"] = torch.tensor([0] * 4 + [1] * 4 + [0] * 4)
    values["rewards"] = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0]).double()
    source = torch.tensor([ON_POLICY] * 8 + [AUXILIARY] * 4)
    return make(values, **{"advantages": None, "rollout_weights": None, "source": source, **changes})


# ---------------------------------------------------------------------------------------------------------
# The controller
# ---------------------------------------------------------------------------------------------------------


def test_the_controller_follows_a_moving_average_that_starts_at_the_first_batch() -> None:
    controller = EntropyTargetController(0.5, momentum=0.75)
    with pytest.raises(ValueError, match="no entropy is known yet: call observe"):
        controller.temperature()
    controller.observe(constant(0.4))
    assert controller.temperature() == pytest.approx(1.1)
    controller.observe(constant(0.8))
    assert controller.entropy == pytest.approx(0.5)
    assert controller.temperature() == pytest.approx(1.0)
    controller.observe(constant(0.1).replace(mask=torch.zeros(2, 3, dtype=torch.bool)))
    assert controller.entropy == pytest.approx(0.5)


def test_the_sampled_estimate_is_minus_the_mean_log_probability() -> None:
    controller = EntropyTargetController(0.5, estimate="sampled")
    controller.observe(constant(0.4, log_prob=-0.7))
    assert controller.entropy == pytest.approx(0.7)


def test_two_levels_and_their_boundary() -> None:
    entropy = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    found = target_temperature(entropy, 0.5, low=0.9, high=1.5, schedule="two_level")
    assert found.tolist() == [1.5, 1.5, 0.9]


@pytest.mark.parametrize("schedule", ["continuous", "two_level"])
def test_a_target_out_of_reach_is_said_once(schedule: str) -> None:
    controller = EntropyTargetController(2.0, schedule=schedule, patience=3)
    controller.observe(constant(0.4))
    for _ in range(2):
        controller.temperature()
    resumed = copy.deepcopy(controller)
    with pytest.warns(UserWarning, match=r"stood at 1.2 for 3 rollout batches; entropy 0.400 does not get to .* 2 "):
        controller.temperature()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.temperature()
        resumed.temperature(0.1)  # a question about another entropy is no step
        resumed.observe(constant(5.6))  # past the target: the run of equal ends is over
        resumed.temperature()
        resumed.temperature()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": -1.0}, r"target: expected a number in \[0, inf\], got -1.0"),
        ({"low": 0.0}, r"low: expected a number in \(0, 1\], got 0.0"),
        ({"high": 0.9}, r"high: expected a number in \[1, inf\), got 0.9"),
        ({"schedule": "linear"}, "schedule: expected one of continuous, two_level"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"estimate": "full"}, "estimate: expected one of exact, sampled"),
        ({"patience": 0}, "patience: expected a number in"),
    ],
)
def test_controller_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyTargetController(**{"target": 0.5, **options})


# ---------------------------------------------------------------------------------------------------------
# The term
# ---------------------------------------------------------------------------------------------------------


def test_the_term_by_hand() -> None:
    log_ratio = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    leaf = log_ratio.clone().requires_grad_()
    batch = TokenBatch(
        log_probs=leaf,
        old_log_probs=torch.zeros(3, 3).double(),
        mask=torch.tensor([[True] * 3, [True] * 3, [True, False, False]]),
        rewards=torch.tensor([1.0, 0.0, 3.0]).double(),
    )
    out = arbitrary_entropy(batch, alpha=0.5)
    first, last = (1.2 + float(torch.tensor(-0.5).exp()) + 1) / 3, 1.2
    assert out.loss.item() == pytest.approx(-0.5 * (first + last) / 3)
    (grad,) = torch.autograd.grad(out.loss, leaf)
    assert grad[0, 0] == 0, "clipped above"
    assert grad[0, 1] < 0, "not below"
    assert not grad[1].any()
    assert out.metrics["positive_fraction"] == pytest.approx(2 / 3)
    weighted = arbitrary_entropy(batch, alpha=0.5, weighting="reward")
    assert weighted.loss.item() == pytest.approx(-0.5 * (first + 3 * last) / 3)


def test_without_a_positive_answer_the_term_is_zero() -> None:
    batch = make(fields(), rewards=torch.zeros(12).double())
    assert arbitrary_entropy(batch, alpha=1.0).loss == 0


def test_a_recipe_shows_the_term_the_auxiliary_rows_and_their_counts() -> None:
    r = recipe("arbitrary_entropy", alpha=0.5)
    prepared = r.prepare(mixed())
    whole = r(prepared)
    rows = prepared.select(slice(8, None))
    term = arbitrary_entropy(rows, alpha=0.5).loss
    plain = ppo(prepared.select(slice(0, 8))).loss
    torch.testing.assert_close(whole.loss, plain + term)
    # Two micro-batches with the counts of each source add up to the same.
    tokens, sequences = prepared.counts()
    parts = [prepared.select(torch.tensor(rows)) for rows in ([0, 1, 2, 9, 10], [3, 4, 5, 6, 7, 8, 11])]
    losses = [r(part.replace(num_tokens=tokens, num_sequences=sequences)).loss for part in parts]
    torch.testing.assert_close(sum(losses), whole.loss)


def test_weight_zero_is_grpo_bit_for_bit() -> None:
    plain = run_modular_sum("grpo", steps=4, final_samples=8)
    for options in ({"alpha": 0.0}, {"variant": "repo", "replaced": 0.0}):
        zero = run_modular_sum(recipe("arbitrary_entropy", **options), steps=4, final_samples=8)
        for name in ("reward", "entropy", "loss", "distinct"):
            assert zero.column(name) == plain.column(name)


def test_what_the_module_asks_for() -> None:
    part = ArbitraryEntropy(target=0.5, fraction=0.5, samples=3)
    plan = part.auxiliary(constant(0.4))
    assert plan is not None
    assert plan.temperature == pytest.approx(1.1)
    assert (plan.fraction, plan.samples, plan.rescore) == (0.5, 3, False)
    out = part(mixed())
    assert out.metrics["temperature"] == pytest.approx(1.1)
    assert out.metrics["entropy_estimate"] == pytest.approx(0.4)
    assert ArbitraryEntropy(alpha=0.0).auxiliary(constant(0.4)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha: expected a number in \[0, inf\], got -0.1"),
        ({"variant": "code"}, "variant: expected one of paper, repo"),
        ({"weighting": "advantage"}, "weighting: expected one of filter, reward"),
        ({"fraction": 2.0}, r"fraction: expected a number in \[0, 1\], got 2.0"),
        ({"replaced": -0.5}, r"replaced: expected a number in \[0, 1\], got -0.5"),
        ({"schedule": "x"}, "schedule: expected one of"),
        ({"estimate": "x"}, "estimate: expected one of"),
        ({"clip_low": -1.0}, "clip_low: expected a number in"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arbitrary_entropy(make(fields()), **options)


# ---------------------------------------------------------------------------------------------------------
# The authors' code: replaced rows
# ---------------------------------------------------------------------------------------------------------


def prepared_by_repo(entropy: float, **options: Any) -> TokenBatch:
    r = recipe("arbitrary_entropy_repo", **options)
    r.auxiliary(constant(0.0, log_prob=-entropy))
    batch = r.prepare(mixed())
    assert r.regularizers[0](batch.only(AUXILIARY)).loss == 0
    torch.testing.assert_close(r(batch).loss, ppo(batch.only(ON_POLICY)).loss)
    return batch


def test_positive_auxiliary_answers_take_the_place_of_the_first_rows() -> None:
    batch = prepared_by_repo(0.4, replaced=0.5)
    assert batch.source.tolist() == [1, 1] + [0] * 6 + [1, 0, 0, 1]
    assert (batch.advantages[9:11][batch.mask[9:11]] == 1).all()
    ordinary = grpo_advantage(mixed().select(slice(0, 8)))
    torch.testing.assert_close(batch.advantages[2:8], ordinary[2:8])


def test_above_the_target_half_of_them() -> None:
    assert prepared_by_repo(0.6, replaced=0.5).source.tolist() == [1] + [0] * 7 + [1, 0, 1, 1]


def test_at_most_a_share_of_the_rows_and_at_least_one() -> None:
    assert prepared_by_repo(0.4, replaced=0.01).source.tolist() == [1] + [0] * 7 + [1, 0, 1, 1]


def test_groups_in_which_all_are_right_give_none() -> None:
    r = recipe("arbitrary_entropy_repo")
    for rewards in (torch.ones(12), torch.zeros(12)):
        assert torch.equal(r.prepare(mixed(rewards=rewards.double())).source, mixed().source)
    assert r.prepare(mixed(source=None)).source is None
    assert torch.equal(r.prepare(mixed(source=torch.zeros(12, dtype=torch.long))).source, torch.zeros(12))


def test_mixing_refuses_what_cannot_be_meant() -> None:
    batch = mixed(advantages=torch.zeros(12).double())
    with pytest.raises(ValueError, match=r"selected: expected auxiliary rows \(source 1\) only"):
        mix_batches(batch, torch.arange(12) == 0)
    few = mixed(advantages=torch.zeros(12).double(), source=torch.tensor([0, 0] + [1] * 10))
    with pytest.raises(ValueError, match="selected: expected at most 2 rows, the ordinary ones, got 3"):
        mix_batches(few, torch.arange(12) > 8)


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


class AlwaysRight(ModularSum):
    """Reward 1 for every answer: no task, so that only the regularizer moves the policy."""

    def reward(self, tokens: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(tokens.shape[:2])


@pytest.mark.parametrize("target", [0.8, 2.3])
def test_without_a_task_entropy_goes_to_the_target_from_both_sides(target: float) -> None:
    """The start is about 2.1 nats. Many samples a state: with few, imitation itself lowers entropy."""
    controlled = recipe("arbitrary_entropy", target=target, alpha=1.0, fraction=1.0, samples=256, momentum=0.0)
    task = AlwaysRight(prompts=2, length=2, modulus=2)
    history = run_modular_sum(controlled, steps=60, samples=2, lr=0.02, task=task, final_samples=8)
    gaps = [abs(value - target) for value in history.column("entropy")[1]]
    assert gaps[0] > 0.2
    assert sum(gaps[-20:]) / 20 < 0.08
    temperatures = history.column("loss/temperature")[1]
    assert all((value > 1) == (target > 2) for value in temperatures[:5])


@pytest.mark.parametrize("name", ["arbitrary_entropy", "arbitrary_entropy_repo", "tempered_advantage"])
def test_recipes_train(name: str) -> None:
    history = run_modular_sum(recipe(name), steps=3, final_samples=8)
    assert len(history.column("loss")[1]) == 3


# ---------------------------------------------------------------------------------------------------------
# The tempered advantage
# ---------------------------------------------------------------------------------------------------------


def test_without_a_correct_answer_it_is_grpos_advantage() -> None:
    batch = make(fields(), rewards=torch.full((12,), -1.0).double())
    assert torch.equal(tempered_advantage(batch), grpo_advantage(batch))


def test_at_the_target_it_is_grpos_advantage() -> None:
    batch = make(fields(), old_entropy=torch.full(fields()["mask"].shape, 0.5, dtype=torch.float64))
    torch.testing.assert_close(tempered_advantage(batch, target=0.5), grpo_advantage(batch))
    assert not torch.equal(tempered_advantage(batch, target=0.4), grpo_advantage(batch))


def test_impossible_tokens_stay_finite() -> None:
    values = fields()
    batch = make(values, old_log_probs=torch.full_like(values["log_probs"], -800.0))
    assert tempered_advantage(batch, threshold=0.0).isfinite().all()


def test_tempered_log_probabilities_are_asked_for() -> None:
    part = build({"name": "tempered_advantage", "target": 0.5})
    assert part.auxiliary(constant(0.4)) == AuxiliarySampling(1.2, rescore=True)
    with pytest.raises(ValueError, match="temperature_high: expected a number in"):
        tempered_advantage(make(fields()), temperature_high=0.5)
