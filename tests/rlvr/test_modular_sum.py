import itertools

import pytest
import torch
from repeater import Repeater

from infotorch.core import token_stats
from infotorch.losses import REPLAY, Recipe, recipe
from infotorch.rlvr import run_modular_sum
from infotorch.rlvr.tasks.modular_sum import ModularSum, TabularPolicy


def every_response(task):
    return torch.tensor(list(itertools.product(range(task.vocab), repeat=task.length))).expand(task.prompts, -1, -1)


def small(**options):
    return ModularSum(prompts=3, length=3, vocab=4, modulus=3, seed=2, **options)


def test_states_and_rewards_by_hand():
    task = small()
    tokens = every_response(task)
    values, weights = task.values.tolist(), task.weights.tolist()
    for prompt, response in itertools.product(range(3), tokens[0].tolist()):
        total, states = 0, [0]
        for weight, token in zip(weights, response, strict=True):
            total = (total + weight * values[token]) % 3
            states.append(total)
        one = torch.tensor(response)
        assert task.states(one).tolist() == states
        right = total == task.targets[prompt] and response[0] % 3 == prompt % 3
        assert task.reward(one.expand(3, 1, 3))[prompt, 0] == float(right)


def test_filler_positions_leave_the_sum_alone_and_must_be_zero():
    task = small(decisions=(0, 2))
    tokens = every_response(task)
    rewards = task.reward(tokens)
    assert rewards[tokens[..., 1] != 0].sum() == 0
    assert rewards.sum() > 0
    assert (task.states(tokens)[..., 1] == task.states(tokens)[..., 2]).all()


def test_exact_entropy_is_the_expectation_over_all_responses():
    task = small()
    policy = TabularPolicy(task, seed=1)
    tokens = every_response(task)
    stats = token_stats(policy(tokens).double(), tokens)
    probability = stats.log_probs.sum(-1).exp()
    torch.testing.assert_close(probability.sum(1), torch.ones(3, dtype=torch.double))
    expected = (probability[..., None] * stats.entropy).sum() / (3 * 3)
    assert policy.mean_entropy() == pytest.approx(expected.item(), abs=1e-6)


def test_samples_follow_the_table():
    task = small()
    policy = TabularPolicy(task, seed=1)
    tokens = policy.sample(20_000, torch.Generator().manual_seed(0))
    exact = token_stats(policy(every_response(task)), every_response(task)).log_probs.sum(-1).exp()
    codes = (tokens * torch.tensor([16, 4, 1])).sum(-1)
    observed = torch.stack([torch.bincount(row, minlength=64) for row in codes]) / 20_000
    assert (observed - exact).abs().max() < 0.02


def test_samples_at_a_temperature_follow_the_divided_table():
    task = small()
    policy, cold = TabularPolicy(task, seed=1), TabularPolicy(task, seed=1)
    cold.table.data /= 0.5
    expected = cold.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(policy.sample(50, torch.Generator().manual_seed(0), 0.5), expected)
    found = policy.sample(50, torch.Generator().manual_seed(0), lambda logits: torch.full((len(logits),), 0.5))
    assert torch.equal(found, expected)


def test_distinct_correct_counts_different_responses():
    task = small()
    tokens = every_response(task)
    number = task.reward(tokens).sum(1).long()
    assert (task.distinct_correct(tokens) == number).all()
    assert (task.distinct_correct(torch.cat((tokens, tokens), 1)) == number).all()


def test_grpo_learns_and_loses_entropy():
    history = run_modular_sum("grpo", steps=40, seed=0, final_samples=64)
    rewards, entropy = history.column("reward")[1], history.column("entropy")[1]
    assert rewards[0] < 0.15
    assert rewards[-1] > 0.7
    assert entropy[-1] < 0.6 * entropy[0]
    again = run_modular_sum(recipe("grpo"), steps=40, seed=0, final_samples=64)
    assert again.rows == history.rows


def test_controllers_run_and_metrics_are_recorded():
    bonus = recipe("adaptive_entropy_bonus", target=100.0, delta=0.01)
    history = run_modular_sum(bonus, steps=3, epochs=2, final_samples=8)
    assert float(bonus.regularizers[0].coef) == pytest.approx(0.06)  # one move an update
    assert history.column("loss/clip_fraction")[0] == [0, 1, 2]


def test_filler_variant_starts_certain_at_the_fillers():
    task = ModularSum(length=15, decisions=(0, 5, 10), seed=0)
    policy = TabularPolicy(task, seed=0)
    table = policy.table.detach()
    entropy = -(table.softmax(-1) * table.log_softmax(-1)).sum(-1).mean((0, 2))
    assert entropy[~task.decides].max() < 0.6 * entropy[task.decides].min()


@pytest.mark.parametrize("separate", [False, True])
def test_rows_can_be_repeated(separate):
    part = Repeater(separate=separate)
    run_modular_sum(Recipe("ppo", advantage="grpo", regularizers=[part]), steps=2, epochs=2, final_samples=1)
    repeated = [batch for batch in part.seen if batch.mask.any()]
    assert len(repeated) == 4
    if separate:
        assert all(batch.source.eq(REPLAY).all() for batch in repeated)
    else:
        # Before the first update the rows, computed again from their payload, are those that were sampled.
        for batch in repeated[::2]:
            assert batch.log_ratio.abs().max() < 1e-6
            assert int(batch.num_sequences) == 64
    assert repeated[1].log_ratio.abs().max() > 1e-4


@pytest.mark.parametrize("combine", ["sum", "alternate"])
def test_spear_repeats_good_rows(combine):
    """Only rows better than the median group come back, and the loss on them falls as they are imitated."""
    method = recipe("spear", buffer={"size": 16}, warmup=0, combine=combine)
    history = run_modular_sum(method, steps=8, final_samples=1)
    prefix = "loss" if combine == "sum" else "replay"
    rows = [row.get(f"{prefix}/replay_rows", 0.0) for row in history.rows]
    assert max(rows) == 16
    assert rows[0] == 0, "too few at first"
    assert recipe("spear").regularizers[0].buffer.size == 2048


def test_errors():
    with pytest.raises(ValueError, match="modulus: expected an integer >= 2, got 1"):
        ModularSum(modulus=1)
    with pytest.raises(ValueError, match=r"decisions: expected positions in 0\.\.5, got \[6\]"):
        ModularSum(decisions=[6])
    with pytest.raises(ValueError, match="epochs: expected a positive integer, got 0"):
        run_modular_sum("grpo", epochs=0)
